"""Tables about a comparison, for the terminal."""

from rich import box
from rich.markup import escape
from rich.table import Table

from solon_fl.simulations.compare.comparison import NO_ATTACK
from solon_fl.simulations.compare.results import Cell, Results
from solon_fl.simulations.own import is_own
from solon_fl.simulations.run import strategy_named

__all__ = ["SCATTER", "comparison_table", "named_liars", "rounds_table", "show_seconds", "times_table"]

SHOWN_DIGITS = 6  # of the model's SHA-256
MEDIANS = "MB of all nodes and ms: medians over the rounds."
SCATTER = "timings scatter: machine busy?"
SCATTER_MARK = "~"
VERDICT_STYLES = {"survived": "green", "harmed": "yellow", "broken": "bold red", None: "dim"}


def comparison_table(results: Results) -> Table:
    """Return a table with one row a run: its accuracy and verdict, and what a round cost (medians)."""
    table = _table(escape(results.comparison.title))
    table.add_column("accuracy", justify="right", overflow="fold")
    table.add_column("verdict", overflow="fold")
    for heading in ("MB\ndown", "MB\nup", "ms of\nserver"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("liars\nnamed", overflow="fold")
    table.add_column("SHA-256", overflow="fold")
    for cell in results.cells:
        table.add_row(*_names(cell), *_outcome(results, cell), end_section=_ends_section(results, cell))
    table.caption = MEDIANS
    if any(cell.timings_scatter for cell in results.cells):
        table.caption += f" {SCATTER_MARK} {SCATTER}"
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
        for network in results.comparison.networks if cell.outcome is not None else ():
            ratio = results.speed(cell, network) if cell.strategy != "solon" else None
            seconds = show_seconds(cell.seconds_to(target, network, results.batch_seconds))
            times.append(seconds + (f" ({ratio:.2g})" if ratio is not None else ""))
        table.add_row(*_names(cell), *times, end_section=_ends_section(results, cell))
    return table


def rounds_table(results: Results) -> Table:
    """Return a table with what a round took in computation and seconds: means over the rounds."""
    table = _table("A round (means): who computes how much, and its seconds")
    for heading in ("group", "nodes", "batches\nof all", "referee\nin all"):
        table.add_column(heading, justify="right", overflow="fold")
    for network in results.comparison.networks:
        table.add_column(escape(network.name), justify="right", overflow="fold")
    for cell in results.cells:
        if cell.outcome is not None:
            group = cell.outcome.scenario.config.group_size if strategy_named(cell.strategy).client == "solon" else "-"
            numbers = [str(group), f"{cell.nodes_asked:.3g}", f"{cell.batches_of_all:.4g}"]
            numbers.append(str(cell.referee_computations) if cell.has_referee else "-")
            times = [cell.mean_round(network, results.batch_seconds) for network in results.comparison.networks]
            table.add_row(*_names(cell), *numbers, *map(show_seconds, times), end_section=_ends_section(results, cell))
    table.caption = "referee: how often in the whole run it computed a group's batches, which are among those of all."
    return table


def _table(title: str) -> Table:
    """Return a table with the names of attacks and strategies, which leaves room for more in 80 columns."""
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
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
    return _broken(attack), _broken(strategy_named(cell.strategy).title)


def _broken(name: str) -> str:
    """Return a name of the user's in two lines."""
    return name.replace(":", ":\n") if is_own(name) else name


def _outcome(results: Results, cell: Cell) -> tuple[str, ...]:
    if cell.outcome is None:
        return "-", "[dim]not possible[/]", "", "", "", "", ""
    verdict = results.verdict(cell)
    return (
        f"{cell.outcome.accuracy:.1%}",
        f"[{VERDICT_STYLES[verdict]}]{verdict or '-'}{' (aborted)' if cell.error else ''}[/]",
        f"{cell.bytes_out / 1e6:.3g}",
        f"{cell.bytes_sent / 1e6:.3g}",
        f"{1e3 * cell.server_seconds:.3g}{SCATTER_MARK if cell.timings_scatter else ''}",
        named_liars(cell),
        cell.outcome.model_sha256[:SHOWN_DIGITS],
    )


def _ends_section(results: Results, cell: Cell) -> bool:
    return cell.strategy == results.comparison.strategies[-1]


def named_liars(cell: Cell) -> str:
    """Return in words how many of the liars the server named; an empty text for strategies that name none."""
    if not cell.named and (not cell.liars or strategy_named(cell.strategy).client not in ("solon", "draco")):
        return ""
    right, wrong = len(cell.named & cell.liars), len(cell.named - cell.liars)
    named = f"all {right}" if right == len(cell.liars) else f"{right} of {len(cell.liars)}"
    return named + (f", {wrong} wrongly" if wrong else "")


def show_seconds(seconds: float | None) -> str:
    """Return seconds for people, with three digits, or a dash for never."""
    return "-" if seconds is None else f"{seconds:.3g}" if seconds < 1000 else f"{seconds:,.0f}"
