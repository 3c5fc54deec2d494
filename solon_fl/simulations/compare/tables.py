"""Tables of a comparison, for the terminal."""

from rich import box
from rich.markup import escape
from rich.table import Table

from solon_fl.simulations.compare.comparison import NO_ATTACK
from solon_fl.simulations.compare.results import Cell, Results
from solon_fl.simulations.compare.sentences import SHOWN_DIGITS, standings
from solon_fl.simulations.network import Network
from solon_fl.simulations.own import is_own
from solon_fl.simulations.run import strategy_named

__all__ = ["SCATTER_MARK", "costs_table", "rounds_table", "show_seconds", "survival_table", "times_table"]

SCATTER_MARK = "~"  # beside seconds that were measured on a busy machine
VERDICT_STYLES = {"survived": "green", "harmed": "yellow", "broken": "bold red", None: "dim"}


def survival_table(results: Results) -> Table:
    """Return final accuracies and digits of the SHA-256: a row for each strategy, the best worst accuracy first."""
    table = _table(escape(results.comparison.title), "strategy")
    for heading in ("worst", *(attack or NO_ATTACK for attack in results.comparison.attacks)):
        table.add_column(_broken(heading), justify="right", overflow="fold")
    table.add_column("liars\nnamed", overflow="fold")
    for standing in standings(results):
        cells = [results.cell(standing.strategy, attack) for attack in results.comparison.attacks]
        style, worst = VERDICT_STYLES[standing.verdict], _accuracy(standing.worst)
        table.add_row(
            _broken(standing.title),
            f"[{style}]{worst}\n{standing.verdict or ''}[/]",
            *(_survival(results, cell) for cell in cells),
            standing.named,
        )
    table.caption = (
        f"Final accuracy, and {SHOWN_DIGITS} digits of the model's SHA-256, which are equal if all bits are."
    )
    return table


def costs_table(results: Results) -> Table:
    """Return the costs of a round, a row for each strategy: medians, of the attack-free run if there is one."""
    table = _table("Costs of a round, and seconds to the same accuracy", "strategy")
    for heading in ("batches\na node", "MB\ndown", "MB\nup", "ms of\nserver"):
        table.add_column(heading, justify="right", overflow="fold")
    for network in results.comparison.networks:
        table.add_column(f"s on {escape(network.name)}".replace(" on ", " on\n"), justify="right", overflow="fold")
    for standing in standings(results):
        if (cell := standing.example) is not None:
            table.add_row(
                _broken(standing.title),
                str(cell.batches_per_node),
                f"{cell.bytes_out / 1e6:.3g}",
                f"{cell.bytes_sent / 1e6:.3g}",
                f"{1e3 * cell.server_seconds:.3g}{SCATTER_MARK if cell.timings_scatter else ''}",
                *(_to_target(results, cell, network) for network in results.comparison.networks),
            )
    target = results.target_accuracy
    goal = "" if target is None else f" Last columns: seconds to {target:.1%}, computed for each network."
    table.caption = f"MB: sum over all nodes.{goal}"
    return table


def times_table(results: Results) -> Table | None:
    """Return a table with the seconds to the target accuracy on each network; None if there is no target."""
    target = results.target_accuracy
    if target is None:
        return None
    table = _table(f"Seconds to {target:.1%} accuracy (in brackets: as a multiple of Solon's)", "attack", "strategy")
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
    """Return a table of the computation and seconds of a round: means over the rounds."""
    table = _table("Computation and seconds of a round (means)", "attack", "strategy")
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
    table.caption = (
        "referee in all: how often it computed a group's batches in the whole run. These are among the batches of all."
    )
    return table


def _table(title: str, *names: str) -> Table:
    """Return a table that begins with columns of names, and is narrow enough for more columns in 80 characters."""
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading in names:
        table.add_column(heading, no_wrap=True)
    return table


def _names(cell: Cell) -> tuple[str, str]:
    return _broken(cell.attack or NO_ATTACK), _broken(strategy_named(cell.strategy).title)


def _broken(name: str) -> str:
    """Return a name, broken into two lines if it is the user's own or long."""
    if is_own(name):
        return name.replace(":", ":\n")
    return name.replace("-", "-\n", 1) if len(name) > 10 else name


def _survival(results: Results, cell: Cell | None) -> str:
    if cell is None:
        return "[dim]not yet[/]"
    if cell.outcome is None:
        return "[dim]not\npossible[/]"
    style = VERDICT_STYLES[results.verdict(cell)] if cell.attack or cell.error else "none"
    below = "aborted" if cell.error else cell.outcome.model_sha256[:SHOWN_DIGITS]
    return f"[{style}]{_accuracy(cell)}[/]\n[dim]{below}[/]"


def _accuracy(cell: Cell | None) -> str:
    return f"{cell.accuracies[-1]:.1%}" if cell is not None and cell.accuracies else "-"


def _to_target(results: Results, cell: Cell, network: Network) -> str:
    target = results.target_accuracy
    return "-" if target is None else show_seconds(cell.seconds_to(target, network, results.batch_seconds))


def _ends_section(results: Results, cell: Cell) -> bool:
    return cell.strategy == results.comparison.strategies[-1]


def show_seconds(seconds: float | None) -> str:
    """Return seconds as text with three digits, or a dash for never."""
    return "-" if seconds is None else f"{seconds:.3g}" if seconds < 1000 else f"{seconds:,.0f}"
