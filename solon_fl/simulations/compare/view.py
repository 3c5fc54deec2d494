"""The content of a comparison's report, as data. The template decides how it looks."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from solon_fl.pages import Bar, BarChart, Curve, LineChart, NodeMap, NodeRow, Span
from solon_fl.simulations.attacks import attack_named
from solon_fl.simulations.compare.results import Cell, Results
from solon_fl.simulations.compare.sentences import (
    SHOWN_DIGITS,
    Standing,
    named_liars,
    scatter_sentence,
    standings,
    verdict_sentences,
)
from solon_fl.simulations.compare.tables import SCATTER_MARK, show_seconds
from solon_fl.simulations.network import Network, RoundSeconds
from solon_fl.simulations.run import strategy_named
from solon_fl.simulations.run.tables import KIND_LABELS

__all__ = ["Axis", "Heat", "HeatRow", "ReportView", "view_of"]

NOT_SHOWN = ("config", "strategy", "attack", "compute_once")  # fields of a scenario
HEAT_STEPS = 10
MOST_ROWS = 60  # rows of a map of nodes
MARKS = {"survived": "✓ survived", "harmed": "~ harmed", "broken": "✗ broken", None: ""}
PARTS = (  # parts of a round, in colours that colour-blind readers can tell apart (Okabe & Ito)
    ("computation", "#0072B2"),
    ("down", "#56B4E9"),
    ("up", "#009E73"),
    ("server", "#D55E00"),
    ("waiting", "#999999"),
    ("Flower", "#CC79A7"),
    ("referee", "#E69F00"),
)


@dataclass(frozen=True, kw_only=True)
class Heat:
    """One cell of the heat map.

    Attributes
    ----------
    accuracy : str
        The final accuracy; "" if there is none.
    level : int or None
        Part of the gain of training that was left, 0..10; None without an accuracy.
    words : sequence of str
        What else is known about the run, one line each.
    reason : str
        Why there is no accuracy, or why the run broke off.
    """

    accuracy: str
    level: int | None
    words: Sequence[str] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class HeatRow:
    """A row of the heat map: the strategy's title, its worst accuracy under attack, and a cell for each attack."""

    title: str
    worst: str
    cells: Sequence[Heat]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Charts of all attacks over one x axis: rounds, or seconds on a network."""

    name: str
    charts: Sequence[LineChart]


@dataclass(frozen=True, kw_only=True)
class ReportView:
    """The report of a comparison.

    Attributes
    ----------
    title, description : str
        Heading and text of the comparison.
    missing : int
        Number of runs that are not finished.
    verdict : sequence of str
        The verdict, in sentences.
    attacks : sequence of (str, str)
        Title of each column, and a description of the attack.
    rows : sequence of HeatRow
        The strategies, best first.
    refusals : sequence of str
        Why some runs are not possible.
    axes : sequence of Axis
        Accuracy by round, and by seconds on each network.
    target : str
        The accuracy at which times are compared; "" if there is none.
    scatter : str
        A warning that the machine was busy; "" if it was not.
    times : sequence of BarChart
        The parts of a round, one chart for each network.
    batch_seconds : str
        Seconds of a batch on a node, and whether they were measured.
    maps : sequence of NodeMap
        Which nodes were named or silent, and when, for each run under attack in which any were.
    summary : str
        The main settings, in a sentence.
    settings : mapping
        All settings.
    versions : str
        Versions of the software.
    """

    title: str
    description: str
    missing: int
    verdict: Sequence[str]
    attacks: Sequence[tuple[str, str]]
    rows: Sequence[HeatRow]
    refusals: Sequence[str]
    axes: Sequence[Axis]
    target: str
    scatter: str
    times: Sequence[BarChart]
    batch_seconds: str
    maps: Sequence[NodeMap]
    summary: str
    settings: dict[str, Any]
    versions: str


def view_of(results: Results) -> ReportView:
    """Return the report of these results."""
    comparison, scenario = results.comparison, results.comparison.scenario
    config, ranked, target = scenario.config, standings(results), results.target_accuracy
    shown = {name: value for name, value in asdict(scenario).items() if name not in NOT_SHOWN and value is not None}
    software = next((cell.outcome.software for cell in results.cells if cell.outcome), None)
    versions = "" if software is None else ", ".join(f"{name} {number}" for name, number in software.versions.items())
    given = "given" if comparison.batch_seconds is not None else "measured on this machine"
    return ReportView(
        title=comparison.title,
        description=comparison.description.strip(),
        missing=len(comparison.strategies) * len(comparison.attacks) - len(results.cells),
        verdict=verdict_sentences(results),
        attacks=[
            (attack or "no attack", attack_named(attack).description if attack else "all nodes are honest")
            for attack in comparison.attacks
        ],
        rows=[_heat_row(results, standing) for standing in ranked],
        refusals=list(dict.fromkeys(cell.refusal for cell in results.cells if cell.refusal)),
        axes=[_axis(results, network) for network in (None, *comparison.networks)],
        target="" if target is None else f"{100 * target:.1f} %",
        scatter=scatter_sentence(results),
        times=[_times(results, ranked, network) for network in comparison.networks],
        batch_seconds=f"{results.batch_seconds:.3g} s a batch, {given}",
        maps=list(_maps(results, ranked)),
        summary=(
            f"{config.num_nodes} nodes, {scenario.expected_liars} of which lie under attack; groups of "
            f"r = {config.group_size} with s = {config.byzantine} and k = {config.compression}; {scenario.rounds} "
            "rounds. The other strategies are told the number of liars."
        ),
        settings={**shown, **asdict(config)},
        versions=f"{versions}, Python {software.python}, threads of torch: {software.threads}" if software else "",
    )


def _heat_row(results: Results, standing: Standing) -> HeatRow:
    worst = standing.worst
    return HeatRow(
        title=standing.title,
        worst="-" if worst is None else f"{100 * worst.accuracies[-1]:.1f} %",
        cells=[_heat(results, standing.strategy, attack) for attack in results.comparison.attacks],
    )


def _heat(results: Results, strategy: str, attack: str | None) -> Heat:
    cell = results.cell(strategy, attack)
    if cell is None:
        return Heat(accuracy="", level=None, words=["not yet"])
    if cell.outcome is None:
        return Heat(accuracy="", level=None, words=["not possible"], reason=cell.refusal or "")
    named = named_liars(cell) if attack else ""
    words = ["broke off" if cell.error else MARKS[results.verdict(cell)], f"named: {named}" if named else ""]
    words.append(cell.outcome.model_sha256[:SHOWN_DIGITS])
    return Heat(
        accuracy=f"{100 * cell.accuracies[-1]:.1f} %" if cell.accuracies else "-",
        level=_level(results, cell),
        words=[word for word in words if word],
        reason=cell.error or "",
    )


def _level(results: Results, cell: Cell) -> int | None:
    """Return how much of the best attack-free run's gain in accuracy is left, in tenths."""
    honest = [other.accuracies for other in results.cells if other.attack is None and other.accuracies]
    honest = honest or [other.accuracies for other in results.cells if other.accuracies]
    if not cell.accuracies:
        return None
    start, end = min(curve[0] for curve in honest), max(curve[-1] for curve in honest)
    gained = (cell.accuracies[-1] - start) / (end - start) if end > start else 1.0
    return round(HEAT_STEPS * min(max(gained, 0.0), 1.0))


