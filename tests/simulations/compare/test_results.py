import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import Outcome, RoundRecord, Scenario, simulate
from solon_fl.simulations.compare import Cell, Comparison, Results, run_comparison, running
from tests.simulations.compare import handmade
from tests.simulations.compare.handmade import SLOW, cell

COMPARISON = Comparison(
    title="t",
    strategies=("solon", "fedavg"),
    attacks=(None, "reverse"),
    batch_seconds=0.5,
    scenario=Scenario(
        config=SolonConfig(num_nodes=7, byzantine=2, compression=3), model="logistic", rounds=2, batch_size=8
    ),
)
NAMES = ["solon-none", "fedavg-none", "solon-reverse", "fedavg-reverse"]


def run_all(folder: Path, comparison: Comparison = COMPARISON, **arguments: Any) -> Results:
    *_, last = run_comparison(comparison, folder, **arguments)
    return last


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def curves(results: Results) -> list[list[float]]:
    return [cell.accuracies for cell in results.cells]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Scenario]:
    """Every scenario that is run from now on."""
    run: list[Scenario] = []

    def counting(scenario: Scenario, on_round: Callable[[RoundRecord], None] | None = None) -> Outcome:
        run.append(scenario)
        return simulate(scenario, on_round)

    monkeypatch.setattr(running, "simulate", counting)
    return run


# Verdicts


@pytest.mark.parametrize(
    ("final", "verdict"),
    [
        (0.90, "survived"),
        (0.80, "survived"),
        (0.78, "survived"),  # exactly two points, whatever floats make of 0.8 - 0.78
        (0.779, "harmed"),
        (0.45, "harmed"),  # half of what training gained
        (0.449, "broken"),
        (0.1, "broken"),
    ],
)
def test_a_verdict_compares_with_the_same_strategy_without_attack(final: float, verdict: str) -> None:
    attacked = cell("solon", "alie", [0.1, final])
    results = handmade.results(cell("fedavg", None, [0.1, 0.99]), cell("solon", None, [0.1, 0.8]), attacked)
    assert results.verdict(attacked) == verdict


def test_without_an_attack_there_is_no_verdict_unless_the_run_broke_off() -> None:
    honest = cell("krum", None, [0.1, 0.3])
    aborted = cell("bulyan", None, [0.1, 0.3], error="oh")
    results = handmade.results(cell("fedavg", None, [0.1, 0.8]), honest, aborted)
    assert results.verdict(honest) is None
    assert results.verdict(aborted) == "broken"


def test_a_strategy_that_was_not_run_without_attack_is_compared_with_averaging() -> None:
    attacked = cell("multikrum", "alie", [0.1, 0.5])
    results = handmade.results(cell("solon", None, [0.1, 0.5]), cell("fedavg", None, [0.1, 0.8]), attacked)
    assert results.verdict(attacked) == "harmed"


def test_without_averaging_the_first_strategy_is_what_is_compared_with() -> None:
    attacked = cell("multikrum", "alie", [0.1, 0.5])
    results = handmade.results(cell("solon", None, [0.1, 0.51]), cell("signum", None, [0.1, 0.9]), attacked)
    assert results.reference == results.cells[0]
    assert results.target_accuracy == pytest.approx(0.95 * 0.51)
    assert results.verdict(attacked) == "survived"


def test_where_there_is_nothing_to_lose_there_is_no_verdict() -> None:
    attacked, aborted = cell("solon", "alie", [0.1, 0.1]), cell("fedavg", "alie", [0.1], error="oh")
    for results in (
        handmade.results(attacked, aborted),
        handmade.results(cell("fedavg", None, [0.1, 0.1]), attacked, aborted),
        handmade.results(cell("fedavg", None, [0.1, 0.05]), attacked, aborted),
    ):
        assert results.verdict(attacked) is None
        assert results.verdict(aborted) == "broken"
    assert handmade.results(attacked).target_accuracy is None


