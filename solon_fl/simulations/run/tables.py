"""Tables and sentences about one run, for the terminal."""

from collections.abc import Mapping

from rich.table import Table

from solon_fl.simulations.run.outcome import Outcome

__all__ = ["KIND_LABELS", "named_sentence", "offences_table"]

MOST_ROWS = 12

KIND_LABELS = {
    "lying": "lying",
    "different": "other bits",
    "suspected": "suspected",
    "silent": "silent or late",
    "malformed": "malformed",
}


def offences_table(outcome: Outcome) -> Table:
    """Return a table of the nodes that were named and of those that lie, at most a dozen.

    Honest nodes that were named come first, then liars that were not. An honest node that was only silent or late is
    not in the table, as that is not an accusation.
    """
    config = outcome.scenario.config
    table = Table(title="Liars, and nodes named by the server", title_justify="left")
    for heading in ("node", "group", "slot", "reported in", "as", "is a liar"):
        table.add_column(heading, justify="left" if heading in ("as", "is a liar") else "right")
    rounds = max(len(outcome.records) - 1, 0)
    numbers = sorted(outcome.named | outcome.liars, key=lambda number: (_is_expected(outcome, number), number))
    if len(numbers) > MOST_ROWS:
        table.caption = f"The first {MOST_ROWS} of {len(numbers)} nodes. All are in rounds.jsonl."
    for number in numbers[:MOST_ROWS]:
        kinds: Mapping[str, int] = outcome.offences.get(number, {})
        named = sum(kinds.values())
        named_as = [KIND_LABELS[kind] for kind in kinds] + ["convicted"] * (number in outcome.convicted)
        truth = "[red]yes[/]" if number in outcome.liars else "[yellow]no[/]"
        table.add_row(
            str(number),
            *(["-", "-"] if config.regroup == "round" else map(str, divmod(number, config.group_size))),
            f"{named} of {rounds} rounds",
            ", ".join(named_as) or "[dim]never reported[/]",
            truth,
        )
    return table


def _is_expected(outcome: Outcome, number: int) -> bool:
    return number in outcome.named and number in outcome.liars


def named_sentence(outcome: Outcome) -> str:
    """Return in a sentence how many liars and honest nodes the server named, and how many nodes were silent or late."""
    liars, named = outcome.liars, outcome.named
    wrongly = len(named - liars)
    honest = f"{wrongly or 'no'} honest node{'' if wrongly in (0, 1) else 's'}"
    told = f"The server named {len(named & liars)} of {len(liars)} liar{'s' * (len(liars) > 1)} and {honest}."
    if not liars:
        told = f"No node lies, and the server named {honest}."
    silent = [kinds["silent"] for number, kinds in outcome.offences.items() if kinds["silent"] and number not in named]
    if silent:
        nodes = f"{len(silent)} node{'s were' if len(silent) > 1 else ' was'}"
        told += f" {nodes} silent or late, in up to {max(silent)} of {len(outcome.reports)} rounds."
    return told
