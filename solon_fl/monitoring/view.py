"""The content of the page about a run, as data for the template."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solon_fl.monitoring.history import History
from solon_fl.pages import Curve, LineChart, NodeMap
from solon_fl.strategies.ledger import NodeRecord, NodeState, namesakes
from solon_fl.strategies.monitors import RunStatus

__all__ = ["LiveView", "live_view"]

MOST_ROWS = 30  # in the map of nodes
MOST_RECORDS = 100  # of the ledger
MOST_NAMES = 20  # in a sentence
MOST_METRICS = 6  # with a chart
LONGEST_TEXT = 160  # characters of a text from a node or a file
STATES: tuple[NodeState, ...] = ("quarantined", "away", "substitute", "refused", "member", "spare")
COUNTERS = ("rounds", "lying", "malformed", "different_bits", "suspected", "silent", "late", "stalled", "convicted")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """A node in the ledger: its label, place, state, counters in the order of `COUNTERS`, and last offence."""

    label: str
    place: str
    state: str
    counts: Sequence[int]
    last_offence: str


@dataclass(frozen=True, kw_only=True)
class LiveView:
    """The content of a page about a run.

    Attributes
    ----------
    title : str
        The heading.
    state : str
        Whether the run trains, or why it does not, in words.
    progress : (int, int or None)
        The current round, and the number of rounds.
    tiles : sequence of (str, str)
        Figures, each with its description.
    now : sequence of (str, str)
        Kinds of nodes in the latest round, each with the nodes' names.
    charts : sequence of LineChart
        Charts over the rounds.
    nodes : NodeMap or None
        The rounds in which nodes were named; None if none ever was.
    ledger : sequence of LedgerRow
        The nodes of the ledger, those with the most trouble first.
    ledger_note : str
        The number of nodes in each state, and whether some are not shown.
    settings : mapping
        The strategy's settings.
    """

    title: str
    state: str
    progress: tuple[int, int | None]
    tiles: Sequence[tuple[str, str]]
    now: Sequence[tuple[str, str]]
    charts: Sequence[LineChart]
    nodes: NodeMap | None
    ledger: Sequence[LedgerRow]
    ledger_note: str
    settings: Mapping[str, Any]

    counters = COUNTERS


def live_view(
    status: RunStatus, history: History, title: str, all_bytes: float, seconds_a_round: float | None, why: str = ""
) -> LiveView:
    """Return the page's content after a round or, if there is a reason `why`, after an exception ended the run."""
    report, of = status.report, status.num_rounds
    state = "training" if not status.ended else "finished" if report.round == of else "stopped by on_round"
    if why:
        state = f"stopped: {_cut(why)}"
    labels = _labels(status.ledger.values())
    return LiveView(
        title=title,
        state=state,
        progress=(report.round, of),
        tiles=_tiles(status, history, all_bytes, seconds_a_round),
        now=_now(status, labels),
        charts=_charts(history),
        nodes=_map(history, labels, report.round),
        ledger=_ledger(status.ledger.values(), labels),
        ledger_note=_ledger_note(status.ledger.values()),
        settings=status.settings,
    )


def _tiles(
    status: RunStatus, history: History, all_bytes: float, seconds_a_round: float | None
) -> list[tuple[str, str]]:
    report = status.report
    tiles = [
        (
            _shown(name, history.latest(name)),
            name.partition("/")[2] + (", reported by nodes" if name.startswith("node-") else ""),
        )
        for name in _metrics(history)
    ]
    if (loss := report.training_loss) is not None:
        tiles.append((f"{loss:.3g}", "training loss, reported by nodes"))
    if seconds_a_round is not None:
        tiles.append((_duration(seconds_a_round), "per round"))
        if status.num_rounds is not None and not status.ended:
            tiles.append((_duration(seconds_a_round * (status.num_rounds - report.round)), "left at this pace"))
    tiles.append((_bytes(report.bytes_out), "sent to all nodes, this round"))
    tiles.append((_bytes(report.bytes_in), "received from all nodes, this round"))
    tiles.append((_bytes(all_bytes), "in all rounds"))
    failed = len(report.failed_groups)
    tiles.append((f"{len(report.groups) - failed} of {len(report.groups)}", "groups decoded"))
    return tiles


def _now(status: RunStatus, labels: Mapping[int, str]) -> list[tuple[str, str]]:
    """Return the kinds of nodes in the latest round, each with the nodes' names, in words."""
    report = status.report
    asked = {node_id for group in report.groups for node_id in group.nodes}
    records = status.ledger.values()
    resting = [r.node_id for r in records if r.state in ("member", "substitute") and r.place and r.node_id not in asked]
    found: list[tuple[str, Iterable[int]]] = [
        ("lying", report.corrupt_nodes),
        ("sent no share", report.malformed_nodes),
        ("sent other bits than their group", report.different_nodes),
        ("left out, may be honest", report.suspect_nodes),
        ("silent or late", report.silent_nodes),
        ("convicted by the referee", report.convicted_nodes),
        ("resting", resting),
        *((state, [r.node_id for r in records if r.state == state]) for state in ("quarantined", "away", "refused")),
    ]
    told = [(kind, [labels.get(node_id, str(node_id)) for node_id in nodes]) for kind, nodes in found]
    return [(kind, _some(names)) for kind, names in told if names]