def _axis(results: Results, network: Network | None) -> Axis:
    charts = []
    for attack, title in ((attack, attack or "no attack") for attack in results.comparison.attacks):
        curves = []
        for cell in results.cells:
            if cell.attack == attack and cell.accuracies:
                strategy = strategy_named(cell.strategy)
                times = cell.clock(network, results.batch_seconds) if network else range(len(cell.accuracies))
                curve = Curve(
                    name=strategy.title,
                    colour=strategy.colour,
                    x=times,
                    y=cell.accuracies,
                    is_wide=cell.strategy == "solon",
                    note="broke off" if cell.error else "",
                )
                curves.append(curve)
        charts.append(
            LineChart(
                title=title,
                x_label=f"seconds on {network.name}" if network else "round",
                curves=curves,
                unit="%",
                bottom=0.0,
                is_log=network is not None,
                marked=results.target_accuracy,
            )
        )
    return Axis(name=f"by seconds on {network.name}" if network else "by round", charts=charts)


def _times(results: Results, ranked: Sequence[Standing], network: Network) -> BarChart:
    bars = []
    for standing in ranked:
        cell = standing.example
        if cell is not None:
            seconds = None
            if results.target_accuracy is not None:
                seconds = cell.seconds_to(results.target_accuracy, network, results.batch_seconds)
            parts = _parts(cell, network, results.batch_seconds)
            mark = f" {SCATTER_MARK}" if cell.timings_scatter else ""
            notes = [
                f"{show_seconds(sum(parts))} s{mark}",
                "never" if seconds is None else f"{show_seconds(seconds)} s",
            ]
            notes += [str(cell.batches_per_node), f"{cell.bytes_out / 1e6:.3g}", f"{cell.bytes_sent / 1e6:.3g}"]
            bars.append(Bar(name=standing.title, parts=parts, notes=notes))
    goal = f"to {100 * results.target_accuracy:.1f} %" if results.target_accuracy is not None else "to the target"
    rates = (network.server_download, network.server_upload, network.node_download, network.node_upload)
    server_in, server_out, node_in, node_out = (f"{rate / 1e6:,.4g}" for rate in rates)
    return BarChart(
        title=network.name,
        caption=(
            f"Mbit/s in / out: server {server_in} / {server_out}, each node {node_in} / {node_out}. "
            f"Latency {1000 * network.latency:.3g} ms, deadline {network.deadline:.3g} s."
        ),
        parts=PARTS,
        bars=bars,
        headings=["a round", goal, "batches a node", "MB down", "MB up"],
    )