def test_a_loss_of_less_than_two_points_is_none_however_little_is_learnt() -> None:
    attacked = cell("solon", "alie", [0.1, 0.104])
    assert handmade.results(cell("fedavg", None, [0.1, 0.11]), attacked).verdict(attacked) == "survived"


def test_what_could_not_be_run_has_no_verdict() -> None:
    refused = Cell("solon", "alie", refusal="too few nodes")
    assert handmade.results(cell("fedavg", None, [0.1, 0.8]), refused).verdict(refused) is None


def test_a_run_that_broke_off_is_broken_however_far_it_got() -> None:
    aborted = cell("solon", "alie", [0.1, 0.9], error="ValueError: no")
    assert handmade.results(cell("fedavg", None, [0.1, 0.8]), aborted).verdict(aborted) == "broken"


# Numbers by hand


def test_rounds_and_seconds_to_an_accuracy() -> None:
    run = cell("solon", None, [0.1, 0.4, 0.3, 0.6], waited=[2])
    assert [run.rounds_to(accuracy) for accuracy in (0.05, 0.1, 0.35, 0.4, 0.5, 0.7)] == [0, 0, 1, 1, 3, None]
    # A round: 3 batches of 0.5 s; latency twice 0.5 s; 2 MB out, each node's 0.2 MB at 0.8 Mbit/s (the server's 2 MB
    # take as long); 1 MB back at the same rate; 0.25 s of the server. Round 2 also has the deadline of 30 s.
    usual = 1.5 + 1.0 + 2.0 + 1.0 + 0.25
    assert run.clock(SLOW, 0.5) == pytest.approx([0.0, usual, 2 * usual + 30, 3 * usual + 30])
    assert [parts.waiting for parts in run.round_times(SLOW, 0.5)] == [0.0, 30.0, 0.0]
    assert run.seconds_to(0.05, SLOW, 0.5) == 0.0
    assert run.seconds_to(0.5, SLOW, 0.5) == pytest.approx(3 * usual + 30)
    assert run.seconds_to(0.7, SLOW, 0.5) is None


def test_nodes_that_are_asked_after_all_compute_after_the_others() -> None:
    run = cell("solon-reactive", None, [0.1, 0.4, 0.5], escalated=[2])
    assert [parts.computation for parts in run.round_times(SLOW, 0.5)] == [1.5, 3.0]
    assert run.batches_of_all == 30


def test_a_referee_computes_after_the_nodes_and_counts_as_one_more() -> None:
    run = cell("solon-referee", "alie", [0.1, 0.4, 0.5], refereed=[2])
    first, second = run.round_times(SLOW, 0.5)
    assert [(parts.computation, parts.referee) for parts in (first, second)] == [(1.5, 0.0), (1.5, 1.5)]
    assert first.server == pytest.approx(0.25)
    assert second.server == pytest.approx(0.10), "its own seconds do not count as the server's"
    assert run.mean_round(SLOW, 0.5) == pytest.approx((first.total + second.total) / 2)
    assert run.batches_of_all == 3 * (10 + 0.5)
    assert (run.nodes_asked, run.referee_computations, run.has_referee) == (10, 1, True)
    assert cell("solon", None, [0.1]).mean_round(SLOW, 0.5) is None


def test_what_a_cell_tells() -> None:
    run = cell("solon", "alie", [0.1, 0.4], liars=[3, 4], named=[4, 5])
    assert (run.liars, run.named, run.error) == ({3, 4}, {4, 5}, None)
    assert (run.bytes_out, run.bytes_sent, run.batches_per_node) == (2e6, 1e6, 3)
    assert run.server_seconds == pytest.approx(0.25)


def test_a_run_that_could_not_be_tells_nothing() -> None:
    refused = Cell("solon", "alie", refusal="no")
    assert (refused.records, refused.accuracies, refused.liars, refused.named) == ((), [], set(), set())
    assert (refused.bytes_out, refused.timings_scatter) == (0, False)
    assert (refused.bytes_sent, refused.server_seconds, refused.batches_per_node, refused.error) == (0, 0, 0, None)
    assert (refused.nodes_asked, refused.referee_computations, refused.has_referee) == (0, 0, False)
    assert refused.rounds_to(0.0) is None


