"""Runs with the exact code end with the honest model, bit for bit, whatever happens in them."""

import logging
from collections.abc import Callable, Iterable, Set
from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp.typing import Mod
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.framing_lies import FAMILIES, Framing
from solon_fl import FourierCode, RealDecoder, SolonConfig
from solon_fl.coding import DecodeStatus
from solon_fl.errors import ConfigurationError, GroupFailedError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Attack, BitFlip, Constant, Reverse, attack_mod
from solon_fl.strategies import RoundReport, SolonStrategy, model_sha256
from solon_fl.task import SolonTask
from solon_fl.wire import to_array, trusted_tensor
from tests.support import (
    REMEMBERING,
    SGD,
    Regression,
    Remembering,
    initial_model,
    record_of,
    share_array,
    small_config,
    spoil,
    train,
)
from tests.test_as_in_torch import TASKS, client_for, in_torch

LIARS = {0, 1, 9, 13}  # numbers: two of each group of seven
exact_config = partial(small_config, code="exact")


def run(mods: list[Mod] | None = None, rounds: int = 3, **arguments: Any) -> tuple[str, list[RoundReport]]:
    config = arguments.pop("config", None) or exact_config()
    result, reports = train(config, mods=mods, rounds=rounds, **arguments)
    return model_sha256(result.arrays), reports


HONEST, _ = run()


# Liars


class FramingBits(Framing):
    """Lies against a real code, added to shares of the exact code, whose values have no meaning as numbers."""

    def lies(self, vectors: Tensor, liars: Any, rng: torch.Generator) -> Tensor:
        return super().lies(vectors.nan_to_num(posinf=1e30, neginf=-1e30).clamp(-1e30, 1e30), liars, rng)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value", "ignore:divide by zero")
def test_nobody_is_framed(family: str) -> None:
    decoder = RealDecoder(FourierCode(group_size=7, compression=3), byzantine=2)
    framing = FramingBits(decoder, FAMILIES[family], num_tries=2)
    sha, reports = run([attack_mod(framing, LIARS)])
    assert sha == HONEST
    for report in reports:
        assert report.corrupt_nodes == report.suspect_nodes == ()
        assert set(report.different_nodes) <= {number + 1 for number in LIARS}


@pytest.mark.parametrize(
    "changes",
    [
        {"verification": "digest", "group_size": 7},
        {"verification": "digest", "num_nodes": 10},
        {"redundancy": "reactive"},
        {"redundancy": "reactive", "verification": "digest", "group_size": 7},
        {"num_nodes": 20, "group_size": 10},
        {"regroup": "round"},
        {"grouping": "server", "stragglers": 1, "num_nodes": 16},
    ],
    ids=str,
)
@pytest.mark.parametrize("attack", [BitFlip(), Constant()], ids=str)
def test_every_way_to_run_ends_with_the_same_bits(attack: Attack, changes: dict[str, Any]) -> None:
    config = exact_config(batches_per_group=7, **changes)
    liars = {0, config.group_size + 1}  # one in each group
    assert run([attack_mod(attack, liars)], config=config)[0] == run(config=config)[0] == HONEST


def test_local_steps_end_with_the_same_bits() -> None:
    config, lr = exact_config(mode="update"), ConfigRecord({"lr": 0.1})

    def final(mods: list[Mod]) -> str:
        grid = InProcessGrid(Regression().client_app(mods), config.num_nodes)
        strategy = SolonStrategy(config, partial(torch.optim.SGD, lr=1.0))
        return model_sha256(strategy.start(grid, record_of(initial_model()), 3, 5.0, lr).arrays)

    assert final([attack_mod(Reverse(), LIARS)]) == final([])