def _parts(cell: Cell, network: Network, batch_seconds: float) -> list[float]:
    """Return the seconds of a typical round, in the order of `PARTS`: the median of each part."""
    reports = [record.report for record in cell.records if record.report is not None]
    down = median(
        network.down_seconds(num_nodes=max(1, report.nodes_asked), bytes_out=report.bytes_out) for report in reports
    )
    times: list[RoundSeconds] = cell.round_times(network, batch_seconds)
    middle = {part: median(getattr(seconds, part) for seconds in times) for part in RoundSeconds.__dataclass_fields__}
    up = max(middle["transfer"] - down, 0.0)
    others = [middle[part] for part in ("server", "waiting", "overhead", "referee")]
    return [middle["computation"], down, up, *others]


def _maps(results: Results, ranked: Sequence[Standing]) -> Iterator[NodeMap]:
    for standing in ranked:
        for cell in standing.cells:
            if cell.attack is not None and cell.outcome is not None and (cell.named or cell.silent):
                yield _map(results, cell)


def _map(results: Results, cell: Cell) -> NodeMap:
    """Return which nodes were named or silent when: rows for the liars, and for all nodes that were."""
    spans: dict[int, list[Span]] = {number: [] for number in sorted(cell.liars)}
    for record in cell.records:
        for number, kind in dict(reversed(record.named())).items():
            spans.setdefault(number, []).append(Span(record.round, record.round, KIND_LABELS[kind]))
    shown = sorted(spans, key=lambda number: (number not in cell.liars, number))[:MOST_ROWS]
    rows = []
    for number in shown:
        lies = number in cell.liars
        rows.append(NodeRow.of(f"node {number}{' (liar)' if lies else ''}", spans[number], is_marked=lies))
    others = results.comparison.scenario.config.num_nodes - len(spans)
    note = f"The other {others} nodes were never named or silent." if others else ""
    if len(spans) > len(shown):
        note = f"{len(spans) - len(shown)} more of these nodes are not shown. {note}"
    return NodeMap(
        title=f"{strategy_named(cell.strategy).title}, {cell.attack}",
        rows=rows,
        first=1,
        last=max(len(cell.records) - 1, 1),
        note=note.strip(),
    )
