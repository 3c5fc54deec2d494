from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, RecordDict
from torch import Tensor

from solon_fl.baselines import RepetitionCode
from solon_fl.baselines.draco.task import make_draco_code
from solon_fl.baselines.garbage import quick_collections
from solon_fl.baselines.rules import (
    Bucketing,
    Rule,
    bulyan,
    caf,
    centered_clipping,
    dnc,
    geometric_median,
    nnm,
    ready_for,
)
from solon_fl.clients import Batch
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import ATTACKS, STRATEGIES, Outcome, Scenario, simulate
from solon_fl.simulations.run import ImageClient
from solon_fl.wire import to_array
from tests.support import vector_of

CONFIG = SolonConfig(num_nodes=14, byzantine=2, compression=3)
ALIKE = ("caf", "dnc", "geometric-median", "nnm")  # these run like "bulyan"
VARIED = [name for name in STRATEGIES if name not in ALIKE]
PLAIN = [name for name in VARIED if STRATEGIES[name].client == "plain"]


def scenario(strategy: str, **changes: Any) -> Scenario:
    values: dict[str, Any] = {"config": CONFIG, "num_liars": 2, "model": "logistic", "rounds": 2, "batch_size": 8}
    return Scenario(**{**values, "strategy": strategy, **changes})


def run(strategy: str, **changes: Any) -> Outcome:
    return simulate(scenario(strategy, **changes))


def random_vectors(rows: int = 14, dim: int = 12) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))


def assert_close(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first.double(), second.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [None, "reverse"])
@pytest.mark.parametrize("strategy", VARIED)
def test_every_strategy_runs_and_reports_what_it_cost(strategy: str, attack: str | None) -> None:
    outcome = run(strategy, attack=attack)
    assert outcome.error is None
    assert [record.round for record in outcome.records] == [0, 1, 2]
    for record in outcome.records[1:]:
        assert record.report is not None
        assert record.report.stepped
        assert record.report.bytes_in > 0
        assert record.report.seconds_aggregating > 0
        assert record.report.seconds_stepping > 0
        assert record.report.silent_nodes == ()
        assert not record.waited
    if attack is None:
        assert outcome.offences == {}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", VARIED)
def test_the_nodes_named_as_silent_are_those_that_are(strategy: str) -> None:
    outcome = run(strategy, attack="silent", config=SolonConfig(num_nodes=14, byzantine=2, compression=3, seed=3))
    liars = outcome.scenario.liars
    assert len(liars) == 2
    if "reactive" in strategy:  # it asks some of the nodes, and waits only if it has to ask the others
        assert set(outcome.offences) <= liars
        asked_more = [bool(record.report and record.report.escalated_groups) for record in outcome.records]
        assert [record.waited for record in outcome.records] == asked_more
        return
    assert outcome.offences == {liar: {"silent": 2} for liar in liars}
    # Solon decodes without them. Every other strategy waits until the deadline.
    assert [record.waited for record in outcome.records] == [False] + 2 * [STRATEGIES[strategy].client != "solon"]


def mean_of_the_rest(vectors: Tensor, f: int) -> Tensor:
    return vectors.sort(0).values[f : len(vectors) - f].mean(0)


OWN_RULES: dict[str, Rule] = {
    "bulyan": bulyan,
    "geometric-median": geometric_median,
    "centered-clipping": centered_clipping,
    "caf": caf,
    "nnm": nnm,
    "dnc": dnc,
}
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "fedavg": lambda vectors: vectors.mean(0),
    "fedmedian": lambda vectors: vectors.quantile(0.5, dim=0),
    "fedtrimmedavg": lambda vectors: mean_of_the_rest(vectors, 2),
    "signum": lambda vectors: vectors.sign().sum(0).sign(),
    **{name: ready_for(rule, 2, 14) for name, rule in OWN_RULES.items()},
    "bucketing": lambda vectors: Bucketing(geometric_median, seed=2**62)(vectors, 2),
}


@pytest.mark.parametrize("strategy", RULES)
def test_attackers_know_what_the_server_makes_of_vectors(strategy: str) -> None:
    vectors = random_vectors()
    aggregate = STRATEGIES[strategy].aggregate(scenario(strategy))
    for _ in range(2):  # trying it twice gives the same result
        assert_close(aggregate(vectors), RULES[strategy](vectors))


@pytest.mark.parametrize(("num_nodes", "num_liars"), [(5, 0), (5, 1), (5, 2), (10, 4), (15, 3), (15, 6), (100, 29)])
def test_the_trimmed_mean_cuts_as_many_at_each_end_as_there_are_liars(num_nodes: int, num_liars: int) -> None:
    config = SolonConfig(num_nodes=num_nodes, byzantine=2, compression=1)
    aggregate = STRATEGIES["fedtrimmedavg"].aggregate(scenario("fedtrimmedavg", config=config, num_liars=num_liars))
    vectors = random_vectors(num_nodes)
    assert_close(aggregate(vectors), mean_of_the_rest(vectors, num_liars))


