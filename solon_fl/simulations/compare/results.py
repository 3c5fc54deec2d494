"""The runs of a comparison: their numbers, and verdicts that compare them."""

from collections.abc import Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Literal

from solon_fl.simulations.compare.comparison import REFERENCE, Comparison
from solon_fl.simulations.network import Network, RoundSeconds, round_seconds
from solon_fl.simulations.run import Outcome, RoundRecord, strategy_named

__all__ = ["Cell", "Results", "Verdict"]

Verdict = Literal["survived", "harmed", "broken"]
HARMED_BELOW = 0.02  # loss of accuracy, 0..1
SLOW = 2.0  # times as long as the fastest run of a strategy: more is not due to the strategy
LEAST_DELAY = 0.01  # seconds; a smaller difference may be chance
BROKEN_BELOW = 0.5  # lost part of the accuracy that training gains


@dataclass(frozen=True)
class Cell:
    """One strategy under one attack: the outcome of the run, or the reason why there is none.

    Attributes
    ----------
    strategy : str
        A key of `STRATEGIES`, or the user's own.
    attack : str or None
        A key of `ATTACKS`, the user's own, or None.
    outcome : Outcome or None
        The outcome, as loaded from its file. None if the run is impossible.
    refusal : str or None
        Why the run is impossible.
    slowdown : float
        How many times as long the server took as in the fastest run of the same strategy, if that is more than 2 and
        cannot be due to the attack; else 1.
    """

    strategy: str
    attack: str | None
    outcome: Outcome | None = None
    refusal: str | None = None
    slowdown: float = field(default=1.0, compare=False)

    @property
    def records(self) -> tuple[RoundRecord, ...]:
        """One record for each round, that of the untrained model first."""
        return () if self.outcome is None else tuple(self.outcome.records)

    @property
    def error(self) -> str | None:
        """Why the run broke off; None if it did not."""
        return None if self.outcome is None else self.outcome.error

    @cached_property
    def accuracies(self) -> list[float]:
        """See `Outcome.accuracies`."""
        return [] if self.outcome is None else self.outcome.accuracies

    @property
    def liars(self) -> Set[int]:
        """Numbers of the nodes that lie."""
        return frozenset() if self.outcome is None else self.outcome.liars

    @cached_property
    def named(self) -> Set[int]:
        """See `Outcome.named`."""
        return frozenset() if self.outcome is None else self.outcome.named

    @cached_property
    def silent(self) -> Set[int]:
        """See `Outcome.silent`."""
        return frozenset() if self.outcome is None else self.outcome.silent

    @property
    def bytes_sent(self) -> float:
        """See `Outcome.bytes_sent`."""
        return 0.0 if self.outcome is None else self.outcome.bytes_sent

    @property
    def bytes_out(self) -> float:
        """See `Outcome.bytes_out`."""
        return 0.0 if self.outcome is None else self.outcome.bytes_out

    @property
    def server_seconds(self) -> float:
        """See `Outcome.server_seconds`."""
        return 0.0 if self.outcome is None else self.outcome.server_seconds

    @property
    def timing_doubts(self) -> tuple[str, ...]:
        """Why the server's seconds may be wrong; see `Outcome.timing_doubts`."""
        doubts = () if self.outcome is None else self.outcome.timing_doubts
        if self.slowdown > 1:
            doubts += (f"the server took {self.slowdown:.2g} times as long as in another run of this strategy",)
        return doubts

    @property
    def timings_scatter(self) -> bool:
        """Whether there are `timing_doubts`."""
        return bool(self.timing_doubts)

    @property
    def batches_per_node(self) -> int:
        """Batches that the busiest node computes in a round."""
        return 0 if self.outcome is None else self.outcome.batches_per_node

    @property
    def batches_of_all(self) -> float:
        """See `Outcome.batches_of_all`."""
        return 0.0 if self.outcome is None else self.outcome.batches_of_all

    @property
    def nodes_asked(self) -> float:
        """See `Outcome.nodes_asked`."""
        return 0.0 if self.outcome is None else self.outcome.nodes_asked

    @property
    def referee_computations(self) -> int:
        """See `Outcome.referee_computations`."""
        return 0 if self.outcome is None else self.outcome.referee_computations

    @property
    def has_referee(self) -> bool:
        """See `Outcome.has_referee`."""
        return self.outcome is not None and self.outcome.has_referee

    def round_times(self, network: Network, batch_seconds: float) -> list[RoundSeconds]:
        """Return the duration of each round on a network.

        In a round in which resting nodes had to be asked, these computed after the others. A referee computes after
        all nodes, and one group after the other.
        """
        return [
            round_seconds(
                network,
                num_nodes=max(1, report.nodes_asked),
                batches_per_node=self.batches_per_node * (2 if report.escalated_groups else 1),
                batch_seconds=batch_seconds,
                bytes_out=report.bytes_out,
                bytes_in=report.bytes_in,
                server_seconds=report.server_seconds,
                waited=record.waited,
                batches_of_referee=self.batches_per_node * report.referee_computations,
            )
            for record in self.records
            if (report := record.report) is not None
        ]

    def mean_round(self, network: Network, batch_seconds: float) -> float | None:
        """Return the mean seconds of a round on a network; None if there was no round."""
        times = [seconds.total for seconds in self.round_times(network, batch_seconds)]
        return fmean(times) if times else None

    def clock(self, network: Network, batch_seconds: float) -> list[float]:
        """Return the seconds from the start to the end of each round; 0.0 for the untrained model."""
        times = [0.0]
        for seconds in self.round_times(network, batch_seconds):
            times.append(times[-1] + seconds.total)
        return times

    def rounds_to(self, accuracy: float) -> int | None:
        """Return the first round that reaches this accuracy; None if none does."""
        return next((number for number, reached in enumerate(self.accuracies) if reached >= accuracy), None)

    def seconds_to(self, accuracy: float, network: Network, batch_seconds: float) -> float | None:
        """Return the seconds until this accuracy is reached; None if it never is."""
        number = self.rounds_to(accuracy)
        return None if number is None else self.clock(network, batch_seconds)[number]


