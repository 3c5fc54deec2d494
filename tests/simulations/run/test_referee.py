"""Simulated runs with a referee: smaller groups, the same bits, and convictions."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context

from solon_fl.clients import Batch
from solon_fl.config import SolonConfig
from solon_fl.simulations import ATTACKS, STRATEGIES, Outcome
from solon_fl.simulations.run import ImageClient
from solon_fl.simulations.run.tables import offences_table
from solon_fl.strategies import GroupReport, RefereeReport, RoundReport
from solon_fl.strategies.reports import Asked
from tests.simulations.run.small import run

SMALL = SolonConfig(num_nodes=10, byzantine=2, compression=3, code="exact", referee=True)
ONE_IS_HONEST = SolonConfig(num_nodes=6, byzantine=5, compression=5, code="exact", verification="digest", referee=True)
KINDS: dict[str, SolonConfig] = {
    "algebra": SMALL,
    "one is honest": ONE_IS_HONEST,
    "local steps": replace(SMALL, mode="update"),
    "patches": replace(SMALL, downlink="delta"),
    "regrouped": replace(SMALL, regroup="round"),
}
NEVER_CONVICTED = (
    "crash",
    "late",
    "silent",
)  # an honest node may do the same because of the network or a program error


@lru_cache
def honest(kind: str) -> Outcome:
    return run(config=KINDS[kind])


@pytest.fixture(autouse=True, scope="module")
def _data() -> None:
    """Load the data before tests are timed."""
    honest("algebra")


def bits(outcome: Outcome) -> list[str]:
    return [record.model_sha256 for record in outcome.records]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_changes_a_bit_in_groups_of_s_and_k(attack: str) -> None:
    assert (SMALL.group_size, SMALL.num_groups) == (5, 2)
    outcome = run(config=SMALL, attack=attack)
    assert bits(outcome) == bits(honest("algebra"))
    assert set(outcome.offences) == outcome.liars
    assert outcome.convicted == (frozenset() if attack in NEVER_CONVICTED else outcome.liars)
    assert outcome.referee_computations == (8 if attack in NEVER_CONVICTED else 2)


@pytest.mark.parametrize("attack", ["reverse", "label-flip"])
@pytest.mark.parametrize("kind", KINDS)
def test_liars_are_convicted_in_the_round_in_which_they_first_lie(kind: str, attack: str) -> None:
    outcome = run(config=KINDS[kind], attack=attack, attack_from=2)
    assert bits(outcome) == bits(honest(kind))
    assert [set(report.convicted_nodes) for report in outcome.reports] == [set(), outcome.liars, set(), set()]
    assert len(outcome.liars) == (2 if kind == "regrouped" else 2 * SMALL.byzantine if kind != "one is honest" else 5)
    groups = {number for number, group in enumerate(outcome.reports[1].groups) if group.referee}
    assert outcome.reports[1].referee_computations == len(groups) == outcome.referee_computations
    assert {report.reason for report in outcome.reports[1].referee_reports} == {"shares disagree"}
    assert outcome.reports[0].nodes_asked == KINDS[kind].num_nodes
    assert outcome.reports[2].nodes_asked == KINDS[kind].num_nodes - len(outcome.liars)


@pytest.mark.parametrize("compression", [1, 5, 6], ids=["two s are more than r", "no liar by algebra", "no checks"])
def test_near_codewords_exist_in_groups_of_any_size(compression: int) -> None:
    config = ONE_IS_HONEST if compression > 1 else replace(ONE_IS_HONEST, verification="algebra", compression=1)
    outcome = run(config=replace(config, compression=compression), attack="near-codeword", rounds=1)
    assert outcome.convicted == outcome.liars, "its nodes lie and do not crash"


def test_before_their_round_liars_are_honest_to_the_bit() -> None:
    config = SolonConfig(num_nodes=14, byzantine=2, compression=3, code="exact")
    late = run(config=config, strategy="fedavg", attack="reverse", attack_from=3)
    never = run(config=config, strategy="fedavg")
    assert [a == b for a, b in zip(bits(late), bits(never), strict=True)] == [True, True, True, False, False]


def test_local_steps_of_the_first_round_are_all_of_them() -> None:
    """The referee computes one batch before the first round. That must not count as the group's change."""
    outcome = run(config=KINDS["local steps"], attack="reverse")
    assert outcome.referee_computations == 2
    assert bits(outcome) == bits(honest("local steps"))