@pytest.mark.slow
def test_what_no_honest_node_sends_costs_a_robust_baseline_only_that_vector() -> None:
    """If all liars give themselves away, none are left to exclude, and the step is the mean of the honest nodes."""
    mean = vector_of(run("fedavg", attack="silent").arrays)
    runs = [*product(["multikrum"], ["nan", "malformed", "silent"]), *product(["bulyan", "fedtrimmedavg"], ["nan"])]
    for strategy, attack in [*runs, ("flower-bulyan", "silent")]:
        outcome = run(strategy, attack=attack, momentum_at="server")
        assert outcome.error is None
        torch.testing.assert_close(vector_of(outcome.arrays), mean, rtol=1e-5, atol=1e-6)
        how = "silent" if attack == "silent" else "malformed"
        assert outcome.offences == {liar: {how: 2} for liar in outcome.scenario.liars}


@pytest.mark.slow
@pytest.mark.parametrize("attack", [None, "ipm"])
def test_the_mean_of_the_nodes_momenta_is_the_servers_momentum(attack: str | None) -> None:
    """Liars send momenta: minus a tenth of the mean of the honest nodes' momenta."""
    at_server, at_nodes = (run("fedavg", attack=attack, rounds=3, momentum_at=place) for place in ("server", "nodes"))
    torch.testing.assert_close(vector_of(at_nodes.arrays), vector_of(at_server.arrays), rtol=1e-5, atol=1e-6)


def test_a_node_has_one_momentum_a_round_and_none_of_buffers() -> None:
    client = ImageClient(scenario("fedmedian", momentum=0.5))
    is_buffer = torch.tensor([False, True])
    sent = [client._with_momentum(torch.tensor([8.0, 8.0]), 3, number, is_buffer).tolist() for number in (1, 1, 2, 3)]
    assert sent == [[8, 8], [8, 8], [12, 8], [14, 8]]
    assert client._with_momentum(torch.tensor([8.0, 8.0]), 4, 3, is_buffer).tolist() == [8, 8]


def test_the_momentum_is_where_the_strategy_or_the_scenario_says() -> None:
    def rates(strategy: str, **changes: Any) -> tuple[bool, float]:
        chosen = scenario(strategy, **changes)
        optimizer = chosen.make_optimizer([torch.zeros(1)])
        return chosen.nodes_have_momentum, optimizer.param_groups[0]["momentum"]

    assert rates("fedavg") == rates("solon") == rates("solon", momentum_at="nodes") == (False, 0.9)
    assert rates("fedmedian") == rates("fedavg", momentum_at="nodes") == (True, 0.0)
    assert rates("fedmedian", momentum_at="server") == rates("fedmedian", engine="ray") == (False, 0.9)
    with pytest.raises(
        ConfigurationError, match=r"momentum_at='nodes' needs engine='in-process', .*; got engine='ray'"
    ):
        scenario("fedmedian", momentum_at="nodes", engine="ray")


def test_krum_picks_one_of_the_vectors_and_no_lie() -> None:
    vectors = random_vectors()
    vectors[[3, 8]] += 100
    picked = STRATEGIES["krum"].aggregate(scenario("krum"))(vectors)
    matches = [row for row, vector in enumerate(vectors) if torch.equal(vector, picked.float())]
    assert len(matches) == 1
    assert matches[0] not in (3, 8)


def test_multikrum_averages_all_but_the_liars() -> None:
    vectors = random_vectors()
    vectors[[3, 8]] += 100
    honest = vectors[[row for row in range(14) if row not in (3, 8)]]
    assert_close(STRATEGIES["multikrum"].aggregate(scenario("multikrum"))(vectors), honest.mean(0))


@pytest.mark.parametrize("strategy", ["bulyan", "flower-bulyan"])
def test_bulyan_stays_among_the_honest(strategy: str) -> None:
    vectors = random_vectors()
    vectors[[3, 8]] += 100
    with quick_collections():
        aggregated = STRATEGIES[strategy].aggregate(scenario(strategy))(vectors)
    honest = vectors[[row for row in range(14) if row not in (3, 8)]]
    assert (aggregated >= honest.min(0).values).all()
    assert (aggregated <= honest.max(0).values).all()


def test_solon_decodes_the_gradient_of_a_group() -> None:
    gradient = random_vectors(1)[0]
    code = CONFIG.make_code()
    shares = torch.stack([code.encode(gradient, slot) for slot in range(code.group_size)])
    shares[[0, 4]] += 100
    decoded = STRATEGIES["solon"].aggregate(scenario("solon"))(shares)
    assert_close(decoded[: len(gradient)], gradient)
    shares[2] += 50
    with pytest.raises(ArithmeticError, match="the group can't be decoded"):
        STRATEGIES["solon"].aggregate(scenario("solon"))(shares)


