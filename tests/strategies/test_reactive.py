"""Reactive redundancy: s + k nodes of a group compute, and the others only if those disagree."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp.typing import Mod
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from solon_fl import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Alie, NotFinite, OtherGradient, RandomGaussian, Reverse, SameLie
from solon_fl.simulations.attacks.mods import MALFORMATIONS, attack_mod, malformed_mod, silent_mod
from solon_fl.strategies import Checkpoints, RoundReport, SolonStrategy
from solon_fl.task import SolonTask
from solon_fl.wire import to_array, trusted_tensor
from tests.support import SGD, Regression, initial_model, record_of, share_array, small_config, train, vector_of

LIARS = {1, 4, 8, 13}  # numbers: two of each group of seven
ROUNDS = 12


def reactive(**changes: Any) -> SolonConfig:
    return small_config(redundancy="reactive", **changes)


@pytest.fixture(scope="module")
def honest_model() -> Tensor:
    return vector_of(train(rounds=ROUNDS)[0].arrays)


def lying(mod: Mod, when: Callable[[int, int], bool]) -> Mod:
    """An attack that only happens if `when`(round, node id) is true."""

    def chosen(message: Message, context: Context, call_next: Any) -> Message:
        config = message.content["config"]
        if when(int(str(config["server-round"])), context.node_id):
            return mod(message, context, call_next)
        reply: Message = call_next(message, context)
        return reply

    return chosen


def negated() -> Mod:
    def mod(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        share = trusted_tensor(share_array(reply.content)["share"])
        reply.content["share"] = ArrayRecord({"share": to_array(-share)})
        return reply

    return mod


def escalations(reports: list[RoundReport]) -> int:
    return sum(len(report.escalated_groups) for report in reports)


def test_in_honest_rounds_s_plus_k_nodes_of_a_group_compute(honest_model: Tensor) -> None:
    result, reports = train(reactive(), rounds=ROUNDS)
    assert [report.nodes_asked for report in reports] == ROUNDS * [2 * (2 + 3)]
    assert escalations(reports) == 0
    assert all(report.bytes_out == reports[0].bytes_out for report in reports)
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-5, atol=1e-6)


def test_who_computes_is_drawn_anew_in_every_round() -> None:
    _, reports = train(reactive(), rounds=20, projection_seed=1)  # seeded: by chance a node may be drawn every time
    asked = Counter(node for report in reports for group in report.groups for node in group.nodes if node is not None)
    assert set(asked) == set(range(1, 15))
    assert max(asked.values()) < 20
    assert len({report.groups[0].nodes for report in reports}) > 10


def test_stragglers_are_allowed_for_from_the_start() -> None:
    config = reactive(num_nodes=16, stragglers=1)
    _, reports = train(config, mods=[silent_mod({0, 8})], rounds=ROUNDS, timeout=0.2)
    assert escalations(reports) == 0
    assert reports[0].nodes_asked == 2 * (2 + 3 + 1)


ATTACKS: dict[str, Mod] = {
    "reverse": attack_mod(Reverse(), LIARS),
    "alie": attack_mod(Alie(), LIARS),
    "random": attack_mod(RandomGaussian(), LIARS),
    "huge": attack_mod(Reverse(1e30), LIARS),
    "same-lie": attack_mod(SameLie(0.1), LIARS),
    "nan": attack_mod(NotFinite(), LIARS),
    **{how: malformed_mod(LIARS, how) for how in MALFORMATIONS},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_liars_are_caught_once_and_the_model_is_that_of_the_honest_run(name: str, honest_model: Tensor) -> None:
    result, reports = train(reactive(), mods=[ATTACKS[name]], rounds=ROUNDS)
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-4, atol=1e-5)
    assert all(report.stepped and report.failed_groups == () for report in reports)
    assert 1 <= escalations(reports) <= len(LIARS)
    named = Counter(node for report in reports for node in report.corrupt_nodes + report.malformed_nodes)
    assert set(named) <= {number + 1 for number in LIARS}
    assert set(named.values()) == {1}, "who was caught gets no more tasks"


RARELY: dict[str, Callable[[int, int], bool]] = {
    "in turns": lambda round_number, node: node - 1 == sorted(LIARS)[round_number % 4],
    "every fifth round": lambda round_number, node: node - 1 in LIARS and round_number % 5 == 0,
    "at random": lambda round_number, node: (
        node - 1 in LIARS and random.Random(31 * round_number + node).random() < 0.2
    ),
    "one of each group, for ever": lambda round_number, node: node - 1 in {1, 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RARELY)
def test_who_lies_rarely_costs_no_more_than_one_escalation(name: str, honest_model: Tensor) -> None:
    rounds = 4 * ROUNDS
    full = vector_of(train(rounds=rounds)[0].arrays)
    result, reports = train(reactive(), mods=[lying(negated(), RARELY[name])], rounds=rounds)
    torch.testing.assert_close(vector_of(result.arrays), full, rtol=1e-4, atol=1e-5)
    liars = {node for report in reports for node in report.corrupt_nodes}
    assert liars <= {number + 1 for number in LIARS}
    assert escalations(reports) <= len(liars)
    assert all(report.stepped for report in reports)


def test_who_is_silent_only_to_escalate_soon_rests() -> None:
    """Silence is not an offence, but silent nodes are asked last from then on: each causes at most one escalation."""
    _, reports = train(reactive(), mods=[silent_mod(LIARS)], rounds=30, timeout=0.05)
    assert all(report.stepped for report in reports)
    assert 1 <= escalations(reports) <= len(LIARS)
    assert escalations(reports[-15:]) == 0


def test_who_is_away_when_a_round_begins_rests() -> None:
    """It is asked if the others are not enough: it may be back by then."""
    asked: dict[int, list[int]] = {}

    class Away(InProcessGrid):
        def get_nodes(self) -> Iterable[NodeInfo]:
            away = {2, 5} if asked else set()
            return [NodeInfo(node_id=i, public_key=bytes([i]) * 40) for i in range(1, 15) if i not in away]

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            kept = list(messages)
            for message in kept:
                asked.setdefault(int(message.metadata.group_id), []).append(message.metadata.dst_node_id)
            return super().push_messages(kept)

    strategy = SolonStrategy(reactive(), SGD)
    strategy.start(Away(Regression().client_app(), 14), record_of(initial_model()), num_rounds=6, timeout=1)
    assert all(sorted(node for node in asked[number] if node <= 7) == [1, 3, 4, 6, 7] for number in range(2, 7))
    assert all(record.escalations == 0 for record in strategy.ledger.values())


def test_quarantine_of_liars_does_not_lower_s() -> None:
    _, reports = train(reactive(), mods=[attack_mod(Reverse(), LIARS)], rounds=ROUNDS)
    assert all(report.stepped for report in reports)
    assert reports[-1].nodes_asked == 10


def test_liars_beyond_s_fail_the_group_and_never_pass() -> None:
    result, reports = train(reactive(on_group_failure="skip"), mods=[attack_mod(RandomGaussian(), {0, 1, 2})], rounds=1)
    assert reports[0].failed_groups in ((0,), ())
    if not reports[0].failed_groups:  # not all liars were asked, and the other nodes agreed
        honest = vector_of(train(rounds=1)[0].arrays)
        torch.testing.assert_close(vector_of(result.arrays), honest, rtol=1e-4, atol=1e-5)


def test_liars_that_rested_at_first_collude_with_those_that_did_not() -> None:
    """More than s of them mislead a group, whether all nodes are asked at once or some only later."""
    mods = [attack_mod(OtherGradient(small_config().make_code()), {0, 1, 2})]
    (full, all_at_once), (late, in_two_waves) = (
        train(config, mods=mods, rounds=1, projection_seed=0) for config in (small_config(), reactive())
    )
    assert in_two_waves[0].escalated_groups == (0,)
    assert all_at_once[0].corrupt_nodes
    assert in_two_waves[0].corrupt_nodes == all_at_once[0].corrupt_nodes
    assert not set(all_at_once[0].corrupt_nodes) & {1, 2, 3}, "honest nodes are blamed"
    torch.testing.assert_close(vector_of(late.arrays), vector_of(full.arrays), rtol=1e-4, atol=1e-5)


def test_under_flowers_own_start_all_compute() -> None:
    reports: list[RoundReport] = []
    strategy = SolonStrategy(reactive(), SGD, on_round=reports.append)
    grid = InProcessGrid(Regression().client_app(), 14)
    Strategy.start(strategy, grid, record_of(initial_model()), num_rounds=2)
    assert [report.nodes_asked for report in reports] == [14, 14]


def test_a_run_that_goes_on_from_a_checkpoint_is_equal_bit_by_bit(tmp_path: Path) -> None:
    mods = [attack_mod(Reverse(), LIARS)]
    whole, _ = train(reactive(), mods=mods, rounds=8, projection_seed=3)
    for rounds in (3, 8):
        parts, _ = train(
            reactive(), mods=mods, rounds=rounds, projection_seed=3, checkpoints=Checkpoints(tmp_path, every=1)
        )
    assert torch.equal(vector_of(whole.arrays), vector_of(parts.arrays))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="redundancy must be one of full, reactive"):
        small_config(redundancy="lazy")
    assert reactive().quarantine_after == 1
    assert small_config().quarantine_after is None


class Diverging(Regression):
    """In round 2, the gradient of group 0 is not finite, or can't be computed at all, on any honest node."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        gradient = super().gradient(arrays, task, context, config)
        if (task.round, task.group) != (2, 0):
            return gradient
        if self.how == "raises":
            raise ArithmeticError("the loss is not finite")
        return gradient * float(self.how)


@pytest.mark.parametrize("how", ["nan", "inf", "raises"])
@pytest.mark.parametrize("changes", [{}, {"verification": "digest", "num_nodes": 10}], ids=["algebra", "digest"])
def test_a_round_that_fails_for_all_of_a_group_puts_nobody_in_quarantine(how: str, changes: dict[str, Any]) -> None:
    """Otherwise its honest nodes would be missing once there is a liar: here from round 3 on."""
    mod = lying(negated(), lambda round_number, node: node in (4, 5) and round_number >= 3)
    _, reports = train(reactive(**changes), client=Diverging(how), mods=[mod], rounds=ROUNDS)
    assert [report.round for report in reports if report.failed_groups] == [2]
    assert reports[1].failed_groups == (0,)
    assert {node for report in reports for node in report.corrupt_nodes} <= {4, 5}