@pytest.mark.parametrize("task", TASKS)
def test_with_s_liars_parameters_end_with_the_bits_of_plain_torch(task: str) -> None:
    config = SolonConfig(num_nodes=10, byzantine=2, compression=6, batches_per_group=2, code="exact")
    model, optimizer = initial_model(TASKS[task][0]), partial(torch.optim.Adam, lr=0.003)
    result, _ = train(
        config,
        client=client_for(task),
        model=model,
        rounds=20,
        mods=[attack_mod(Reverse(), {0, 1})],
        optimizer=optimizer,
        timeout=30,
    )
    expected = in_torch(task, "Adam", config)
    for name, array in result.arrays.items():
        found = trusted_tensor(array)
        if "running" in name:  # nodes send its change, and adding it rounds once more
            torch.testing.assert_close(found, expected[name], rtol=1e-6, atol=0)
        else:
            assert found.numpy().tobytes() == expected[name].numpy().tobytes(), name


# Order of replies, and missing replies


class Shuffled(InProcessGrid):
    """Delivers replies in random order, over several polls, and those of some nodes never."""

    def __init__(self, app: Any, num_nodes: int, seed: int, silent: Set[int] = frozenset()) -> None:
        super().__init__(app, num_nodes)
        self._random = torch.Generator().manual_seed(seed)
        self._silent = silent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        there = [name for name in message_ids if float(torch.rand((), generator=self._random)) < 0.3]
        replies = super().pull_messages(there)
        return [reply for reply in replies if reply.metadata.src_node_id not in self._silent]


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32), silent=st.sets(st.sampled_from(range(3)), max_size=3), lying=st.booleans())
def test_whoever_answers_first_or_never(seed: int, silent: set[int], lying: bool) -> None:
    """Each of three groups tolerates one missing reply and one liar. Their average is rounded."""
    config = SolonConfig(num_nodes=15, byzantine=1, compression=2, stragglers=1, code="exact")
    mods = [attack_mod(Reverse(), {0, 6, 12})] if lying else []

    def final(make_grid: Callable[..., InProcessGrid]) -> str:
        grid = make_grid(REMEMBERING.client_app(mods), config.num_nodes)
        return model_sha256(SolonStrategy(config, SGD).start(grid, record_of(initial_model()), 3, 3.0).arrays)

    away = {5 * group + 4 for group in silent}
    assert final(partial(Shuffled, seed=seed, silent=away)) == final(InProcessGrid)


def test_gradients_are_added_in_the_order_of_the_groups_with_real_codes_too() -> None:
    config = SolonConfig(num_nodes=9, byzantine=0, compression=1, group_size=1, seed=3)
    model, app = initial_model(lambda: nn.Linear(7, 40)), Remembering(lambda: nn.Linear(7, 40)).client_app()

    def final(seed: int | None) -> str:
        grid = InProcessGrid(app, 9) if seed is None else Shuffled(app, 9, seed)
        return model_sha256(SolonStrategy(config, SGD).start(grid, record_of(model), 3, 5.0).arrays)

    assert {final(seed) for seed in (None, 0, 1, 2)} == {final(None)}


