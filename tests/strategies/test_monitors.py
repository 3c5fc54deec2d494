import logging
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, MetricRecord

from solon_fl.errors import ConfigurationError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.strategies import Checkpoints, RunStatus, SolonStrategy
from solon_fl.strategies.monitors import Monitor, Monitors
from tests.monitoring.statuses import group, report
from tests.support import SGD, Regression, initial_model, record_of, small_config

LIARS = attack_mod(Reverse(), {1, 4, 8})


def start(strategy: SolonStrategy, rounds: int) -> None:
    strategy.start(
        InProcessGrid(Regression().client_app([LIARS]), 14),
        record_of(initial_model()),
        num_rounds=rounds,
        timeout=1,
        evaluate_fn=lambda number, arrays: MetricRecord({"accuracy": 0.1 * number}),
    )


@pytest.mark.slow
def test_monitors_are_told_of_every_round_when_it_is_evaluated_and_in_the_ledger(tmp_path: Path) -> None:
    told: list[tuple[object, ...]] = []

    def note(status: RunStatus) -> bool:
        lying = sorted(record.node_id for record in status.ledger.values() if record.lying == status.report.round)
        told.append((status.report.round, status.num_rounds, status.ended, lying, sorted(status.training)))
        assert {number: record["accuracy"] for number, record in status.evaluation.items()} == {
            number: 0.1 * number for number in range(status.report.round + 1)
        }
        assert status.settings["byzantine"] == 2
        return True  # ignored

    def strategy() -> SolonStrategy:
        return SolonStrategy(small_config(), SGD, monitors=note, checkpoints=Checkpoints(tmp_path))

    start(strategy(), 2)
    assert told == [(1, 2, False, [2, 5, 9], [1]), (2, 2, True, [2, 5, 9], [1, 2])]
    told.clear()
    start(strategy(), 3)  # it resumes, and the earlier rounds are there
    assert told == [(3, 3, True, [2, 5, 9], [1, 2, 3])]


def test_on_round_that_stops_the_run_ends_it_for_monitors() -> None:
    ended: list[bool] = []
    monitors: list[Monitor] = [lambda status: ended.append(status.ended)]
    start(SolonStrategy(small_config(), SGD, monitors=monitors, on_round=lambda report: report.round == 2), 5)
    assert ended == [False, True]


def test_a_monitor_that_fails_is_logged_once_and_disturbs_neither_the_run_nor_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    seen: list[int] = []

    def full_disk(status: RunStatus) -> None:
        if status.report.round != 3:
            raise OSError(28, "No space left on device")

    start(SolonStrategy(small_config(), SGD, monitors=[full_disk, lambda status: seen.append(status.report.round)]), 5)
    assert seen == [1, 2, 3, 4, 5]
    failures = [record.getMessage() for record in caplog.records if "Monitor" in record.getMessage()]
    assert len(failures) == 2  # from round 1 on, and from round 4 on
    assert "Monitor full_disk failed in round 1" in failures[0]
    assert "No space left on device" in failures[0]


def test_a_monitor_that_wants_to_end_the_program_does_not() -> None:
    class GivesUp:
        def __call__(self, status: RunStatus) -> None:
            raise SystemExit("the tracking tool gave up")

        def broke_off(self, why: str) -> None:
            raise SystemExit(2)

    monitors, told = (
        Monitors([GivesUp()]),
        RunStatus(report=report(1, [group(0)]), num_rounds=1, ended=True, training={}),
    )
    monitors.tell(told)
    with pytest.raises(ZeroDivisionError), monitors.watching():
        print(1 / 0)
    with pytest.raises(KeyboardInterrupt):
        Monitors(interrupted).tell(told)


def interrupted(status: RunStatus) -> None:
    raise KeyboardInterrupt


def test_who_wants_to_know_is_told_why_a_run_broke_off() -> None:
    told: list[str] = []

    class Watcher:
        def __call__(self, status: RunStatus) -> None:
            raise AssertionError("there was no round")

        def broke_off(self, why: str) -> None:
            told.append(why)

    strategy = SolonStrategy(small_config(), SGD, monitors=[print, Watcher()])
    with pytest.raises(ConfigurationError):
        strategy.start(InProcessGrid(Regression().client_app(), 14), ArrayRecord(), num_rounds=1)
    with pytest.raises(KeyboardInterrupt), Monitors(Watcher()).watching():
        raise KeyboardInterrupt
    assert [why.partition(" must")[0] for why in told] == ["ConfigurationError: the model", "interrupted"]


def test_what_is_no_callable_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="monitors must be a callable or several; got 7"):
        SolonStrategy(small_config(), SGD, monitors=[7])  # type: ignore[list-item]
