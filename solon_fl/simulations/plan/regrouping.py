"""What a plan says about liars among all nodes, if nodes are regrouped at random every round."""

from collections.abc import Collection
from dataclasses import dataclass

from rich.table import Table

from solon_fl.checks import check_between, check_whole
from solon_fl.simulations.plan.choices import Choice, Plan
from solon_fl.simulations.plan.overflow import MOST_ROUNDS, least_byzantine, overflow_in_run, overflow_probability
from solon_fl.simulations.plan.rounding import short_probability
from solon_fl.simulations.plan.tables import plain_table
from solon_fl.simulations.plan.workload import LARGEST_GROUP, Workload

__all__ = ["Regrouping"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrouping:
    """The liars of a run with regrouping, and the risk that is accepted.

    Attributes
    ----------
    liars : int
        b, liars among all nodes.
    rounds : int
        Rounds of the run. Each of them draws new groups.
    risk : float
        Accepted probability that some group has more than s liars in some round.

    Raises
    ------
    ConfigurationError
        If a number is out of range.
    """

    liars: int
    rounds: int = 1000
    risk: float = 1e-6

    def __post_init__(self) -> None:
        check_whole("liars", self.liars, 0)
        check_whole("rounds", self.rounds, 1, MOST_ROUNDS)
        check_between("risk", self.risk, 0, 1)

    def check(self, num_nodes: int) -> None:
        """Raise ConfigurationError if there are more liars than nodes."""
        overflow_probability(num_nodes, 1, 0, self.liars)

    def overflow(self, choice: Choice) -> tuple[float, float]:
        """Return the probability that some group has more than s liars, in a round and in the run."""
        once = overflow_probability(choice.num_nodes, choice.group_size, choice.byzantine, self.liars)
        return once, overflow_in_run(once, self.rounds)

    def least_byzantine(self, num_nodes: int, group_size: int) -> int:
        """Return the smallest s that is within the risk, whether or not groups of that size tolerate it."""
        return least_byzantine(num_nodes, group_size, self.liars, self.rounds, self.risk)

    def enough(self, planned: Plan) -> tuple[int, list[int]] | None:
        """Return the smallest s within the risk that some group size tolerates, and those sizes, or None."""
        sizes: dict[int, list[int]] = {}
        for size in range(1, LARGEST_GROUP + 1):
            if planned.workload.num_nodes % size == 0:
                least = self.least_byzantine(planned.workload.num_nodes, size)
                if planned.workload.bears(size, least):
                    sizes.setdefault(least, []).append(size)
        return (min(sizes), sizes[min(sizes)]) if sizes else None

    def table(self, workload: Workload, shown: Collection[Choice]) -> Table:
        """Return a table with a row for every group size shown. The probabilities don't depend on k."""
        table = plain_table(
            f"\n{self.liars} liars in all, regrouped every round",
            caption="The probability that some group has more than s liars, and the smallest s within the risk.",
        )
        columns = (
            "r",
            "s",
            "groups",
            "more than s\nin a round",
            f"in {self.rounds:,}\nrounds",
            "smallest s\nfor the risk",
        )
        for heading in columns:
            table.add_column(heading, justify="right", no_wrap=True)
        for size, choice in sorted({choice.group_size: choice for choice in shown}.items()):
            once, in_run = self.overflow(choice)
            least = self.least_byzantine(choice.num_nodes, size)
            table.add_row(
                str(size),
                str(choice.byzantine),
                str(choice.num_groups),
                short_probability(once),
                short_probability(in_run),
                str(least) if workload.bears(size, least) else f"[dim]{least} (needs larger r)[/]",
                style="bold green" if in_run <= self.risk else "",
            )
        return table

    def sentence(self, planned: Plan) -> str:
        """Return a sentence that says which s is enough, or that none is."""
        enough = self.enough(planned)
        if enough is None:
            return (
                f"No s that groups of up to {LARGEST_GROUP} nodes tolerate is enough: the probability that some group "
                f"gets more than s liars in {self.rounds:,} rounds stays above {self.risk:g}. Use more nodes, assume "
                "fewer liars, or accept a larger risk (--set risk=...)."
            )
        least, sizes = enough
        byzantine = planned.workload.byzantine
        then = "This plan has that s." if least == byzantine else f"Plan again with --byzantine {least}."
        fixed = (
            "Regrouping gains nothing here: fixed groups need no larger s, whichever nodes lie."
            if least == self.liars
            else f"Fixed groups need s = {self.liars} against an attacker who chooses which nodes to corrupt."
        )
        return (
            f"If nodes are regrouped every round, the smallest s that is enough is {least}, in groups of r = "
            f"{', '.join(map(str, sizes))}. The probability that some group gets more than {least} liars in "
            f"{self.rounds:,} rounds is then at most {self.risk:g} (--set risk=...). {then} {fixed}"
        )
