"""A referee settles what the nodes' shares don't: one honest node per group is enough."""

from functools import cache
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import SolonConfig
from solon_fl.task import SolonTask
from tests.strategies.lies import LIES, named, play, quarantined, questions, refereed, silent

ROUNDS = 4


@cache
def honest_model(num_groups: int = 1, rounds: int = ROUNDS) -> Tensor:
    """The model of a run without liars or a referee. It does not depend on the code."""
    config = SolonConfig(num_nodes=num_groups, byzantine=0, compression=1, code="exact", batches_per_group=2)
    return play(config, rounds=rounds)[0]


def check(model: Tensor, expected: Tensor, code: str) -> None:
    """Compare bit for bit with the exact code, otherwise up to float rounding."""
    if code == "exact":
        assert torch.equal(model, expected)
    torch.testing.assert_close(model, expected, rtol=1e-5, atol=1e-6)


@st.composite
def crowds(draw: st.DrawFn) -> tuple[SolonConfig, dict[int, str], dict[int, int], set[int]]:
    """Return a config, how each liar lies, from which round on, and which nodes are silent."""
    verification = draw(st.sampled_from(["algebra", "digest"]))
    s, k, e = draw(st.integers(0, 4)), draw(st.integers(1, 4)), draw(st.sampled_from([0, 0, 0, 1]))
    groups = draw(st.integers(1, 2))
    size = (max(s + 1, k) if verification == "digest" else s + k) + e
    config = refereed(
        num_nodes=groups * size,
        byzantine=s,
        compression=k,
        stragglers=e,
        code=draw(st.sampled_from(["exact", "fourier"])),
        verification=verification,
        redundancy=draw(st.sampled_from(["full", "reactive"])),
    )
    kinds, since, missing = dict[int, str](), dict[int, int](), set[int]()
    for group in range(groups):
        members = draw(st.permutations(range(group * size + 1, (group + 1) * size + 1)))
        number = draw(st.integers(0, s))
        for node in members[:number]:
            kinds[node] = draw(st.sampled_from(sorted(LIES)))
            since[node] = draw(st.integers(1, 3))
        missing |= set(members[number : number + e])
    return config, kinds, since, missing


@pytest.mark.slow
@settings(max_examples=50)
@given(crowds())
def test_whatever_s_nodes_of_a_group_do_the_model_is_the_honest_one_and_no_honest_node_is_named(crowd: Any) -> None:
    config, kinds, since, missing = crowd
    model, reports, strategy = play(
        config, kinds, lambda server_round, node: server_round >= since[node], mods=[silent(missing, since=2)]
    )
    check(model, honest_model(config.num_groups), config.code)
    assert all(report.stepped and report.failed_groups == () for report in reports)
    assert named(reports) | quarantined(strategy) <= set(kinds)
    if not missing:
        assert questions(reports) <= len(kinds)


MAJORITIES: dict[str, dict[str, Any]] = {
    "all but one": {"byzantine": 5, "compression": 1},
    "all but one, digests": {"byzantine": 5, "compression": 1, "verification": "digest"},
    "all but one, digests, a fifth each": {"byzantine": 5, "compression": 5, "verification": "digest"},
    "half": {"byzantine": 3, "compression": 3},
}
PLAIN = ("reverse", "noise", "one bit", "another gradient", "one has none", "nan", "malformed")


@pytest.mark.parametrize("first_round", [1, 3])
@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("majority", MAJORITIES)
def test_a_lying_majority_is_convicted_and_changes_no_bit(majority: str, kind: str, first_round: int) -> None:
    config = refereed(**MAJORITIES[majority])
    liars = set(range(1, config.byzantine + 1))
    model, reports, strategy = play(
        config, dict.fromkeys(liars, kind), lambda server_round, node: server_round >= first_round
    )
    assert torch.equal(model, honest_model())
    assert questions(reports) <= 1, "all lie at once, and never again"
    assert named(reports[: first_round - 1]) == set()
    assert named(reports[:first_round]) == quarantined(strategy) == liars


@pytest.mark.parametrize("kind", [*PLAIN, "nearly the gradient", "shuffled digests"])
@pytest.mark.parametrize("code", ["exact", "fourier"])
@pytest.mark.parametrize("majority", MAJORITIES)
def test_who_lies_in_turn_makes_the_referee_work_once_each(majority: str, code: str, kind: str) -> None:
    """The fewest nodes are left for the last liar: two with digests and k = 5, which send the shares of five places."""
    config = refereed(code=code, **MAJORITIES[majority])
    liars = set(range(1, config.byzantine + 1))
    rounds = config.byzantine + 1
    model, reports, strategy = play(
        config, dict.fromkeys(liars, kind), lambda server_round, node: server_round == node, rounds=rounds
    )
    check(model, honest_model(rounds=rounds), code)
    assert questions(reports) <= len(liars)
    assert reports[-1].failed_groups == reports[-1].convicted_nodes == ()
    assert quarantined(strategy) == named(reports) <= liars
    if kind in ("reverse", "noise", "another gradient", "nan", "malformed") or (
        code == "exact" and kind in ("one bit", "nearly the gradient")
    ):
        assert named(reports) == liars, "the others pass for noise, or are drowned out"


@pytest.mark.parametrize("kind", ["nan", "malformed"])
def test_garbage_that_does_no_harm_makes_the_referee_work_no_more_than_once(kind: str) -> None:
    """The others are enough with digests, and if one node may be missing. Nevertheless, s decreases."""
    for changes in ({"byzantine": 1, "compression": 1, "verification": "digest"}, {"compression": 2, "stragglers": 1}):
        config = refereed(code="fourier", **changes)
        _, reports, strategy = play(config, {1: kind})
        assert quarantined(strategy) == {1}
        assert questions(reports) <= 1
        assert reports[-1].failed_groups == ()
    assert [record.garbled for record in strategy.ledger.values()] == [1, 0, 0, 0, 0]


def test_who_lies_once_is_convicted_for_good() -> None:
    model, reports, strategy = play(refereed(), {2: "reverse"}, lambda server_round, node: server_round == 2)
    assert torch.equal(model, honest_model())
    assert [report.convicted_nodes for report in reports] == [(), (2,), (), ()]
    assert [report.groups[0].nodes for report in reports[2:]] == 2 * [(1, None, 3, 4, 5)]
    assert [record.convicted for record in strategy.ledger.values()] == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("verification", ["algebra", "digest"])
def test_who_fails_or_is_silent_keeps_its_place_and_costs_a_question_in_each_such_round(verification: Any) -> None:
    """An honest node may fail, so s stays the same, and the nodes that are left are not enough to be sure."""

    def failing(message: Message, context: Context, call_next: Any) -> Message:
        if context.node_id == 1 and SolonTask.from_message(message).round < ROUNDS:
            raise MemoryError("out of memory")
        reply: Message = call_next(message, context)
        return reply

    config = refereed(compression=2, verification=verification)
    for mod, last in ((failing, 0), (silent({1}), 1)):
        model, reports, _ = play(config, mods=[mod])
        assert torch.equal(model, honest_model())
        assert [asked.reason for report in reports for asked in report.referee_reports.values()] == (
            (ROUNDS - 1 + last) * ["shares missing"]
        )
        assert all(report.convicted_nodes == () for report in reports)
