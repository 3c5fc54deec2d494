"""The report of a comparison: one self-contained HTML page."""

import io
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib import resources
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from solon_fl.simulations.attacks import attack_named
from solon_fl.simulations.compare.comparison import Comparison
from solon_fl.simulations.compare.plots import plot_accuracy
from solon_fl.simulations.compare.results import Cell, Results
from solon_fl.simulations.compare.tables import SCATTER, named_liars, show_seconds
from solon_fl.simulations.extras import simulation_extra
from solon_fl.simulations.network import Network
from solon_fl.simulations.run import strategy_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["headlines", "write_report"]

NOT_SHOWN = ("config", "strategy", "attack", "compute_once")  # of a scenario


def write_report(results: Results, path: Path, command: Sequence[str] = ()) -> None:
    """Write one HTML page with all tables, plots and settings. It loads nothing from anywhere.

    Parameters
    ----------
    results : Results
        All of them, or those that are finished.
    path : Path
        The page.
    command : sequence of str, optional
        The command line that makes it again.

    Raises
    ------
    ConfigurationError
        If jinja2 or matplotlib is not installed.
    """
    with simulation_extra("reports"):
        import jinja2

    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (resources.files("solon_fl.simulations.compare") / "templates" / "report.html").read_text(encoding="utf-8")
    )
    networks = results.comparison.networks
    page = template.render(
        **_settings(results.comparison),
        **_figures(results),
        rounds_svg=_svg(plot_accuracy(results)),
        time_svgs=[(network.name, _svg(plot_accuracy(results, network))) for network in networks],
        command=shlex.join(command) if command else None,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _settings(comparison: Comparison) -> dict[str, Any]:
    """Return what the page says of what was to be run."""
    scenario = comparison.scenario
    shown = {name: value for name, value in asdict(scenario).items() if name not in NOT_SHOWN and value is not None}
    attacks = [
        (attack, attack or "no attack", attack_named(attack).description if attack else "all nodes are honest")
        for attack in comparison.attacks
    ]
    return {
        "comparison": comparison,
        "config": asdict(scenario.config),
        "scenario": shown,
        "expected_liars": scenario.expected_liars,
        "given": comparison.batch_seconds is not None,
        "strategies": [(name, strategy_named(name)) for name in comparison.strategies],
        "attacks": attacks,
    }


def _figures(results: Results) -> dict[str, Any]:
    """Return what the page says of what came of it."""
    comparison = results.comparison
    return {
        "target": results.target_accuracy,
        "batch_seconds": results.batch_seconds,
        "headlines": headlines(results),
        "cell": results.cell,
        "verdict": results.verdict,
        "named": named_liars,
        "scatter": SCATTER,
        "seconds": show_seconds,
        "speed": results.speed,
        "round_time": partial(_round_time, results),
        "example": partial(_example, results),
        "has_referee": any(cell.has_referee for cell in results.cells),
        "referee": partial(_referee, results),
        "software": next((cell.outcome.software for cell in results.cells if cell.outcome), None),
        "missing": len(comparison.strategies) * len(comparison.attacks) - len(results.cells),
    }


def headlines(results: Results) -> list[str]:
    """Return in sentences what a reader should know first; all of it follows from the cells."""
    strategies = (_survival(results, strategy) for strategy in results.comparison.strategies)
    networks = (_relative_times(results, network) for network in results.comparison.networks)
    return [sentence for sentence in (*strategies, *networks) if sentence is not None]


def _survival(results: Results, strategy: str) -> str | None:
    """Return a sentence about what the attacks did to a strategy, if there is anything to say."""
    attacked = [attack for attack in results.comparison.attacks if attack is not None]
    cells = [cell for attack in attacked if (cell := results.cell(strategy, attack)) and cell.outcome]
    by: dict[str, list[str]] = {"broken": [], "harmed": [], "survived": []}
    for cell in cells:
        verdict = results.verdict(cell)
        if verdict is not None:
            by[verdict].append(str(cell.attack))
    title = strategy_named(strategy).title
    if cells and len(by["survived"]) == len(cells):
        return f"{title} survived {_all_of(by['survived'])}."
    parts = [f"{verdict} by {', '.join(by[verdict])}" for verdict in ("broken", "harmed") if by[verdict]]
    return f"{title} was {' and '.join(parts)}." if parts else None


def _relative_times(results: Results, network: Network) -> str | None:
    """Return a sentence about the attack-free times of the other strategies, if they can be compared with Solon's."""
    parts = []
    for strategy in results.comparison.strategies:
        ratio = results.speed(results.cell(strategy, None), network) if strategy != "solon" else None
        if ratio is not None:
            parts.append(f"{strategy_named(strategy).title} {ratio:.2g}")
    times = ", ".join(parts)
    sentence = f"On {network.name}, without an attack, to the same accuracy in units of Solon's time: {times}."
    return sentence if parts else None


def _all_of(attacks: Sequence[str]) -> str:
    return f"all {len(attacks)} attacks" if len(attacks) > 1 else attacks[0]


def _example(results: Results, strategy: str) -> Cell | None:
    """Return a cell that shows what a strategy's round costs: the attack-free one if there is one."""
    cells = [cell for cell in results.cells if cell.strategy == strategy and len(cell.records) > 1]
    return min(cells, key=lambda cell: cell.attack is not None, default=None)


def _referee(results: Results, strategy: str) -> str:
    """Return how often the referee computed a group's batches, under each attack."""
    cells = [cell for cell in results.cells if cell.strategy == strategy and cell.has_referee]
    return ", ".join(f"{cell.attack or 'no attack'}: {cell.referee_computations}" for cell in cells)


def _round_time(results: Results, strategy: str, network: Network) -> dict[str, float] | None:
    """Return the median seconds of a round's parts, and of the total, in a strategy's attack-free run."""
    cell = _example(results, strategy)
    if cell is None:
        return None
    times = [asdict(seconds) | {"total": seconds.total} for seconds in cell.round_times(network, results.batch_seconds)]
    return {part: median(seconds[part] for seconds in times) for part in times[0]}


def _svg(figure: "Figure") -> str:
    """Return a figure as an SVG element."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    return text[text.index("<svg") :]
