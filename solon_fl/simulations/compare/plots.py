"""The plot of a comparison."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from solon_fl.simulations.compare.results import Cell, Results
from solon_fl.simulations.extras import simulation_extra
from solon_fl.simulations.network import Network
from solon_fl.simulations.run import strategy_named
from solon_fl.simulations.run.plots import style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_accuracy"]

PANELS_A_ROW = 3


def plot_accuracy(results: Results, network: Network | None = None) -> "Figure":
    """Draw accuracy by round, or by seconds on a network: one panel for each attack, one line for each strategy.

    Raises
    ------
    ConfigurationError
        If matplotlib is not installed.
    """
    with simulation_extra("plots"):
        from matplotlib.figure import Figure

    attacks = [
        attack for attack in results.comparison.attacks if any(c.attack == attack and c.outcome for c in results.cells)
    ]
    columns = min(PANELS_A_ROW, len(attacks)) or 1
    rows = max(1, math.ceil(len(attacks) / columns))
    figure = Figure(figsize=(4.2 * columns + 1, 3.2 * rows + 0.6), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes, attack in zip(panels, attacks, strict=False):
        cells = [cell for cell in results.cells if cell.attack == attack and cell.outcome]
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


def _draw_cells(axes: "Axes", cells: Sequence[Cell], results: Results, network: Network | None) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

    for cell in cells:
        strategy = strategy_named(cell.strategy)
        across = cell.clock(network, results.batch_seconds) if network else list(range(len(cell.accuracies)))
        first = 1 if network else 0  # 0 has no place on a logarithmic axis
        style: dict[str, Any] = {"color": strategy.colour, "linewidth": 1.4}
        if cell.strategy == "solon":
            style |= {"linewidth": 3.4, "zorder": 1.5}  # below the others, which often coincide with it
        axes.plot(across[first:], cell.accuracies[first:], label=strategy.title, **style)
        if cell.error and cell.accuracies:
            axes.plot(across[-1:], cell.accuracies[-1:], "x", color=strategy.colour, markersize=9, label="_aborted")
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
