"""The user's own networks, aggregators and attacks in a run, and the errors for those that can't be used."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedMedian

from solon_fl.errors import ConfigurationError
from solon_fl.simulations import STRATEGIES, Outcome, build_model, simulate
from solon_fl.simulations.compare import Comparison
from solon_fl.simulations.compare.running import _digest
from solon_fl.simulations.own import OwnCodeError
from solon_fl.simulations.run import strategy_named
from solon_fl.simulations.run.own_strategies import OWN_COLOURS
from solon_fl.simulations.sources import digest_of
from tests.simulations.own import Write, write
from tests.simulations.run.small import curve, run, scenario

__all__ = ["write"]

MINE = """
import os, random, numpy as np
import torch
from flwr.serverapp.strategy import FedMedian
from torch import nn
from solon_fl.simulations.attacks import attack_mod

def mean(vectors):
    return vectors.mean(0)

def without_first(vectors, num_liars):
    return vectors[num_liars:].mean(0)

class Mean:
    def __call__(self, vectors):
        return vectors.mean(0)

def median(num_nodes):
    return FedMedian()

MEDIAN = FedMedian()

class Reverse:
    omniscient = False
    def __init__(self, seed):
        assert seed == 0
    def lies(self, vectors, liars, rng):
        return -100 * vectors

def reverse(vectors, liars, rng):
    return -100 * vectors[list(liars)]

def reverse_mod(message, context, call_next):
    return attack_mod(Reverse(0))(message, context, call_next)

def make_reverse_mod():
    return reverse_mod

def make(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], num_classes))

class Net(nn.Module):
    def forward(self, x):
        return x.flatten(1)

NET = Net()

def lazy():
    return nn.LazyLinear(10)

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 11))

def raising():
    return nn.Linear(3, 10)

def unseeded():
    net = make((1, 28, 28), 10)
    net[1].bias.data[0] = int.from_bytes(os.urandom(4), "big")
    return net

def number():
    return 7

def of_width(width):
    return nn.Linear(width, 10)

def failing(vectors):
    return vectors[99]

def all_of_them(vectors):
    return vectors

def two(vectors, weights):
    return vectors[0]

class Failing(Reverse):
    def lies(self, vectors, liars, rng):
        return vectors + undefined

def short(vectors, liars, rng):
    return vectors[0]

class Half:
    def lies(self, vectors, liars, rng):
        return vectors

class Counting(nn.Sequential):
    calls = 0
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(784, num_classes))
    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls

class Drawing(Counting):
    def forward(self, x):
        return super().forward(x) * random.random() / self.calls

def dropping(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.BatchNorm1d(784), nn.Linear(784, num_classes))

def of_three(vectors):
    n = len(vectors)
    return vectors[[int(torch.randint(n, ())), random.randrange(n), np.random.randint(n)]].mean(0)

def noise(vectors, liars, rng):
    return torch.randn(len(liars), vectors.shape[1])
