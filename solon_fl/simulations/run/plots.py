"""What a simulation leaves behind: JSON lines, plots, and tables for the terminal."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.table import Table

from solon_fl.simulations.run.engine import Outcome
from solon_fl.simulations.run.outcome import RoundRecord
from solon_fl.simulations.run.strategies import STRATEGIES

__all__ = ["jsonable", "offences_table", "plot_run", "style_axes", "write_jsonl"]

KIND_COLOURS = {"lying": "#D55E00", "silent": "#999999", "malformed": "#CC79A7"}
KIND_LABELS = {"lying": "lying", "silent": "silent or late", "malformed": "malformed"}


def write_jsonl(outcome: Outcome, path: Path) -> None:
    """Write a run as JSON lines: what was run, one line a round, and a summary.

    The first line has the scenario (its seed included), the liars and the versions; a NaN is written as null. Nodes
    are given by their numbers (as in `Scenario.liars`) everywhere, not by Flower's ids.
    """
    scenario = outcome.scenario
    head = {
        "scenario": asdict(scenario),
        "batches_per_node": STRATEGIES[scenario.strategy].batches_per_node(scenario),
        "liars": sorted(scenario.liars),
        "versions": {name: version(name) for name in ("solon-fl", "flwr", "torch", "numpy")},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    summary = {
        "final_accuracy": outcome.accuracy,
        "error": outcome.error,
        "offences": {number: dict(kinds) for number, kinds in outcome.offences.items()},
        "ledger": [asdict(record) for record in outcome.ledger],
    }
    lines = [head, *(_with_numbers(record) for record in outcome.records), summary]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")  # a file of the right name is a whole one
    unfinished.write_text("".join(json.dumps(jsonable(line), allow_nan=False) + "\n" for line in lines))
    unfinished.replace(path)


def offences_table(outcome: Outcome) -> Table:
    """Return a table of the nodes that were named, beside those that really lied."""
    config = outcome.scenario.config
    table = Table(title="Nodes named by the server", title_justify="left")
    for heading in ("node", "group", "slot", "named in", "as", "really lies"):
        table.add_column(heading, justify="left" if heading in ("as", "really lies") else "right")
    rounds = max(len(outcome.records) - 1, 0)
    for number in sorted(set(outcome.offences) | outcome.scenario.liars):
        kinds: Mapping[str, int] = outcome.offences.get(number, {})
        named = sum(kinds.values())
        truth = "[red]yes[/]" if number in outcome.scenario.liars else "[yellow]no[/]"
        table.add_row(
            str(number),
            *(["-", "-"] if config.regroup == "round" else map(str, divmod(number, config.group_size))),
            f"{named} of {rounds} rounds",
            ", ".join(KIND_LABELS[kind] for kind in kinds) or "[dim]never named[/]",
            truth,
        )
    return table


def plot_run(outcome: Outcome, path: Path) -> None:
    """Draw one run: accuracy by round, and below it who was named in which round."""
    named = outcome.offences
    figure = Figure(figsize=(8, 6.5 if named else 4), layout="constrained")
    heights = [3, max(1.0, min(3.0, 0.25 * len(named)))]
    if named:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        _draw_offences(bottom, outcome)
    else:
        top = figure.subplots()
    scenario = outcome.scenario
    contender = STRATEGIES[scenario.strategy]
    accuracies = [record.accuracy for record in outcome.records]
    top.plot([record.round for record in outcome.records], accuracies, color=contender.colour, linewidth=1.8)
    style_axes(top)
    top.xaxis.set_major_locator(MaxNLocator(integer=True))
    top.set_title(
        f"{contender.title}, {scenario.config.num_nodes} nodes, {len(scenario.liars)} liars, "
        f"attack: {scenario.attack or 'none'}",
        loc="left",
    )
    (bottom if named else top).set_xlabel("round")
    figure.savefig(path, dpi=150)


def style_axes(axes: Axes) -> None:
    """Make a panel of accuracy by whatever is on the horizontal axis."""
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("test accuracy")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_offences(axes: Axes, outcome: Outcome) -> None:
    numbers = list(outcome.offences)
    for kind, colour in KIND_COLOURS.items():
        points = [(r.round, numbers.index(n)) for r in outcome.records for n, k in r.named() if k == kind]
        if points:
            axes.plot(*zip(*points, strict=True), "s", color=colour, markersize=3, label=KIND_LABELS[kind])
    axes.set_yticks(range(len(numbers)), [f"node {number}" for number in numbers], fontsize=7)
    axes.set_ylim(-0.7, len(numbers) - 0.3)
    axes.set_title("named by the server", loc="left", fontsize=9)
    axes.legend(loc="upper right", frameon=False, ncols=3, fontsize=8, bbox_to_anchor=(1, 1.35))
    axes.spines[["top", "right"]].set_visible(False)


def _with_numbers(record: RoundRecord) -> dict[str, Any]:
    """Return a round's record with node numbers in place of Flower's node ids."""
    result = asdict(record)
    if record.report is None:
        return result
    for report, group in zip(record.report.groups, result["report"]["groups"], strict=True):
        number_of = {node: record.number(report, node) for node in group.pop("nodes") if node is not None}
        group["nodes_asked"] = len(number_of)
        for kind in ("corrupt_nodes", "silent_nodes", "different_bits", "escalated_by"):
            group[kind] = [number_of[node] for node in group[kind]]
        group["malformed_nodes"] = {number_of[node]: reason for node, reason in group["malformed_nodes"].items()}
    return result


def jsonable(value: Any) -> Any:
    """Return what json can write: string keys, lists, no NaN, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value if isinstance(value, (int, str, type(None))) else str(value)