@pytest.mark.parametrize("name", ["repetition", "cyclic"])
def test_draco_decodes_the_mean_of_all_batches(name: Any) -> None:
    gradients = random_vectors()
    code = make_draco_code(name, 14, 2)
    rows = []
    for node in range(14):
        weights = torch.from_numpy(code.weights(node))
        combined = (weights[:, None] * gradients[list(code.batches(node))]).sum(0)
        rows.append(torch.stack([combined.real, combined.imag]) if code.is_complex else combined.real)
    sent = torch.stack(rows).float().flatten(1)
    sent[[3, 8]] += 100
    assert_close(STRATEGIES[f"draco-{name}"].aggregate(scenario(f"draco-{name}"))(sent), gradients.mean(0))
    sent[[0, 1, 2, 4, 5]] = torch.randn(5, sent.shape[1], generator=torch.Generator().manual_seed(1))
    with pytest.raises(ArithmeticError, match="the round can't be decoded"):
        STRATEGIES[f"draco-{name}"].aggregate(scenario(f"draco-{name}"))(sent)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", [name for name in (*PLAIN, "signum") if name != "bucketing"]
)  # the server draws at random
def test_the_first_step_is_that_of_the_aggregate(strategy: str) -> None:
    """Attackers know the aggregation that the running strategy applies to the nodes' vectors."""
    chosen = scenario(strategy, rounds=1, learning_rate=0.5, sign_learning_rate=0.5, momentum=0.0)
    client = ImageClient(chosen)
    context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
    arrays = ArrayRecord({k: to_array(v) for k, v in client.build_model(context).state_dict().items()})
    gradients = torch.stack([client.mean_gradient(arrays, [Batch(0, 1, n)], (), context) for n in range(14)]).cpu()
    with quick_collections():
        expected = vector_of(arrays) - 0.5 * STRATEGIES[strategy].aggregate(chosen)(gradients).double()
    torch.testing.assert_close(vector_of(simulate(chosen).arrays), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batches_of_the_busiest_node(strategy: str) -> None:
    config = SolonConfig(num_nodes=16, byzantine=2, compression=4)
    expected = {"draco-repetition": 6, "draco-cyclic": 7}  # 16 nodes in 6 + 5 + 5; 2 liars + 1
    expected |= {name: 8 for name in STRATEGIES if name.startswith("solon")}  # r
    chosen = scenario(strategy, config=config, num_liars=3)
    assert STRATEGIES[strategy].batches_per_node(chosen) == expected.get(strategy, 1)


@pytest.mark.parametrize(
    ("strategy", "changes", "message"),
    [
        ("bulyan", {"num_liars": 3}, "Bulyan needs at least 15 nodes for 3 liars; got num_nodes=14; add nodes, or"),
        ("krum", {"config": SolonConfig(num_nodes=5, byzantine=2, compression=1)}, "Krum needs at least 7 .*=5"),
        ("multikrum", {"config": SolonConfig(num_nodes=5, byzantine=2, compression=1)}, "num_nodes=5"),
        ("solon", {"num_liars": 5}, "num_liars must be from 0 to 4, byzantine=2 in each of 2 groups; got num_liars=5"),
        ("fedavg", {"num_liars": -1}, "num_liars=-1"),
        *(
            (strategy, {"attack": attack}, f"attack='{attack}' is made against Solon's code; got strategy='{strategy}'")
            for strategy in ("fedavg", "draco-cyclic", "signum")
            for attack, made in ATTACKS.items()
            if made.needs_code
        ),
    ],
)
def test_what_a_strategy_can_not_do_is_refused(strategy: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        scenario(strategy, **changes)


def test_more_liars_in_a_group_of_dracos_than_it_bears_are_refused() -> None:
    # Solon's groups are nodes 0-9, 10-19, ...; Draco's are 0-4, 5-9, ... and get more than 2 of them with some seed.
    groups = RepetitionCode(22, 2).groups
    crowded = []
    for seed in range(20):
        config = SolonConfig(num_nodes=22, byzantine=2, compression=7, seed=seed)
        liars = scenario("solon", config=config, num_liars=4, attack="reverse").liars
        most = max(len(liars & set(group)) for group in groups)
        if most <= 2:
            assert scenario("draco-repetition", config=config, num_liars=4, attack="reverse").liars == liars
            continue
        crowded.append(seed)
        message = (
            rf"Draco \(repetition\) needs at most byzantine=2 liars in each of its groups; got {most} among the nodes "
            r"\d+ to \d+; set num_liars to 2 or fewer"
        )
        with pytest.raises(ConfigurationError, match=message):
            scenario("draco-repetition", config=config, num_liars=4, attack="reverse")
    assert 0 < len(crowded) < 20
    # Without an attack nobody lies.
    config = SolonConfig(num_nodes=22, byzantine=2, compression=7, seed=crowded[0])
    assert scenario("draco-repetition", config=config, num_liars=4).liars == frozenset()


@pytest.mark.slow
def test_honest_runs_of_all_that_average_end_alike() -> None:
    solon = vector_of(run("solon", rounds=4).arrays)
    for strategy in ("fedavg", "draco-repetition", "draco-cyclic"):
        torch.testing.assert_close(vector_of(run(strategy, rounds=4).arrays), solon, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_tuned_attack_hurts_averages_at_least_as_much_as_the_fixed_one() -> None:
    tuned, fixed = (run("fedavg", attack=attack, rounds=4, num_liars=4) for attack in ("foe", "ipm"))
    assert tuned.records[-1].loss >= fixed.records[-1].loss
    assert tuned.accuracy <= fixed.accuracy
