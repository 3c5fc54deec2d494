"""What a plan says of liars counted among all nodes, if the nodes are regrouped at random every round."""

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
    """The run asked about.

    Attributes
    ----------
    liars : int
        b, among all nodes.
    rounds : int
        Of the run; the places are drawn anew in every one.
    risk : float
        Accepted probability that in some round some group has more than s liars.

    Raises
    ------
    ConfigurationError
        If a number is out of its range.
    """

    liars: int
    rounds: int = 1000
    risk: float = 1e-6

    def __post_init__(self) -> None:
        check_whole("liars", self.liars, 0)
        check_whole("rounds", self.rounds, 1, MOST_ROUNDS)
        check_between("risk", self.risk, 0, 1)

    def check(self, num_nodes: int) -> None:
        """Raise ConfigurationError unless so many liars can be among these nodes."""
        overflow_probability(num_nodes, 1, 0, self.liars)

    def overflow(self, choice: Choice) -> tuple[float, float]:
        """Return the probability that some group has more than s liars, in a round and in the run."""
        once = overflow_probability(choice.num_nodes, choice.group_size, choice.byzantine, self.liars)
        return once, overflow_in_run(once, self.rounds)

    def least_byzantine(self, num_nodes: int, group_size: int) -> int:
        """Return the smallest s that is within the risk, whether or not groups of that size bear it."""
        return least_byzantine(num_nodes, group_size, self.liars, self.rounds, self.risk)

    def enough(self, planned: Plan) -> tuple[int, list[int]] | None:
        """Return the smallest s within the risk over all group sizes that bear it, and those sizes; None if none."""
        sizes: dict[int, list[int]] = {}
        for size in range(1, LARGEST_GROUP + 1):
            if planned.workload.num_nodes % size == 0:
                least = self.least_byzantine(planned.workload.num_nodes, size)
                if planned.workload.bears(size, least):
                    sizes.setdefault(least, []).append(size)
        return (min(sizes), sizes[min(sizes)]) if sizes else None

    def table(self, workload: Workload, shown: Collection[Choice]) -> Table:
        """Return a table with a row for every group size shown: the probabilities don't depend on k."""
        table = plain_table(f"{self.liars} liars in all, regrouped every round")
        columns = (
            "r",
            "s",
            "groups",
            "more than s\nin a round",
            f"in {self.rounds:,}\nrounds",
            "least s for\nthe risk",
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
        """Return which s will do, or that none will."""
        enough = self.enough(planned)
        if enough is None:
            return (
                f"No s that groups of up to {LARGEST_GROUP} nodes bear keeps the probability over "
                f"{self.rounds:,} rounds within {self.risk:g} (--set risk=...): use more nodes, or trust fewer."
            )
        least, sizes = enough
        byzantine = planned.workload.byzantine
        then = "as planned" if least == byzantine else f"plan again with --byzantine {least}"
        fixed = (
            "So regrouping gains nothing here: fixed groups need no larger s, whoever lies."
            if least == self.liars
            else f"Fixed groups need s = {self.liars} against an attacker who picks which nodes to corrupt."
        )
        return (
            f"Regrouped every round, s = {least} is the smallest that some group exceeds in {self.rounds:,} "
            f"rounds with a probability of at most {self.risk:g} (--set risk=...), in groups of r = "
            f"{', '.join(map(str, sizes))}: {then}. {fixed}"
        )