def test_the_referee_computes_every_batch_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seconds are those of a separate machine, even if the nodes share their results."""
    computed: list[ImageClient] = []
    batch_loss = ImageClient.batch_loss

    def counting(self: ImageClient, model: Any, batch: Batch, context: Context) -> Any:
        computed.append(self)
        return batch_loss(self, model, batch, context)

    monkeypatch.setattr(ImageClient, "batch_loss", counting)
    run(config=ONE_IS_HONEST, attack="reverse", rounds=2)
    by_client = [computed.count(client) for client in dict.fromkeys(computed)]
    assert by_client == [1 + 6, 2 * 6], "the referee, which is tried out before the first round, and all nodes"


def test_an_audit_of_honest_nodes_computes_and_convicts_nobody() -> None:
    outcome = run(config=replace(SMALL, audit=1.0), rounds=3)
    assert bits(outcome) == bits(honest("algebra"))[:4]
    assert [report.referee_computations for report in outcome.reports] == [2, 2, 2]
    assert {referee.reason for report in outcome.reports for referee in report.referee_reports} == {"audit"}
    assert (outcome.convicted, outcome.offences) == (frozenset(), {})
    assert outcome.batches_of_all == SMALL.group_size * (10 + 2)


def test_without_a_referee_nobody_is_asked() -> None:
    outcome = run(config=SolonConfig(num_nodes=14, byzantine=2, compression=3), attack="reverse", rounds=1)
    assert (outcome.has_referee, outcome.referee_computations, outcome.convicted) == (False, 0, frozenset())
    fedavg = run(config=SMALL, strategy="fedavg", rounds=1)
    assert not fedavg.has_referee, "it ignores the config's referee"


# What is saved


def test_the_file_says_whom_the_referee_convicted_and_why(tmp_path: Path) -> None:
    outcome = run(config=ONE_IS_HONEST, attack="reverse", rounds=2)
    outcome.save(tmp_path / "rounds.jsonl")
    head, _, first, second, summary = map(json.loads, (tmp_path / "rounds.jsonl").read_text().splitlines())
    (group,) = first["report"]["groups"]
    assert (group["referee"]["reason"], group["referee"]["answered"]) == ("shares disagree", True)
    assert group["referee"]["convicted"] == head["liars"] == summary["convicted"]
    assert group["referee"]["seconds"] > 0
    assert second["report"]["groups"][0]["referee"] is None
    assert summary["referee_computations"] == 1
    assert first["model_sha256"] == outcome.records[1].model_sha256 != second["model_sha256"]
    assert second["model_sha256"] == outcome.model_sha256
    assert Outcome.load(tmp_path / "rounds.jsonl") == outcome


def test_convicted_nodes_are_named_so_in_the_table() -> None:
    """With an exact code, the shares only show that bits differ. The referee decides which are right."""
    outcome = run(config=ONE_IS_HONEST, attack="reverse", rounds=1)
    named = dict(zip(*(offences_table(outcome).columns[column].cells for column in (0, 4)), strict=True))
    assert {as_ for number, as_ in named.items() if int(str(number)) < 5} == {"lying, convicted"}
    assert named["5"] == "other bits, convicted"


def test_what_the_server_takes_is_without_the_referee() -> None:
    outcome = run(config=ONE_IS_HONEST, attack="reverse", rounds=1)
    (report,) = outcome.reports
    (referee,) = report.referee_reports
    slow = replace(report, seconds_aggregating=referee.seconds + 2.0, seconds_stepping=0.5)
    assert slow.server_seconds == pytest.approx(2.5)
    assert replace(slow, seconds_aggregating=0.0).server_seconds == 0.5, (
        "if the referee's seconds were not part of them"
    )


def report_of(silent: tuple[int, ...], reason: Asked | None, *, status: str = "clean") -> RoundReport:
    group = GroupReport(
        group=0,
        nodes=(1, 2, 3),
        status=status,
        corrupt_nodes=(),
        silent_nodes=silent,
        malformed_nodes={},
        residual=0.0,
        tolerance=0.0,
        error_bound=0.0,
        referee=None if reason is None else RefereeReport(reason=reason, answered=True),
    )
    return RoundReport(
        round=1,
        groups=(group,),
        stepped=True,
        bytes_out=0,
        bytes_in=0,
        seconds_waiting=0.0,
        seconds_aggregating=0.0,
        seconds_stepping=0.0,
    )


@pytest.mark.parametrize(
    ("silent", "reason", "waited"),
    [
        ((3,), "shares missing", True),
        ((3,), "shares disagree", True),
        ((3,), "unclear which parameters have gradients", True),
        ((3,), "audit", False),  # the group was decoded without the slow one
        ((3,), "suspects", False),
        ((), "shares disagree", False),
        ((3,), None, False),
    ],
)
def test_where_shares_do_not_settle_it_silent_nodes_were_waited_for(
    silent: tuple[int, ...], reason: Asked | None, waited: bool
) -> None:
    assert STRATEGIES["solon-referee"].waited(report_of(silent, reason)) == waited


def test_nodes_that_are_always_silent_are_waited_for_three_times() -> None:
    outcome = run(config=SMALL, attack="silent", rounds=6, attack_from=2)
    assert [record.waited for record in outcome.records] == [False, False, True, True, True, False, False]
    assert [report.referee_computations for report in outcome.reports] == [0, 2, 2, 2, 2, 2]


# As separate strategies


@pytest.mark.parametrize("strategy", ["solon-referee", "solon-referee-digest"])
def test_strategies_with_a_referee_have_one(strategy: str) -> None:
    config = SolonConfig(num_nodes=7, byzantine=2, compression=3, code="exact")
    outcome = run(config=config, strategy=strategy, attack="other-gradient", rounds=2)
    assert outcome.scenario.config.group_size == 7, "the size that the scenario gives"
    assert outcome.has_referee
    assert outcome.error is None
    assert set(outcome.offences) == outcome.liars