# Running and resuming


@pytest.mark.slow
def test_results_grow_cell_by_cell_and_are_not_made_twice(tmp_path: Path, runs: list[Scenario]) -> None:
    steps = list(run_comparison(COMPARISON, tmp_path))
    assert [len(results.cells) for results in steps] == [1, 2, 3, 4]
    first = steps[-1]
    assert [(c.strategy, c.attack) for c in first.cells] == [
        *(("solon", None), ("fedavg", None)),
        *(("solon", "reverse"), ("fedavg", "reverse")),
    ]
    assert len(runs) == 4
    assert sorted(name.rpartition("-")[0] for name in files(tmp_path)) == sorted(NAMES)
    before = files(tmp_path)
    seen: list[object] = []
    again = run_all(tmp_path, on_cell=seen.append)
    assert len(runs) == 4
    assert again.cells == first.cells == tuple(seen)
    assert files(tmp_path) == before


@pytest.mark.slow
def test_a_changed_setting_is_run_anew_and_the_old_files_stay(tmp_path: Path, runs: list[Scenario]) -> None:
    run_all(tmp_path)
    before = files(tmp_path)
    changed: list[dict[str, Any]] = [
        {"rounds": 1},
        {"learning_rate": 0.01},
        {"config": replace(COMPARISON.scenario.config, seed=1)},
        {"num_liars": 1},
    ]
    for number, changes in enumerate(changed, start=2):
        run_all(tmp_path, replace(COMPARISON, scenario=replace(COMPARISON.scenario, **changes)))
        assert len(runs) == len(files(tmp_path)) == 4 * number
    assert before.items() <= files(tmp_path).items()
    # Networks, target and title do not change the runs.
    run_all(tmp_path, replace(COMPARISON, title="other", networks=(SLOW,), target_accuracy=0.5, batch_seconds=2.0))
    assert len(runs) == 20


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path: Path, runs: list[Scenario]) -> None:
    finished: list[Results] = []

    def on_cell(cell: Cell | Scenario) -> Callable[[RoundRecord], None]:
        def on_round(record: RoundRecord) -> None:
            if len(runs) == 3 and record.round == 1:
                raise KeyboardInterrupt("in the third run")

        return on_round

    with pytest.raises(KeyboardInterrupt, match="stopped in round 2 of 2"):  # noqa: PT012  # results before it count
        for results in run_comparison(COMPARISON, tmp_path / "stopped", on_cell):
            finished.append(results)  # noqa: PERF402
    assert len(finished[-1].cells) == 2
    assert sorted(name.rpartition("-")[0] for name in files(tmp_path / "stopped")) == sorted(NAMES[:2])
    gone_on = run_all(tmp_path / "stopped")
    assert len(runs) == 3 + 2
    assert curves(gone_on) == curves(run_all(tmp_path / "whole"))
    assert files(tmp_path / "stopped").keys() == files(tmp_path / "whole").keys()