"""


@pytest.fixture
def mine(write: Write) -> str:
    return write(MINE)


@pytest.mark.slow
@pytest.mark.parametrize(("own", "known"), [("mean", "fedavg"), ("MEDIAN", "fedmedian")])
def test_an_aggregator_of_the_users_trains_as_the_known_one_does(own: str, known: str, mine: str) -> None:
    expected = run(strategy=known, rounds=1, momentum_at="nodes")
    outcome = run(strategy=f"{mine}:{own}", rounds=1)
    assert outcome.error is None
    torch.testing.assert_close(curve(outcome), curve(expected), rtol=0, atol=0.002)


def test_an_aggregator_is_told_how_many_lie(mine: str) -> None:
    setting = scenario(strategy=f"{mine}:without_first", num_liars=3)
    vectors = torch.arange(14.0)[:, None]
    assert strategy_named(f"{mine}:without_first").aggregate(setting)(vectors) == 8
    assert strategy_named(f"{mine}:without_first").aggregate(setting)(vectors[2:]) == 8  # two of the liars are missing
    assert strategy_named(f"{mine}:Mean").aggregate(setting)(vectors) == 6.5
    for flower in ("flwr.serverapp.strategy:FedMedian", f"{mine}:median"):
        assert strategy_named(flower).aggregate(setting)(vectors) == 6.5
        inner = strategy_named(flower).make(setting, buffers=()).inner  # type: ignore[attr-defined]
        assert (inner.fraction_evaluate, inner.min_train_nodes, inner.min_available_nodes) == (0, 14, 14)
    assert setting.nodes_have_momentum


@pytest.mark.parametrize(
    ("own", "strategy"),
    [("Reverse", "solon"), ("reverse", "fedavg"), ("reverse_mod", "solon"), ("make_reverse_mod", "fedavg")],
)
def test_an_attack_of_the_users_does_what_the_known_one_does(own: str, strategy: str, mine: str) -> None:
    expected, outcome = (run(strategy=strategy, attack=a, rounds=1) for a in ("reverse", f"{mine}:{own}"))
    assert outcome.model_sha256 == expected.model_sha256
    assert outcome.offences == expected.offences


def test_a_network_of_the_users_is_trained_saved_and_loaded(mine: str, tmp_path: Path) -> None:
    chosen = scenario(model=f"{mine}:make", rounds=1)
    outcome = simulate(chosen)
    assert outcome.model_sha256 == run(model="logistic", rounds=1).model_sha256
    outcome.save(tmp_path / "run.jsonl")
    assert Outcome.load(tmp_path / "run.jsonl") == outcome


def test_a_class_is_taken_in_place_of_its_path() -> None:
    chosen = scenario(model=torch.nn.Flatten, strategy=FedMedian)
    assert chosen.model == "torch.nn.modules.flatten:Flatten"
    assert chosen == scenario(model=chosen.model, strategy="flwr.serverapp.strategy.fedmedian:FedMedian")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("NET", "must be a class or a function that makes a network; got Net"),
        ("number", "must return a torch.nn.Module; got int"),
        ("lazy", "whose lazy layers have their shapes"),
        ("of_width", "may take input_shape, num_classes, and nothing else without a default; got one that takes width"),
        ("wide", r"here \(8, 10\); got shape \(8, 11\) torch.float32"),
        ("raising", r"RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("Counting", "compute the same .* got another loss the second time"),
        ("Drawing", "compute the same .* got another loss the second time"),
        ("unseeded", "each time it is made with the same seed; got other weights in 1.bias"),
        (
            "Net",
            "RuntimeError: element 0 of tensors does not require grad|must return one floating-point number for each ",
        ),
    ],
)
def test_a_network_that_cannot_learn_is_refused_before_anything_is_run(own: str, message: str, mine: str) -> None:
    rounds: list[object] = []
    with pytest.raises(ConfigurationError, match=message):
        simulate(scenario(model=f"{mine}:{own}"), rounds.append)
    assert rounds == []


@pytest.mark.parametrize(
    ("field", "own", "message"),
    [
        ("strategy", "failing", "IndexError: index 99 is out of bounds .*, in {}.py, line 69, failing"),
        ("strategy", "all_of_them", r"return one tensor, \(d,\), for the gradients, \(n, d\); got shape \(14, 64\)"),
        ("strategy", "two", "must be a function of the gradients.* got function of vectors, weights"),
        ("strategy", "number", "returns one; got int"),
        ("attack", "Failing", "NameError: name 'undefined' is not defined, in {}.py, line 79, lies"),
        ("attack", "short", r"\(2, 1000\) torch.float32 here; got \(1000,\)"),
        ("attack", "Half", "must be an Attack, .* got Half without omniscient"),
        ("attack", "number", "must be an Attack, .* got int"),
    ],
)
def test_what_cannot_aggregate_or_attack_is_refused_when_a_scenario_or_comparison_is_made(
    field: str, own: str, message: str, mine: str
) -> None:
    with pytest.raises(ConfigurationError, match=message.format(mine)):
        scenario(**{field: f"{mine}:{own}"})
    strategies = ("fedavg", f"{mine}:{own}") if field == "strategy" else ("fedavg",)
    attacks = (None, f"{mine}:{own}") if field == "attack" else (None,)
    with pytest.raises(ConfigurationError, match=message.format(mine)):
        Comparison(title="t", scenario=scenario(), strategies=strategies, attacks=attacks)


def test_a_run_is_not_taken_for_that_of_a_changed_file(mine: str) -> None:
    chosen = scenario(model=f"{mine}:make")
    digest_of.cache_clear()
    before = _digest(chosen)
    Path(f"{mine}.py").write_text(MINE + "# changed\n")
    digest_of.cache_clear()
    assert _digest(chosen) != before


def test_code_that_draws_from_global_random_states_gives_the_same_twice(mine: str) -> None:
    own = {"model": f"{mine}:dropping", "strategy": f"{mine}:of_three", "attack": f"{mine}:noise", "rounds": 2}
    before = torch.get_rng_state(), random.getstate()
    first = run(**own)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    torch.rand(1), random.random(), np.random.random()  # noqa: NPY002
    assert first.error is None
    assert run(**own).model_sha256 == first.model_sha256


def test_too_little_data_for_all_nodes_is_refused_before_anything_is_run(write: Write) -> None:
    name = write("import torch\nDATA = [(torch.zeros(2, 2, dtype=torch.uint8), i % 2) for i in range(15)]\n")
    with pytest.raises(ConfigurationError, match="got num_nodes=14 and 13 examples"):
        run(dataset=f"{name}:DATA", strategy="fedavg", dirichlet=1.0)


def test_weights_depend_on_the_seed_alone(mine: str) -> None:
    first, again, other = (build_model(f"{mine}:make", (1, 2, 3), 4, seed) for seed in (0, 0, 1))
    weights = [model.state_dict()["1.weight"] for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_names_and_colours_of_the_users_strategies_are_no_others(mine: str) -> None:
    one, two = strategy_named(f"{mine}:mean"), strategy_named(f"{mine}:Mean")
    assert (one.title, two.title) == (f"{mine}:mean", f"{mine}:Mean")
    assert one.colour != two.colour
    assert strategy_named(f"{mine}:mean").colour == one.colour
    assert not {colour.upper() for colour in OWN_COLOURS} & {made.colour.upper() for made in STRATEGIES.values()}


def test_an_attack_that_raises_in_the_midst_of_a_run_ends_it(write: Write) -> None:
    name = write("""
class Raiser:
    omniscient = False
    def lies(self, vectors, liars, rng):
        if vectors.shape[1] != 1000:  # not in the trial
            raise ValueError("my bug")
        return vectors
""")
    with pytest.raises(OwnCodeError, match=f"attack='{name}:Raiser' must not raise; got ValueError: my bug, in .*"):
        run(attack=f"{name}:Raiser", rounds=1)


def test_rounds_in_which_an_aggregator_fails_are_counted(write: Write) -> None:
    name = write("""
def late_nan(vectors):
    return vectors.mean(0) if vectors.shape[1] == 64 else vectors.mean(0) * float("nan")  # 64: in the trial
""")
    outcome = run(strategy=f"{name}:late_nan", rounds=2)
    assert (outcome.unstepped, outcome.error) == (2, None)
    assert run(rounds=2).unstepped == 0
