"""What a comparison shows: a table for the terminal, plots, and one self-contained HTML page."""

import io
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter
from rich import box
from rich.markup import escape
from rich.table import Table

from solon_fl.simulations.attacks.registry import ATTACKS
from solon_fl.simulations.compare.comparison import NO_ATTACK
from solon_fl.simulations.compare.results import Cell, Results
from solon_fl.simulations.network import Network
from solon_fl.simulations.run.output import style_axes
from solon_fl.simulations.run.strategies import STRATEGIES

__all__ = ["comparison_table", "plot_accuracy", "times_table", "write_report"]

PANELS_A_ROW = 3
VERDICT_STYLES = {"survived": "green", "harmed": "yellow", "broken": "bold red", None: "dim"}


def comparison_table(results: Results) -> Table:
    """Return a table with one row a run: what came of it, and what a round cost."""
    table = _table(escape(results.comparison.title))
    table.add_column("accuracy", justify="right", overflow="fold")
    table.add_column("verdict", overflow="fold")
    table.add_column("MB sent\na round", justify="right", overflow="fold")
    table.add_column("ms of\nserver", justify="right", overflow="fold")
    table.add_column("liars named", overflow="fold")
    for cell in results.cells:
        table.add_row(*_names(cell), *_outcome(results, cell), end_section=_ends_section(results, cell))
    return table


def times_table(results: Results) -> Table | None:
    """Return a table with the seconds to the target accuracy on each network; None if there is no target."""
    target = results.target_accuracy
    if target is None:
        return None
    table = _table(f"Seconds to {target:.1%} accuracy (in brackets: in units of Solon's)")
    for network in results.comparison.networks:
        table.add_column(escape(network.name), justify="right", overflow="fold")
    for cell in results.cells:
        times = []
        for network in results.comparison.networks if cell.lines else ():
            ratio = speed(results, cell, network) if cell.strategy != "solon" else None
            seconds = show_seconds(cell.seconds_to(target, network, results.batch_seconds))
            times.append(seconds + (f" ({ratio:.2g})" if ratio is not None else ""))
        table.add_row(*_names(cell), *times, end_section=_ends_section(results, cell))
    return table


