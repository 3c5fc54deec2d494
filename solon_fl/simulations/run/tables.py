"""Tables about one run, for the terminal."""

from collections.abc import Mapping

from rich.table import Table

from solon_fl.simulations.run.outcome import Outcome

__all__ = ["KIND_LABELS", "offences_table"]

KIND_LABELS = {
    "lying": "lying",
    "different": "other bits",
    "suspected": "suspected",
    "silent": "silent or late",
    "malformed": "malformed",
}


def offences_table(outcome: Outcome) -> Table:
    """Return a table of the nodes that were named, beside those that really lied."""
    config = outcome.scenario.config
    table = Table(title="Nodes named by the server", title_justify="left")
    for heading in ("node", "group", "slot", "named in", "as", "really lies"):
        table.add_column(heading, justify="left" if heading in ("as", "really lies") else "right")
    rounds = max(len(outcome.records) - 1, 0)
    for number in sorted(set(outcome.offences) | outcome.liars):
        kinds: Mapping[str, int] = outcome.offences.get(number, {})
        named = sum(kinds.values())
        named_as = [KIND_LABELS[kind] for kind in kinds] + ["convicted"] * (number in outcome.convicted)
        truth = "[red]yes[/]" if number in outcome.liars else "[yellow]no[/]"
        table.add_row(
            str(number),
            *(["-", "-"] if config.regroup == "round" else map(str, divmod(number, config.group_size))),
            f"{named} of {rounds} rounds",
            ", ".join(named_as) or "[dim]never named[/]",
            truth,
        )
    return table
