"""What `solon-fl plan` says of digests and reactive redundancy."""

from rich import box
from rich.table import Table

from solon_fl.cli.terminal import short
from solon_fl.simulations.plan.planner import Choice, Plan

__all__ = ["presupposed", "variants_sentence", "variants_table"]

SAME_BITS = (
    "Digests presuppose nodes that compute the same bits: the same hardware, software and number of threads (where "
    "they don't, a group fails unless r >= 2 s + e + k)."
)
RARE_FAULTS = (
    "Reactive redundancy presupposes that faults are rare: a round with one takes its computation twice, and sends "
    "what full redundancy sends. Its rows hold for rounds without."
)


def variants_table(everything: Plan) -> Table:
    """Return a table of the best choice with and without digests, and with full and reactive redundancy.

    Computations are those of all nodes, as a multiple of no defence's.

    Parameters
    ----------
    everything : Plan
        With verification and redundancy "any".
    """
    table = Table(
        title="What digests and reactive redundancy would bring",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
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


def variants_sentence(everything: Plan) -> str:
    """Return which of all choices is cheapest in seconds, which in computation, and what they presuppose."""
    best, thriftiest = everything.best, everything.thriftiest
    seconds = f"{short(best.seconds.total)} s a round"
    if thriftiest == best:
        cheapest = f"[bold]Cheapest in seconds and in computation: {_name(best)}[/], {seconds}"
    else:
        cheapest = (
            f"[bold]Cheapest in seconds: {_name(best)}[/], {seconds}; "
            f"[bold]in computation: {_name(thriftiest)}[/], {short(thriftiest.seconds.total)} s"
        )
    times = short(thriftiest.computations / thriftiest.num_nodes)
    return f"{cheapest} and {times} times the computations of no defence. {SAME_BITS} {RARE_FAULTS}"


def presupposed(choice: Choice) -> list[str]:
    """Return a sentence for everything that a choice presupposes."""
    sentences = []
    if choice.verification == "digest":
        sentences.append(SAME_BITS)
    if choice.redundancy == "reactive":
        times = short(choice.computations / choice.num_nodes)
        sentences.append(
            f"{choice.asked_per_group} of the {choice.group_size} nodes of a group are asked, so that all nodes "
            f"together compute {times} times what no defence does. {RARE_FAULTS}"
        )
    return sentences


def _name(choice: Choice) -> str:
    """Return a choice in words."""
    redundancy = f"{choice.redundancy} redundancy"
    digests = " with digests" if choice.verification == "digest" else ""
    return f"{redundancy}{digests} (r = {choice.group_size}, k = {choice.compression})"