@dataclass(frozen=True, kw_only=True)
class Results:
    """A comparison and its finished cells.

    Attributes
    ----------
    comparison : Comparison
        The comparison.
    cells : tuple of Cell
        The finished cells, in the comparison's order.
    batch_seconds : float
        Seconds that a node takes for one batch, given or measured.
    """

    comparison: Comparison
    cells: tuple[Cell, ...]
    batch_seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", tuple(self._with_slowdown(cell) for cell in self.cells))

    def _with_slowdown(self, cell: Cell) -> Cell:
        """Return the cell with its slowdown, compared with runs of its strategy in which the server did as much."""
        if strategy_named(cell.strategy).client in ("solon", "draco"):  # decoding takes longer if there are lies
            return cell
        same = (other.server_seconds for other in self.cells if other.strategy == cell.strategy)
        quickest = min((seconds for seconds in same if seconds), default=0.0)
        slow = cell.server_seconds > SLOW * quickest and cell.server_seconds - quickest > LEAST_DELAY
        slowdown = cell.server_seconds / quickest if slow else 1.0
        return cell if cell.slowdown == slowdown else replace(cell, slowdown=slowdown)

    def cell(self, strategy: str, attack: str | None) -> Cell | None:
        """Return a cell, if it is finished."""
        return next((c for c in self.cells if (c.strategy, c.attack) == (strategy, attack)), None)

    @cached_property
    def reference(self) -> Cell | None:
        """The attack-free run to compare with: that of FedAvg, or of the first strategy that has one."""
        candidates = [REFERENCE, *self.comparison.strategies]
        found = (self.cell(strategy, None) for strategy in candidates)
        return next((cell for cell in found if cell is not None and cell.accuracies), None)

    @property
    def target_accuracy(self) -> float | None:
        """The accuracy at which times are compared; None if it is not given and there is no reference."""
        if self.comparison.target_accuracy is not None:
            return self.comparison.target_accuracy
        return None if self.reference is None else 0.95 * self.reference.accuracies[-1]

    def verdict(self, cell: Cell) -> Verdict | None:
        """Return "survived", "harmed" or "broken"; None without an attack or without a run to compare with.

        The run is compared with the attack-free run of the same strategy, or with the reference if there is none. It is
        harmed if its final accuracy is more than 2 points lower. It is broken if it also loses more than half of what
        training gains, or if it broke off.
        """
        if cell.outcome is None:
            return None
        if cell.error is not None or not cell.accuracies:
            return "broken"
        own = self.cell(cell.strategy, None)
        unharmed = own if own is not None and own.accuracies else self.reference
        if unharmed is None or cell.attack is None:
            return None
        start, end = unharmed.accuracies[0], unharmed.accuracies[-1]
        if end <= start:
            return None  # nothing was learnt, so nothing can be lost
        lost = round(end - cell.accuracies[-1], 9)  # without float noise, so that two points are exactly 0.02
        if lost <= HARMED_BELOW:
            return "survived"
        return "broken" if lost > round(BROKEN_BELOW * (end - start), 9) else "harmed"

    def speed(self, cell: Cell | None, network: Network) -> float | None:
        """Return the time of a run to the target accuracy, as a multiple of Solon's under the same attack."""
        target = self.target_accuracy
        if target is None or cell is None or cell.outcome is None:
            return None
        solon = self.cell("solon", cell.attack)
        if solon is None or solon.outcome is None:
            return None
        own, other = (c.seconds_to(target, network, self.batch_seconds) for c in (solon, cell))
        return None if not own or other is None else other / own
