"""The plot of one run, and the style that all plots share."""

from pathlib import Path
from typing import TYPE_CHECKING

from solon_fl.simulations.extras import simulation_extra
from solon_fl.simulations.run.outcome import Outcome
from solon_fl.simulations.run.own_strategies import strategy_named
from solon_fl.simulations.run.tables import KIND_LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_run", "style_axes"]

KIND_COLOURS = {
    "lying": "#D55E00",
    "different": "#0072B2",
    "suspected": "#E69F00",
    "silent": "#999999",
    "malformed": "#CC79A7",
}


def plot_run(outcome: Outcome, path: Path) -> None:
    """Draw one run: accuracy by round, and below it the nodes that were named or silent in each round.

    Raises
    ------
    ConfigurationError
        If matplotlib is not installed.
    """
    with simulation_extra("plots"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

    named = outcome.offences
    figure = Figure(figsize=(8, 6.5 if named else 4), layout="constrained")
    heights = [3, max(1.0, min(3.0, 0.25 * len(named)))]
    if named:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        _draw_offences(bottom, outcome)
    else:
        top = figure.subplots()
    scenario = outcome.scenario
    strategy = strategy_named(scenario.strategy)
    rounds = [record.round for record in outcome.records]
    top.plot(rounds, outcome.accuracies, color=strategy.colour, linewidth=1.8)
    style_axes(top)
    top.xaxis.set_major_locator(MaxNLocator(integer=True))
    top.set_title(
        f"{strategy.title}, {scenario.config.num_nodes} nodes, {len(outcome.liars)} liars, "
        f"attack: {scenario.attack or 'none'}",
        loc="left",
    )
    (bottom if named else top).set_xlabel("round")
    figure.savefig(path, dpi=150)


def style_axes(axes: "Axes") -> None:
    """Style a panel that shows accuracy on its vertical axis."""
    with simulation_extra("plots"):
        from matplotlib.ticker import PercentFormatter

    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("test accuracy")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_offences(axes: "Axes", outcome: Outcome) -> None:
    numbers = list(outcome.offences)
    for kind, colour in KIND_COLOURS.items():
        points = [(r.round, numbers.index(n)) for r in outcome.records for n, k in r.named() if k == kind]
        if points:
            axes.plot(*zip(*points, strict=True), "s", color=colour, markersize=3, label=KIND_LABELS[kind])
    axes.set_yticks(range(len(numbers)), [f"node {number}" for number in numbers], fontsize=7)
    axes.set_ylim(-0.7, len(numbers) - 0.3)
    axes.set_title("reported by the server", loc="left", fontsize=9)
    axes.legend(loc="upper right", frameon=False, ncols=3, fontsize=8, bbox_to_anchor=(1, 1.35))
    axes.spines[["top", "right"]].set_visible(False)
