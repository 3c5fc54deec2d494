"""The tables of a plan, for a terminal of 80 columns."""

from collections.abc import Collection
from itertools import islice

from rich import box
from rich.table import Table

from solon_fl.simulations.plan.choices import Baseline, Choice, Plan
from solon_fl.simulations.plan.rounding import short

__all__ = ["baselines_table", "choices_table", "is_plain", "plain_table", "variants_table", "worth_showing"]

FASTEST_SHOWN = 5


def plain_table(title: str) -> Table:
    """Return an empty table as all of a plan look."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def worth_showing(planned: Plan) -> tuple[Choice, ...]:
    """Return the best choice of every group size and the fastest few of all, without those that are void."""
    fastest = islice((choice for choice in planned.choices if not choice.is_void), FASTEST_SHOWN)
    rows = dict.fromkeys((*planned.best_of_each_size(), *fastest))
    return tuple(sorted(rows, key=lambda choice: (choice.seconds.total, choice.group_size)))


def is_plain(choices: Collection[Choice]) -> bool:
    """Return whether no choice has digests or reactive redundancy."""
    return all((choice.verification, choice.redundancy) == ("algebra", "full") for choice in choices)


def choices_table(planned: Plan, shown: Collection[Choice]) -> Table:
    """Return a table of choices with what a round of each costs; the best is marked."""
    best, load = planned.best, planned.workload
    plain = is_plain(shown)
    table = plain_table(
        f"Seconds a round (P = {load.num_nodes}, s = {best.byzantine}, d = {load.dim:,}, {load.network.name})"
    )
    for heading in ("", "r", "k", *(("groups",) if plain else ("di-\ngests", "asked"))):
        table.add_column(heading, justify="right", no_wrap=True)
    _add_cost_columns(table)
    table.add_column("certi-\nficate", justify="right", no_wrap=True)
    for choice in shown:
        void = choice.is_void
        digests = "yes" if choice.verification == "digest" else "no"
        table.add_row(
            "*" if choice is best else "",
            str(choice.group_size),
            str(choice.compression),
            *((str(choice.num_groups),) if plain else (digests, str(choice.asked_per_group))),
            *_costs(choice),
            "void" if void else f"{choice.certificate:.0e}" if choice.certificate else "exact",
            style="bold green" if choice is best else "dim" if void else "",
        )
    return table


def baselines_table(planned: Plan) -> Table:
    """Return a table of what a round costs without Solon."""
    table = plain_table("For comparison")
    table.add_column("", no_wrap=True)
    table.add_column("liars\ntolerated")
    _add_cost_columns(table)
    for baseline in planned.baselines:
        table.add_row(baseline.name, baseline.tolerates, *_costs(baseline))
    return table


def variants_table(everything: Plan) -> Table:
    """Return a table of the best choice with and without digests, and with full and reactive redundancy.

    Computations are those of all nodes, as a multiple of no defence's.

    Parameters
    ----------
    everything : Plan
        With verification and redundancy "any".
    """
    table = plain_table("What digests and reactive redundancy would bring")
    table.add_column("verification", no_wrap=True)
    table.add_column("redundancy", no_wrap=True)
    for heading in ("r", "k", "asked\nof r", "seconds\na round", "MB to\nnodes", "MB to\nserver", "compu-\ntations"):
        table.add_column(heading, justify="right", no_wrap=True)
    for choice in everything.best_of_each_variant().values():
        table.add_row(
            choice.verification,
            choice.redundancy,
            str(choice.group_size),
            str(choice.compression),
            str(choice.asked_per_group),
            short(choice.seconds.total),
            short(choice.bytes_out / 1e6),
            short(choice.bytes_in / 1e6),
            f"{short(choice.computations / choice.num_nodes)} x",
        )
    return table


def _add_cost_columns(table: Table) -> None:
    for heading in ("batches\na node", "MB a\nnode", "com-\npute", "trans-\nfer", "server", "total"):
        table.add_column(heading, justify="right", no_wrap=True)


def _costs(row: Choice | Baseline) -> tuple[str, ...]:
    seconds = row.seconds
    parts = (seconds.computation, seconds.transfer, seconds.server, seconds.total)
    return (str(row.batches_per_node), short(row.bytes_per_node / 1e6), *map(short, parts))