def _table(title: str) -> Table:
    """Return a table for attacks and strategies that leaves room, in 80 columns, for more."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading in ("attack", "strategy"):
        table.add_column(heading, no_wrap=True)
    return table


def _names(cell: Cell) -> tuple[str, str]:
    attack = cell.attack or NO_ATTACK
    if len(attack) > 10:
        attack = attack.replace("-", "-\n", 1)
    return attack, STRATEGIES[cell.strategy].title


def _outcome(results: Results, cell: Cell) -> tuple[str, ...]:
    if not cell.lines:
        return "-", "[dim]not possible[/]", "", "", ""
    verdict = results.verdict(cell)
    return (
        f"{cell.accuracies[-1]:.1%}",
        f"[{VERDICT_STYLES[verdict]}]{verdict or '-'}{' (aborted)' if cell.error else ''}[/]",
        f"{cell.bytes_sent / 1e6:.3g}",
        f"{1e3 * cell.server_seconds:.3g}",
        named_liars(cell),
    )


def _ends_section(results: Results, cell: Cell) -> bool:
    return cell.strategy == results.comparison.strategies[-1]


def named_liars(cell: Cell) -> str:
    """Return in words which of the liars the server named; nothing for strategies that name none."""
    if not cell.named and (not cell.liars or STRATEGIES[cell.strategy].client not in ("solon", "draco")):
        return ""
    right, wrong = len(cell.named & cell.liars), len(cell.named - cell.liars)
    named = f"all {right}" if right == len(cell.liars) else f"{right} of {len(cell.liars)}"
    return named + (f", {wrong} wrongly" if wrong else "")


def show_seconds(seconds: float | None) -> str:
    """Return seconds for people, with three digits; a dash for never."""
    return "-" if seconds is None else f"{seconds:.3g}" if seconds < 1000 else f"{seconds:,.0f}"


def plot_accuracy(results: Results, network: Network | None = None) -> Figure:
    """Draw accuracy by round, or by seconds on a network; one panel an attack, one line a strategy."""
    attacks = [
        attack for attack in results.comparison.attacks if any(c.attack == attack and c.lines for c in results.cells)
    ]
    columns = min(PANELS_A_ROW, len(attacks)) or 1
    rows = max(1, math.ceil(len(attacks) / columns))
    figure = Figure(figsize=(4.2 * columns + 1, 3.2 * rows + 0.6), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes, attack in zip(panels, attacks, strict=False):
        cells = [cell for cell in results.cells if cell.attack == attack and cell.lines]
        _draw_cells(axes, cells, results, network)
        liars = len(cells[0].liars)
        nodes = results.comparison.scenario.config.num_nodes
        axes.set_title(f"{attack}: {liars} of {nodes} nodes lie" if attack else "no attack", loc="left", fontsize=10)
        label = f"seconds on {network.name}" if network else "round"
        axes.set_xlabel(label, fontsize=9, parse_math=False)
    for axes in panels[len(attacks) :]:
        axes.set_visible(False)
    for number, axes in enumerate(panels):
        if number % columns:
            axes.set_ylabel("")
    lines = {str(line.get_label()): line for axes in panels for line in axes.get_lines()}
    labels = [label for label in lines if not label.startswith("_")]
    handles = [lines[label] for label in labels]
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(7, len(labels) or 1), frameon=False, fontsize=9
    )
    return figure


def _draw_cells(axes: Axes, cells: Sequence[Cell], results: Results, network: Network | None) -> None:
    for cell in cells:
        contender = STRATEGIES[cell.strategy]
        across = cell.clock(network, results.batch_seconds) if network else list(range(len(cell.accuracies)))
        first = 1 if network else 0  # a logarithm has no place for 0
        style: dict[str, Any] = {"color": contender.colour, "linewidth": 1.4}
        if cell.strategy == "solon":
            style |= {"linewidth": 3.4, "zorder": 1.5}  # under the others, which often coincide with it
        axes.plot(across[first:], cell.accuracies[first:], label=contender.title, **style)
        if cell.error:
            axes.plot(across[-1:], cell.accuracies[-1:], "x", color=contender.colour, markersize=9, label="_aborted")
    style_axes(axes)
    if network and any(len(cell.accuracies) > 1 for cell in cells):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if results.target_accuracy:
        axes.axhline(results.target_accuracy, color="0.6", linewidth=0.8, linestyle=":", zorder=0)


def write_report(results: Results, path: Path, command: Sequence[str] = ()) -> None:
    """Write one HTML page with everything in it: tables, plots, settings. It loads nothing from anywhere.

    Parameters
    ----------
    results : Results
        Finished, or some of it.
    path : Path
        The page.
    command : sequence of str, optional
        The command line that makes it again.
    """
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (resources.files("solon_fl.simulations.compare") / "templates" / "report.html").read_text(encoding="utf-8")
    )
    comparison = results.comparison
    scenario = comparison.scenario
    first = next((cell for cell in results.cells if cell.lines), None)
    page = template.render(
        comparison=comparison,
        config=asdict(scenario.config),
        scenario={
            name: value
            for name, value in asdict(scenario).items()
            if name not in ("config", "strategy", "attack", "compute_once") and value is not None
        },
        expected_liars=scenario.expected_liars,
        target=results.target_accuracy,
        batch_seconds=results.batch_seconds,
        given=comparison.batch_seconds is not None,
        strategies=[(name, STRATEGIES[name]) for name in comparison.strategies],
        attacks=[
            (a, a or "no attack", ATTACKS[a].description if a else "all nodes are honest") for a in comparison.attacks
        ],
        headlines=headlines(results),
        cell=results.cell,
        verdict=results.verdict,
        named=named_liars,
        seconds=show_seconds,
        speed=lambda cell, network: speed(results, cell, network),
        round_time=lambda strategy, network: _round_time(results, strategy, network),
        example=lambda strategy: _example(results, strategy),
        rounds_svg=_svg(plot_accuracy(results)),
        time_svgs=[(network.name, _svg(plot_accuracy(results, network))) for network in comparison.networks],
        head=first.lines[0] if first else None,
        command=shlex.join(command) if command else None,
        missing=len(comparison.strategies) * len(comparison.attacks) - len(results.cells),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def headlines(results: Results) -> list[str]:
    """Return what a reader should know first, in sentences; all of it follows from the cells."""
    comparison = results.comparison
    sentences = []
    attacked = [attack for attack in comparison.attacks if attack is not None]
    for strategy in comparison.strategies:
        cells = [cell for attack in attacked if (cell := results.cell(strategy, attack)) and cell.lines]
        if not cells:
            continue
        by: dict[str, list[str]] = {"broken": [], "harmed": [], "survived": []}
        for cell in cells:
            verdict = results.verdict(cell)
            if verdict is not None:
                by[verdict].append(str(cell.attack))
        title = STRATEGIES[strategy].title
        if len(by["survived"]) == len(cells):
            sentences.append(f"{title} survived {_all_of(by['survived'])}.")
        elif by["broken"] or by["harmed"]:
            parts = [f"{verdict} by {', '.join(by[verdict])}" for verdict in ("broken", "harmed") if by[verdict]]
            sentences.append(f"{title} was {' and '.join(parts)}.")
    for network in comparison.networks:
        parts = []
        for strategy in comparison.strategies:
            cell = results.cell(strategy, None)
            ratio = speed(results, cell, network) if cell is not None and strategy != "solon" else None
            if ratio is not None:
                parts.append(f"{STRATEGIES[strategy].title} {ratio:.2g}")
        if parts:
            times = ", ".join(parts)
            sentences.append(
                f"On {network.name}, without an attack, to the same accuracy in units of Solon's time: {times}."
            )
    return sentences


def _all_of(attacks: list[str]) -> str:
    return f"all {len(attacks)} attacks" if len(attacks) > 1 else attacks[0]


def speed(results: Results, cell: Cell | None, network: Network) -> float | None:
    """Return how many times as long as Solon under the same attack a run takes to the target accuracy."""
    target = results.target_accuracy
    solon = results.cell("solon", cell.attack) if cell is not None else None
    if target is None or cell is None or solon is None or not cell.lines or not solon.lines:
        return None
    own, other = (c.seconds_to(target, network, results.batch_seconds) for c in (solon, cell))
    return None if not own or other is None else other / own


def _example(results: Results, strategy: str) -> Cell | None:
    """Return a cell of a strategy, the attack-free one if there is one, to read the cost of a round from."""
    cells = [cell for cell in results.cells if cell.strategy == strategy and len(cell.rounds) > 1]
    return min(cells, key=lambda cell: cell.attack is not None, default=None)


def _round_time(results: Results, strategy: str, network: Network) -> dict[str, float] | None:
    """Return the mean seconds of a round's parts in a strategy's attack-free run."""
    cell = _example(results, strategy)
    if cell is None:
        return None
    times = [asdict(seconds) for seconds in cell.round_times(network, results.batch_seconds)]
    means = {part: sum(t[part] for t in times) / len(times) for part in times[0]}
    return {**means, "total": sum(means.values())}


def _svg(figure: Figure) -> str:
    """Return a figure as an SVG element."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    return text[text.index("<svg") :]