@pytest.mark.slow
def test_runs_made_at_the_same_time_are_the_same_and_stop_together(tmp_path: Path) -> None:
    finished: list[Results] = []

    def on_cell(cell: Cell | Scenario) -> Callable[[RoundRecord], None]:
        def on_round(record: RoundRecord) -> None:
            if finished:
                raise KeyboardInterrupt("after a run")

        return on_round

    long = replace(COMPARISON, scenario=replace(COMPARISON.scenario, rounds=6))
    with pytest.raises(KeyboardInterrupt, match="after a run"):  # noqa: PT012  # results before it count
        for results in run_comparison(long, tmp_path / "at once", on_cell, processes=2):
            finished.append(results)  # noqa: PERF402
    assert not multiprocessing.active_children()
    gone_on = run_all(tmp_path / "at once", long)
    assert curves(gone_on) == curves(run_all(tmp_path / "one by one", long))
    made = {(cell.strategy, cell.attack): cell.accuracies for cell in finished[-1].cells}
    assert len(made) == 1
    assert made.items() <= {(cell.strategy, cell.attack): cell.accuracies for cell in gone_on.cells}.items()


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "\n".join(text.splitlines()[:-1]),
        lambda text: "\n".join(text.splitlines()[1:]),
        lambda text: "3\n" + text,
        lambda text: "\xff",
    ],
    ids=["empty", "half", "no end", "no beginning", "a number", "no text"],
)
def test_a_damaged_file_is_put_aside_and_its_run_made_again(
    damage: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = run_all(tmp_path)
    path = next(tmp_path.glob("fedavg-none-*.jsonl"))
    path.write_text(damage(path.read_text()), encoding="latin-1")
    after = run_all(tmp_path)
    assert f"{path} does not hold a finished run. It was renamed to {path.stem}.damaged, and the run is" in caplog.text
    assert [cell.accuracies for cell in after.cells] == [cell.accuracies for cell in before.cells]
    assert path.with_suffix(".damaged").exists()


@pytest.mark.slow
def test_seconds_per_batch_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = replace(COMPARISON, batch_seconds=None, strategies=("fedavg",), attacks=(None,))
    first = run_all(tmp_path, measured)
    assert 0 < first.batch_seconds < 10
    monkeypatch.setattr(running, "measure_batch_seconds", lambda scenario: pytest.fail("measured again"))
    assert run_all(tmp_path, measured).batch_seconds == first.batch_seconds
    path = next(tmp_path.glob("batch-seconds-*.json"))
    for damaged in ("", "[]", '"x"'):
        path.write_text(damaged)
        with pytest.raises(
            ConfigurationError, match=f"{path.name} must hold the seconds of a batch; .*; delete the file"
        ):
            run_all(tmp_path, measured)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_accuracies(tmp_path: Path) -> None:
    first, second = run_all(tmp_path / "first"), run_all(tmp_path / "second")
    assert curves(first) == curves(second)
    other = replace(
        COMPARISON, scenario=replace(COMPARISON.scenario, config=replace(COMPARISON.scenario.config, seed=9))
    )
    assert curves(run_all(tmp_path / "other", other)) != curves(first)


@pytest.mark.slow
def test_what_is_impossible_or_breaks_off_leaves_the_others_alone(tmp_path: Path) -> None:
    comparison = replace(COMPARISON, strategies=("bulyan", "fedavg", "solon"), attacks=(None, "malformed"))
    told: list[Cell | Scenario] = []

    def on_cell(cell: Cell | Scenario) -> None:
        told.append(cell)

    results = run_all(tmp_path, comparison, on_cell=on_cell)
    verdicts = [results.verdict(cell) for cell in results.cells]
    assert verdicts == [None, None, None, None, "broken", "survived"]
    for number in (0, 3):
        assert "Bulyan needs at least 11 nodes for 2 liars; got num_nodes=7" in str(results.cells[number].refusal)
        assert results.cells[number] in told
    assert results.cells[4].error
    assert len(results.cells[4].accuracies) == 1
    assert [name.partition("-")[0] for name in sorted(files(tmp_path))] == ["fedavg", "fedavg", "solon", "solon"]
    for text in files(tmp_path).values():
        assert all(json.loads(line) for line in text.splitlines())


def test_a_run_is_doubted_that_took_far_longer_than_another_of_the_same_strategy() -> None:
    cells = [
        handmade.cell(strategy, attack, [0.1] * 3, aggregating=[seconds] * 2)
        for strategy in ("bulyan", "solon")
        for attack, seconds in ((None, 0.10), ("alie", 0.24), ("foe", 0.95))
    ]
    doubts = {(c.strategy, c.attack): c.timing_doubts for c in handmade.results(*cells).cells}
    slow = doubts.pop(("bulyan", "foe"))
    assert slow == ("the server took 6.7 times as long as in another run of this strategy",)
    assert set(doubts.values()) == {()}, "decoding lies takes longer, and a factor of 2 may be chance"
