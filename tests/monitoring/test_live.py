import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import MetricRecord

from solon_fl.errors import ConfigurationError
from solon_fl.monitoring import LiveReport, RunStatus, live
from solon_fl.monitoring.history import MOST_BINS, History
from solon_fl.pages import Span
from solon_fl.strategies import NodeRecord, RoundReport
from tests.monitoring.statuses import group, report
from tests.pages.reading import Reading

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def status(*reports: RoundReport, of: int = 9, ended: bool = False, **changes: Any) -> RunStatus:
    values: dict[str, Any] = {
        "training": {each.round: each.to_metrics() for each in reports},
        "evaluation": {each.round: MetricRecord({"accuracy": 0.5, "loss": 2.0}) for each in reports},
    }
    return RunStatus(report=reports[-1], num_rounds=of, ended=ended, **{**values, **changes})


def record(node_id: int, **changes: Any) -> NodeRecord:
    return NodeRecord(**{"identity": f"id:{node_id}", "node_id": node_id, "state": "member", **changes})


def page_of(path: Path) -> tuple[str, Reading]:
    page = path.read_text(encoding="utf-8")
    found = Reading.of(page)
    found.check_self_contained()
    return page, found


def test_the_page_shows_the_model_the_nodes_and_the_ledger(tmp_path: Path) -> None:
    ledger = [
        record(1, place=(0, 0), name="ana"),
        record(2, place=(0, 1), lying=3, state="quarantined", last_offence="round 3: a lie"),
        record(3, place=(0, 2), silent=1),
        record(9, place=(0, 3)),  # has a place, but no task
    ]
    made = report(3, [group(0, [1, 2, 3, None], corrupt=[2], silent=[3])])
    LiveReport(tmp_path / "new" / "run.html", title="My run")(
        status(made, ledger={each.identity: each for each in ledger}, settings={"byzantine": 1})
    )
    page, _ = page_of(tmp_path / "new" / "run.html")
    assert "<h1>My run</h1>" in page
    assert "round 3 of 9" in page
    assert "<b>50.0 %</b><small>accuracy</small>" in page
    for kind, names in (("lying", "2"), ("silent or late", "3"), ("resting", "9"), ("quarantined", "2")):
        assert f"<strong>{kind}</strong>: {names}<" in page
    assert "4 nodes: 1 quarantined, 3 member." in page
    assert page.index('class="node">2<') < page.index('class="node">3<') < page.index(">ana</th>")
    assert "round 3: a lie" in page
    assert '<th scope="row">byzantine</th><td class="text">1</td>' in page


def test_names_and_messages_of_nodes_are_no_markup(tmp_path: Path) -> None:
    made = report(1, [group(0, malformed={2: EVIL})])
    ledger = {"a": record(2, name=EVIL, last_offence=f"round 1: {EVIL}" * 9, malformed=1)}
    evaluation = {1: MetricRecord({EVIL: 0.5})}
    LiveReport(tmp_path / "run.html", title=EVIL)(
        status(made, ledger=ledger, evaluation=evaluation, node_evaluation=evaluation, settings={EVIL: EVIL})
    )
    page, _ = page_of(tmp_path / "run.html")
    assert page.count("&lt;script&gt;") > 8
    assert len(page) < 60_000


def test_the_page_reloads_itself_until_the_run_has_ended(tmp_path: Path) -> None:
    watched = LiveReport(tmp_path / "run.html", reload_seconds=7)
    made = [report(number, [group(0)]) for number in (1, 2)]
    watched(status(made[0], of=2))
    page, found = page_of(tmp_path / "run.html")
    assert 'data-reload="7"' in page
    assert '<noscript><meta http-equiv="refresh" content="7"></noscript>' in page
    watched(status(*made, of=2, ended=True))  # written at once, although less than a second has passed
    page, found = page_of(tmp_path / "run.html")
    assert "finished" in page
    assert 'data-reload="0"' in page
    assert "noscript" not in found.elements
    LiveReport(tmp_path / "run.html")(status(*made, of=9, ended=True))
    assert "stopped by on_round" in page_of(tmp_path / "run.html")[0]