class TwoHeads(nn.Module):
    """A model with a head on which no loss depends."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(7, 1), nn.Linear(7, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.used(inputs)
        return found


@pytest.mark.parametrize("verification", ["algebra", "digest"])
@pytest.mark.parametrize("seed", range(6))
def test_what_has_no_gradient_is_known_whoever_answers_first(seed: int, verification: str) -> None:
    """With k <= s, the first k + s replies may not settle it."""
    config = SolonConfig(num_nodes=5, byzantine=2, compression=1, code="exact", verification=verification)  # type: ignore[arg-type]
    app = Remembering(TwoHeads).client_app([with_names({1, 2}, [])])
    optimizer = partial(torch.optim.SGD, lr=0.1, weight_decay=0.1)
    start = dict(initial_model(TwoHeads).state_dict())
    grid = Shuffled(app, 5, seed)
    arrays = SolonStrategy(config, optimizer).start(grid, record_of(initial_model(TwoHeads)), 2, 5.0).arrays
    assert torch.equal(trusted_tensor(arrays["unused.weight"]), start["unused.weight"]), "weight decay does not move it"
    assert not torch.equal(trusted_tensor(arrays["used.weight"]), start["used.weight"])


@pytest.mark.parametrize("verification", ["algebra", "digest"])
@pytest.mark.parametrize("names", [["used.weight"], []], ids=str)
def test_who_says_falsely_what_has_no_gradient_makes_others_be_asked_but_once(
    names: list[str], verification: str
) -> None:
    config = SolonConfig(
        num_nodes=6,
        byzantine=2,
        compression=1,
        stragglers=1,
        code="exact",
        redundancy="reactive",
        verification=verification,  # type: ignore[arg-type]
    )
    reports: list[RoundReport] = []
    strategy = SolonStrategy(config, SGD, on_round=reports.append, projection_seed=0)
    app = Remembering(TwoHeads).client_app([with_names({1, 2}, names)])
    strategy.start(InProcessGrid(app, 6), record_of(initial_model(TwoHeads)), 12, 5.0)
    escalated = [report.groups[0].escalated_by for report in reports if report.escalated_groups]
    assert escalated == [(1, 2)], "neither can do so alone"
    assert all(report.groups[0].unreached == ("unused.bias", "unused.weight") for report in reports)
    assert [record.offences for record in strategy.ledger.values()] == [0] * 6


def with_names(liars: set[int], names: list[str]) -> Mod:
    """Return a mod that makes nodes report exactly these parameters as having no gradient."""

    def change(reply: Message) -> Message:
        reply.content["unreached"] = ConfigRecord({"names": names})
        return reply

    return spoil(change, liars)


# Honest nodes with other hardware or software


def of_another_make(nodes: set[int]) -> Mod:
    """Return a mod that changes the last bit of one entry of these nodes' gradients."""

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        if context.node_id in nodes:
            share = trusted_tensor(share_array(reply.content)["share"]).clone()
            share.view(torch.int32)[1] ^= 1
            reply.content["share"] = ArrayRecord({"share": to_array(share)})
        return reply

    return mod


def test_nodes_of_another_make_are_different_and_no_liars(caplog: pytest.LogCaptureFixture) -> None:
    strategy = SolonStrategy(exact_config(), SGD)
    grid = InProcessGrid(REMEMBERING.client_app([of_another_make({3, 8})]), 14)
    with caplog.at_level(logging.WARNING, "flwr"):
        arrays = strategy.start(grid, record_of(initial_model()), 3, 1.0).arrays
    assert model_sha256(arrays) == HONEST
    for record in strategy.ledger.values():
        assert record.different_bits == (3 if record.node_id in {3, 8} else 0)
        assert record.lying == record.malformed == record.offences == 0
        assert record.state == "member"
    assert "than their groups: 3, 8. They lie, or have other hardware or software. Each counts as" in caplog.text


def test_quarantine_is_the_users_choice() -> None:
    strategy = SolonStrategy(exact_config(quarantine_after=2), SGD)
    grid = InProcessGrid(REMEMBERING.client_app([of_another_make({3})]), 14)
    strategy.start(grid, record_of(initial_model()), 4, 0.3)
    (record,) = (record for record in strategy.ledger.values() if record.node_id == 3)
    assert (record.state, record.different_bits, record.lying) == ("quarantined", 2, 0)
    assert record.last_offence == "round 2: other bits than its group"


def test_more_than_s_of_another_make_stop_the_run_with_advice() -> None:
    with pytest.raises(GroupFailedError, match=r"code='exact' needs .*same bits.*code='fourier'.*calibrate"):
        run([of_another_make({1, 2, 3, 8, 9, 10})])


# Gradients with NaN or infinity, and bits that represent no field element


class Diverging(Regression):
    def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        vector = super().gradient(arrays, task, context, config)
        if task.round == 2:
            vector[3] = float("nan")
        return vector


@pytest.mark.parametrize("liars", [set(), LIARS])
def test_a_diverged_round_is_nobodys_lie(liars: set[int]) -> None:
    reports: list[RoundReport] = []
    app = Diverging().client_app([attack_mod(Reverse(), liars)])
    strategy = SolonStrategy(exact_config(), SGD, on_round=reports.append)
    strategy.start(InProcessGrid(app, 14), record_of(initial_model()), 3, 1.0)
    assert [report.stepped for report in reports] == [True, False, True]
    for group in reports[1].groups:
        assert (group.status, group.decoded) == (DecodeStatus.DIVERGED, False)
        assert group.corrupt_nodes == group.different_bits == ()
        assert group.malformed_nodes == {}
    honest = [record for record in strategy.ledger.values() if record.node_id - 1 not in liars]
    assert all(record.offences == record.different_bits == 0 for record in honest)


