"""The tables of a plan, for a terminal of 80 columns."""

from collections.abc import Collection
from itertools import islice
from typing import get_args

from rich import box
from rich.table import Table

from solon_fl.config import DownlinkName
from solon_fl.simulations.plan.choices import Baseline, Choice, Plan
from solon_fl.simulations.plan.rounding import short
from solon_fl.simulations.plan.sentences import MARGIN, name_of

__all__ = ["candidates_tables", "choices_table", "plain_table", "worth_showing"]

FASTEST_SHOWN = 5
HOW_SENT: dict[DownlinkName, str] = {
    "full": "Nodes receive the whole model (downlink='full')",
    "delta": "Nodes receive patches of the model (downlink='delta')",
}
STAR = (
    "*: recommended, the fastest row that recovers the exact gradient despite s liars in every group. A row of Solon "
    f"with fewer options is preferred if it is within {100 * (MARGIN - 1):.0f} % of Solon's fastest. "
)
UNITS = (
    "r: batches that a node computes. k: a node sends 1/k of the gradient. MB: to and from each node that is asked. "
    "GB: over the server's link."
)


def plain_table(title: str, *, caption: str | None = None) -> Table:
    """Return an empty table in the style of a plan."""
    return Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def worth_showing(planned: Plan, use: Choice | Baseline | None) -> tuple[Choice, ...]:
    """Return the choices worth showing of the recommended variant, or of the best one if none is recommended.

    These are the best choice of every group size and the fastest few, without void ones.
    """
    variant = (use if isinstance(use, Choice) else planned.best).variant
    sound = [choice for choice in planned.choices if choice.variant == variant and not choice.is_void]
    best_of_size = {choice.group_size: choice for choice in reversed(sound)}
    rows = dict.fromkeys((*best_of_size.values(), *islice(sound, FASTEST_SHOWN)))
    return tuple(sorted(rows, key=lambda choice: (choice.seconds.total, choice.group_size)))


def candidates_tables(planned: Plan, use: Choice | Baseline | None) -> list[Table]:
    """Return a table for each downlink, with all baselines and the best choice of every variant.

    Parameters
    ----------
    planned : Plan
        A plan with the choices to compare.
    use : Choice, Baseline or None
        The recommended row, which is marked.
    """
    tables = []
    for downlink in get_args(DownlinkName):
        rows: list[Choice | Baseline] = [row for row in planned.baselines if row.downlink == downlink]
        rows += [row for row in planned.best_of_each_variant().values() if row.downlink == downlink]
        if not rows:
            continue
        table = plain_table(f"\n{HOW_SENT[downlink]}: seconds per round")
        table.add_column("", overflow="fold")
        table.add_column("tolerated\nliars", no_wrap=True)
        _add_columns(table, "r", "k")
        _add_cost_columns(table)
        for row in rows:
            marked, style = ("* ", "bold green") if row is use else ("", "")
            tolerated = f"{row.byzantine} a group" if isinstance(row, Choice) else row.tolerates
            compression = str(row.compression) if isinstance(row, Choice) else ""
            table.add_row(
                marked + name_of(row), tolerated, str(row.batches_per_node), compression, *_costs(row), style=style
            )
        tables.append(table)
    tables[-1].caption = (STAR if use is not None else "") + UNITS
    return tables


def choices_table(planned: Plan, shown: Collection[Choice], use: Choice | Baseline | None) -> Table:
    """Return a table of choices and what a round of each costs. The recommended one is marked."""
    load = planned.workload
    uniform = len({choice.variant for choice in shown}) == 1
    title = f"P = {load.num_nodes}, s = {load.byzantine}, d = {load.dim:,}, {load.network.name}"
    if uniform:
        first = next(iter(shown))
        title = f"{name_of(first)}, downlink='{first.downlink}': other r and k ({title})"
    caption = "asked: nodes per group that compute. certificate: proved bound on the gradient's relative error"
    caption += "; void: no such guarantee." if any(choice.is_void for choice in shown) else "."
    table = plain_table(f"\n{title}", caption=caption)
    table.add_column("", no_wrap=True)
    if not uniform:
        table.add_column("variant", overflow="fold")
    _add_columns(table, "r", "k", "asked")
    _add_cost_columns(table)
    _add_columns(table, "certi-\nficate")
    for choice in shown:
        void = choice.is_void
        delta = " delta" if choice.downlink == "delta" else ""
        table.add_row(
            "*" if choice is use else "",
            *(() if uniform else (name_of(choice) + delta,)),
            *(str(choice.group_size), str(choice.compression), str(choice.asked_per_group)),
            *_costs(choice),
            "void" if void else f"{choice.certificate:.0e}" if choice.certificate else "exact",
            style="bold green" if choice is use else "dim" if void else "",
        )
    return table


def _add_columns(table: Table, *headings: str) -> None:
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)


def _add_cost_columns(table: Table) -> None:
    _add_columns(table, "MB\ndown", "MB\nup", "GB", "com-\npute", "trans-\nfer", "ser-\nver", "total")


def _costs(row: Choice | Baseline) -> tuple[str, ...]:
    seconds = row.seconds
    parts = (seconds.computation, seconds.transfer, seconds.server, seconds.total)
    traffic = (row.bytes_to_node / 1e6, row.bytes_per_node / 1e6, (row.bytes_out + row.bytes_in) / 1e9)
    return tuple(map(short, (*traffic, *parts)))