def test_pages_are_not_written_more_often_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    written: list[str] = []
    monkeypatch.setattr(live, "write_page", lambda path, html: written.append(html))
    watched = LiveReport(tmp_path / "run.html")
    made: list[RoundReport] = []
    for number in range(1, 31):
        made.append(report(number, [group(0)]))
        watched(status(*made, of=99))
        clock[0] += 0.1
    assert len(written) == 3
    assert "<b>0.1 s</b><small>per round</small>" in written[-1]


def test_after_a_checkpoint_what_was_before_is_on_the_page(tmp_path: Path) -> None:
    made = [report(number, [group(0, corrupt=[3] if number < 4 else [])]) for number in range(1, 8)]
    LiveReport(tmp_path / "run.html")(status(*made))
    page, _ = page_of(tmp_path / "run.html")
    assert "3: lying, rounds 1 to 3" in page
    assert "<b>21 MB</b><small>in all rounds</small>" in page


def test_a_run_that_breaks_off_says_why_and_one_report_watches_several(tmp_path: Path) -> None:
    watched = LiveReport(tmp_path / "run.html")
    watched.broke_off("there was no round yet")
    assert not (tmp_path / "run.html").exists()
    first = [report(number, [group(0)]) for number in (1, 2, 3)]
    for number in (1, 2, 3):
        watched(status(*first[:number]))
    watched.broke_off(EVIL)
    page, _ = page_of(tmp_path / "run.html")
    assert '<span class="state">stopped: &lt;/script&gt;' in page
    assert "round 3 of 9" in page
    assert "left at this pace" not in page
    assert 'data-reload="0"' in page
    watched.broke_off("again")  # concerns a run without rounds
    assert page == page_of(tmp_path / "run.html")[0]
    watched(status(first[0], evaluation={1: MetricRecord({"accuracy": 0.75})}))
    page, _ = page_of(tmp_path / "run.html")
    assert "<b>75.0 %</b><small>accuracy</small>" in page
    assert 'data-reload="5.0"' in page
    assert "<b>3 MB</b><small>in all rounds</small>" in page
    watched(status(first[0], evaluation={1: MetricRecord({"accuracy": 0.25})}))  # a run whose end was not reported
    assert "<b>25.0 %</b><small>accuracy</small>" in page_of(tmp_path / "run.html")[0]


def test_a_wrong_wait_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="reload_seconds must be positive; got reload_seconds=0"):
        LiveReport("run.html", reload_seconds=0)


def test_without_jinja_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "templates_are_there", lambda: False)
    with pytest.raises(ConfigurationError, match=r"pip install 'solon-fl\[report\]'"):
        LiveReport("run.html")


# The history of rounds


def test_long_runs_are_thinned_out_to_means_and_the_gravest() -> None:
    history = History()
    for number in range(1, 10_001):
        history.enter(
            number, {"a": float(number)}, {7: "silent or late", 8: "lying" if number == 5000 else "suspected"}
        )
    rounds, values = history.curve("a")
    assert MOST_BINS / 2 <= len(rounds) <= MOST_BINS
    assert (history.width, rounds[-1], history.latest("a")) == (64, 10_000, 10_000.0)
    assert (rounds[1], values[1]) == (127.0, 95.5)  # rounds 64 to 127
    assert history.row(7, "x").spans == (Span(1, 10_000, "silent or late"),)
    assert history.row(8, "x").spans[1] == Span(4992, 5055, "lying")
    assert history.gravest_nodes(1) == [8]


@pytest.mark.slow
def test_a_page_of_ten_thousand_rounds_and_a_thousand_nodes_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = range(1, 1001)
    watched = LiveReport(tmp_path / "run.html")
    ledger = {str(n): record(n, name=f"machine-{n:04}.example.org", silent=n, place=(0, n)) for n in nodes}
    for number in range(1, 301):  # a bin holds several rounds, and there are never more bins
        kinds = dict.fromkeys(nodes, "lying" if number % 2 else "silent or late")
        watched._history.enter(number, {name: float(number) for name in live.FIGURES}, kinds)
    assert all(len(kinds) <= MOST_BINS for kinds in watched._history._kinds.values())
    made = report(10_000, [group(0, nodes, silent=nodes)])
    monkeypatch.setattr(watched._history, "last", 9_999)
    watched(status(made, of=10_000, ended=True, ledger=ledger))
    page, _ = page_of(tmp_path / "run.html")
    assert len(page) < 10**6
    assert "1000 nodes: 1000 member. The 100 with the most trouble are shown." in page
    assert "970 more nodes were named" in page