def test_a_run_that_diverges_at_once_says_so() -> None:
    class AtOnce(Regression):
        def batch_loss(self, model: nn.Module, batch: Any, context: Context) -> Tensor:
            return super().batch_loss(model, batch, context) * float("inf")

    with pytest.raises(GroupFailedError, match="the training has diverged"):
        run(client=AtOnce())


class Masked(nn.Module):
    """A model whose mask becomes infinite in the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(7, 1)
        self.mask: Tensor
        self.register_buffer("mask", torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        self.mask[1] = -torch.inf
        found: Tensor = self.last(inputs)
        return found


def test_buffers_may_become_infinite() -> None:
    client, model = Remembering(Masked), initial_model(Masked)
    honest, liars = (
        train(exact_config(), client=client, model=model, mods=[attack_mod(Constant(), who)], rounds=3)
        for who in (set[int](), LIARS)
    )
    assert model_sha256(honest[0].arrays) == model_sha256(liars[0].arrays)
    assert trusted_tensor(honest[0].arrays["mask"]).tolist() == [0, -torch.inf, 0]
    assert all(report.stepped for report in liars[1])


class Signed(Remembering):
    """Changes one entry of the mask differently in each group."""

    def __init__(self, changes: list[float]) -> None:
        super().__init__(Masked)
        self._changes = changes

    def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        vector = super().gradient(arrays, task, context, config)
        vector[2] = self._changes[task.group] if task.round == 2 else 0
        return vector


@pytest.mark.parametrize(("changes", "steps"), [([torch.inf, -torch.inf], False), ([torch.inf, 1.0], True)], ids=str)
def test_infinite_changes_that_cancel_make_no_nan(
    changes: list[float], steps: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "flwr"):
        result, reports = train(exact_config(), client=Signed(changes), model=initial_model(Masked), rounds=3)
    assert [report.stepped for report in reports] == [True, steps, True]
    assert not any(trusted_tensor(array).isnan().any() for array in result.arrays.values())
    assert ("No step in round 2: the sum of the groups' gradients holds NaN or inf" in caplog.text) != steps


class Unmasked(nn.Module):
    """A model whose mask becomes finite again."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(7, 1)
        self.mask: Tensor
        self.register_buffer("mask", torch.full((2,), -torch.inf))

    def forward(self, inputs: Tensor) -> Tensor:
        self.mask[0] = 0.0
        found: Tensor = self.last(inputs)
        return found


def test_buffers_can_not_become_finite_again() -> None:
    """No change can express that, because infinity minus infinity is NaN."""
    model, config = initial_model(Unmasked), exact_config(mode="update")
    strategy = SolonStrategy(config, partial(torch.optim.SGD, lr=1.0), buffers=("mask",))
    grid = InProcessGrid(Regression(Unmasked).client_app(), 14)
    with pytest.raises(GroupFailedError, match="the training has diverged"):
        strategy.start(grid, record_of(model), 2, 5.0, ConfigRecord({"lr": 0.1}))


def test_float64_is_refused_before_the_first_round() -> None:
    model = initial_model().double()
    with pytest.raises(ConfigurationError, match=r"code='exact' takes float32.*got a float64 entry; make .*fourier"):
        train(exact_config(), model=model)


def test_digests_exclude_what_does_not_match_them_and_believe_nothing_beside_it() -> None:
    config = exact_config(verification="digest", num_nodes=10)
    _, reports = run([attack_mod(BitFlip(), {0, 1, 6})], config=config)
    for report in reports:
        assert report.different_nodes == (1, 2, 7)
        for group in report.groups:
            assert group.status == DecodeStatus.CORRECTED
            assert not group.losses.keys() & {1, 2, 7}
