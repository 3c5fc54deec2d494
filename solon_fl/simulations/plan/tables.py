"""The tables of a plan, for a terminal of 80 columns."""

from collections.abc import Collection
from itertools import islice
from typing import get_args

from rich import box
from rich.table import Table

from solon_fl.config import DownlinkName
from solon_fl.simulations.plan.choices import Baseline, Choice, Plan
from solon_fl.simulations.plan.rounding import short
from solon_fl.simulations.plan.sentences import name_of

__all__ = ["candidates_tables", "choices_table", "plain_table", "worth_showing"]

FASTEST_SHOWN = 5
HOW_SENT: dict[DownlinkName, str] = {
    "full": "Nodes are sent the whole model (downlink='full')",
    "delta": "Nodes are sent patches of the model (downlink='delta')",
}


def plain_table(title: str, *, caption: str | None = None) -> Table:
    """Return an empty table as all of a plan look."""
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
    """Return what else there is in the variant that is recommended (or, if none is, in the best).

    That is the best choice of every group size and the fastest few of all, without those that are void.
    """
    variant = (use if isinstance(use, Choice) else planned.best).variant
    sound = [choice for choice in planned.choices if choice.variant == variant and not choice.is_void]
    best_of_size = {choice.group_size: choice for choice in reversed(sound)}
    rows = dict.fromkeys((*best_of_size.values(), *islice(sound, FASTEST_SHOWN)))
    return tuple(sorted(rows, key=lambda choice: (choice.seconds.total, choice.group_size)))


def candidates_tables(planned: Plan, use: Choice | Baseline | None) -> list[Table]:
    """Return a table of all baselines and the best choice of every variant, for each way to send the model.

    Parameters
    ----------
    planned : Plan
        With the choices to compare.
    use : Choice, Baseline or None
        What is recommended: it is marked.
    """
    tables = []
    for downlink in get_args(DownlinkName):
        rows: list[Choice | Baseline] = [row for row in planned.baselines if row.downlink == downlink]
        rows += [row for row in planned.best_of_each_variant().values() if row.downlink == downlink]
        if not rows:
            continue
        table = plain_table(f"\n{HOW_SENT[downlink]}: seconds a round")
        table.add_column("", overflow="fold")
        table.add_column("liars\nborne", no_wrap=True)
        _add_columns(table, "r", "k")
        _add_cost_columns(table)
        for row in rows:
            marked, style = ("* ", "bold green") if row is use else ("", "")
            borne = f"{row.byzantine} a group" if isinstance(row, Choice) else row.tolerates
            compression = str(row.compression) if isinstance(row, Choice) else ""
            table.add_row(
                marked + name_of(row), borne, str(row.batches_per_node), compression, *_costs(row), style=style
            )
        tables.append(table)
    tables[-1].caption = "r: batches a node computes. MB: of a node that is asked. GB: over the server's link."
    return tables


def choices_table(planned: Plan, shown: Collection[Choice], use: Choice | Baseline | None) -> Table:
    """Return a table of choices with what a round of each costs; the one recommended is marked."""
    load = planned.workload
    uniform = len({choice.variant for choice in shown}) == 1
    title = f"P = {load.num_nodes}, s = {load.byzantine}, d = {load.dim:,}, {load.network.name}"
    if uniform:
        first = next(iter(shown))
        title = f"{name_of(first)}, downlink='{first.downlink}': other r and k ({title})"
    table = plain_table(f"\n{title}")
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
