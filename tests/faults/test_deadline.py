"""Honest replies count until the deadline, under every option. The clock only moves while the server waits."""

import math
from collections.abc import Iterable

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message

from solon_fl.simulations import InProcessGrid
from solon_fl.strategies import RoundReport, SolonStrategy, exchange, loop
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.patience import FLOOR
from solon_fl.strategies.solon_run import SolonRun
from tests.faults.matrix import OPTIONS
from tests.support import REMEMBERING, SGD, Regression, initial_model, record_of, small_config, train, vector_of

DEADLINE = 60.0
FAST = frozenset({4, 11})  # ids; all other nodes are slow, and every group needs some of them
ROUNDS = 3


class Clock:
    """Replaces the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SlowGrid(InProcessGrid):
    """The slow nodes reply just before the deadline of the round, if they were asked at its beginning."""

    def __init__(self, clock: Clock, num_nodes: int) -> None:
        super().__init__(REMEMBERING.client_app(), num_nodes)
        self._clock = clock
        self._answer_at: dict[str, float] = {}
        self.slow_answers: list[tuple[int, float]] = []  # node, time

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        message_ids = list(super().push_messages(kept))
        for message_id, message in zip(message_ids, kept, strict=True):
            slow = message.metadata.dst_node_id not in FAST
            self._answer_at[message_id] = self._clock.now + (DEADLINE - 1e-6 if slow else 0.0)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        due = [i for i in message_ids if self._clock.now >= self._answer_at.get(i, math.inf)]
        replies = list(super().pull_messages(due))
        self.slow_answers += [
            (r.metadata.src_node_id, self._clock.now) for r in replies if r.metadata.src_node_id not in FAST
        ]
        return replies


@pytest.mark.parametrize("option", OPTIONS)
def test_the_truth_just_before_the_deadline_is_used_and_no_offence(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(**OPTIONS[option])
    clock = Clock()
    monkeypatch.setattr(exchange, "time", clock)
    reports: list[RoundReport] = []
    ends: list[float] = []

    def note(report: RoundReport) -> None:
        reports.append(report)
        ends.append(clock.now)

    referee = REMEMBERING if config.referee else None
    strategy = SolonStrategy(config, SGD, on_round=note, referee=referee)
    grid = SlowGrid(clock, config.num_nodes)
    result = strategy.start(grid, record_of(initial_model()), num_rounds=ROUNDS, timeout=DEADLINE)
    rounds = range(1, ROUNDS + 1)
    if config.referee:
        assert ends == pytest.approx([DEADLINE / 2 * number for number in rounds], rel=0.05), "it waits for nobody"
        assert all(report.referee_reports for report in reports)
    else:
        assert ends == pytest.approx([DEADLINE * number for number in rounds], rel=1e-6)
        assert {round(time / DEADLINE) for _, time in grid.slow_answers} == set(rounds), "it did happen"
    for report in reports:
        assert report.stepped
        assert report.failed_groups == report.corrupt_nodes == ()
        assert not report.malformed_nodes
    assert all(record.offences == record.stalled == 0 for record in strategy.ledger.values())
    honest, _ = train(config, rounds=ROUNDS, referee=referee)
    torch.testing.assert_close(vector_of(result.arrays), vector_of(honest.arrays), rtol=1e-5, atol=1e-6)


def test_an_evaluation_just_before_the_deadline_is_waited_for_once_and_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    for module in (exchange, loop):
        monkeypatch.setattr(module, "time", clock)

    class LateEvaluation(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            (message_id,) = message_ids
            metadata = self._waiting[message_id].metadata
            late = metadata.message_type == "evaluate" and metadata.dst_node_id == 3
            if late and clock.now - asked_at[metadata.group_id] < DEADLINE - 1:
                return []
            return super().pull_messages([message_id])

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            kept = list(messages)
            for message in kept:
                asked_at.setdefault(message.metadata.group_id, clock.now)
            return super().push_messages(kept)

    class Evaluating(Regression):
        def evaluate(self, model: torch.nn.Module, context: Context) -> dict[str, float]:
            return {"accuracy": 0.5}

    asked_at: dict[str, float] = {}
    strategy = SolonStrategy(small_config(), SGD, client_evaluation=True)
    grid = LateEvaluation(Evaluating().client_app(), 14)
    result = strategy.start(grid, record_of(initial_model()), num_rounds=3, timeout=DEADLINE)
    assert [metrics["accuracy"] for metrics in result.evaluate_metrics_clientapp.values()] == 3 * [0.5]
    assert FLOOR <= clock.now < 2 * FLOOR


def test_groups_that_are_asked_again_one_after_another_do_not_put_off_the_patience_of_others() -> None:
    config = small_config(num_nodes=14, redundancy="reactive")
    run = SolonRun(
        config,
        ServerModel(record_of(initial_model()), (), SGD),
        DEADLINE,
        follows_up=True,
        seed=0,
        calibrate=False,
    )
    grid = InProcessGrid(REMEMBERING.client_app(), 14)
    opened = run.open_round(1, ConfigRecord(), grid)
    opened.messages(run.model.to_record())
    for node_id in range(1, 15):
        run.patience.record(node_id, 0.1)
    assert opened.follow_up(False) == {}
    opened._asked_at[1] -= FLOOR + 1  # the second group, in which no node has replied since
    opened.receive([])
    assert {group for group, _ in opened.follow_up(False)} == {1}