def _charts(history: History) -> list[LineChart]:
    note = f", means of {history.width}" if history.width > 1 else ""
    charts = []
    for name in _metrics(history):
        kind, _, metric = name.partition("/")
        title = _cut(metric) + (", as nodes report it (unprotected)" if kind.startswith("node") else "")
        charts.append(_chart(history, title, {name: _cut(metric)}, note, unit="%" if _is_part(history, name) else ""))
    charts.append(
        _chart(
            history, "Training loss, as nodes report it (unprotected)", {"unprotected-training-loss": "median"}, note
        )
    )
    charts.append(_chart(history, "Bytes of all nodes", {"bytes-out": "down", "bytes-in": "up"}, note, "MB", 1e-6))
    seconds = {
        "seconds-waiting": "waiting for nodes",
        "seconds-aggregating": "decoding",
        "seconds-stepping": "the step",
    }
    charts.append(_chart(history, "Seconds of a round", seconds, note, "s"))
    return [chart for chart in charts if not chart.is_empty]


def _chart(
    history: History, title: str, names: Mapping[str, str], note: str, unit: str = "", factor: float = 1.0
) -> LineChart:
    curves = []
    for (name, label), colour in zip(names.items(), COLOURS, strict=False):
        rounds, values = history.curve(name)
        curves.append(Curve(name=label, colour=colour, x=rounds, y=[factor * value for value in values]))
    return LineChart(title=title, x_label=f"round{note}", curves=curves, unit=unit, bottom=0.0 if unit else None)


def _map(history: History, labels: Mapping[int, str], last: int) -> NodeMap | None:
    if not history.num_named:
        return None
    shown = history.gravest_nodes(MOST_ROWS)
    more = history.num_named - len(shown)
    return NodeMap(
        title="Nodes by round",
        rows=[history.row(node_id, labels.get(node_id, str(node_id))) for node_id in shown],
        first=1,
        last=last,
        note=f"{more} more nodes were named, for lesser faults or less often." if more else "No other node was named.",
    )


def _ledger(records: Iterable[NodeRecord], labels: Mapping[int, str]) -> list[LedgerRow]:
    def trouble(record: NodeRecord) -> tuple[object, ...]:
        counts = (record.offences, record.different_bits, record.silent)
        return STATES.index(record.state), *(-count for count in counts), record.place or ()

    worst = sorted(records, key=trouble)
    return [
        LedgerRow(
            label=labels.get(record.node_id) or _cut(record.label),
            place="-" if record.place is None else f"{record.place[0]}, {record.place[1]}",
            state=record.state,
            counts=[getattr(record, name) for name in COUNTERS],
            last_offence=_cut(record.last_offence),
        )
        for record in worst[:MOST_RECORDS]
    ]


def _ledger_note(records: Iterable[NodeRecord]) -> str:
    counts = dict.fromkeys(STATES, 0)
    for record in records:
        counts[record.state] += 1
    total = sum(counts.values())
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    hidden = f" The {MOST_RECORDS} with the most trouble are shown." if total > MOST_RECORDS else ""
    return f"{total} nodes: {states}.{hidden}" if total else ""


def _labels(records: Iterable[NodeRecord]) -> dict[int, str]:
    """Return a label for each node, by its id."""
    records = list(records)
    alike = namesakes(records)
    return {
        record.node_id: _cut(record.label_among_namesakes if record.identity in alike else record.name or record.label)
        for record in records
    }


def _metrics(history: History) -> list[str]:
    """Return the names of the evaluations' figures to show, accuracies first."""
    names = [*history.names("evaluation/"), *history.names("node-evaluation/")]
    return sorted(names, key=lambda name: "accuracy" not in name)[:MOST_METRICS]


def _is_part(history: History, name: str) -> bool:
    """Whether a metric is a fraction, to be shown in per cent."""
    _, values = history.curve(name)
    return "accuracy" in name and all(0 <= value <= 1 for value in values)


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if "accuracy" in name and 0 <= value <= 1 else f"{value:.3g}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _cut(text: str) -> str:
    """Return a text from a node or a file as one line of limited length."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _bytes(count: float) -> str:
    return (
        f"{count / 1e9:.3g} GB"
        if count >= 1e9
        else f"{count / 1e6:.3g} MB"
        if count >= 1e6
        else f"{count / 1e3:.3g} kB"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
