"""The runs of a comparison, and what they are worth beside each other."""

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
HARMED_BELOW = 0.02  # accuracy lost, of 1
SLOW = 2.0  # times the quickest run of a strategy: more is not the strategy's doing
LEAST_DELAY = 0.01  # seconds; less may be chance
BROKEN_BELOW = 0.5  # part of what training gains that is lost


@dataclass(frozen=True)
class Cell:
    """One strategy under one attack: the outcome of the run, or why there is none.

    Attributes
    ----------
    strategy : str
        A key of `STRATEGIES`, or the user's own.
    attack : str or None
        A key of `ATTACKS`, the user's own, or None.
    outcome : Outcome or None
        As its file has it; None if the run is impossible.
    refusal : str or None
        Why it is impossible.
    slowdown : float
        How many times as long the server took as in the quickest run of the same strategy, if that can't be the
        attack's doing and is more than 2; else 1.
    """

    strategy: str
    attack: str | None
    outcome: Outcome | None = None
    refusal: str | None = None
    slowdown: float = field(default=1.0, compare=False)

    @property
    def records(self) -> tuple[RoundRecord, ...]:
        """One record a round, the untrained model first."""
        return () if self.outcome is None else tuple(self.outcome.records)

    @property
    def error(self) -> str | None:
        """Why the run broke off, if it did."""
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
        """Numbers of the nodes that the server named in any round, for whatever reason; suspects are not named."""
        offences = {} if self.outcome is None else self.outcome.offences
        return frozenset(number for number, kinds in offences.items() if kinds.keys() - {"suspected"})

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
        """Why the server's seconds are not to be trusted; see `Outcome.timing_doubts`."""
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
        """Nodes that computed in a round (mean over the rounds)."""
        return 0.0 if self.outcome is None else self.outcome.nodes_asked

    @property
    def referee_computations(self) -> int:
        """See `Outcome.referee_computations`."""
        return 0 if self.outcome is None else self.outcome.referee_computations

    @property
    def has_referee(self) -> bool:
        """Whether there was a referee to ask."""
        return self.outcome is not None and self.outcome.has_referee

    def round_times(self, network: Network, batch_seconds: float) -> list[RoundSeconds]:
        """Return how long each round takes on a network.

        In a round with resting nodes that had to be asked after all, nodes computed one after the other. A referee
        computes after them, one group that it is asked about after the other.
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
        """Return the seconds of a round on a network, the mean over the rounds; None if there was none."""
        times = [seconds.total for seconds in self.round_times(network, batch_seconds)]
        return fmean(times) if times else None

    def clock(self, network: Network, batch_seconds: float) -> list[float]:
        """Return the seconds since the start after every round, 0.0 for the untrained model."""
        times = [0.0]
        for seconds in self.round_times(network, batch_seconds):
            times.append(times[-1] + seconds.total)
        return times

    def rounds_to(self, accuracy: float) -> int | None:
        """Return the first round after which the accuracy is that or more; None if there is none."""
        return next((number for number, reached in enumerate(self.accuracies) if reached >= accuracy), None)

    def seconds_to(self, accuracy: float, network: Network, batch_seconds: float) -> float | None:
        """Return the seconds until the accuracy is reached; None if it never is."""
        number = self.rounds_to(accuracy)
        return None if number is None else self.clock(network, batch_seconds)[number]


@dataclass(frozen=True, kw_only=True)
class Results:
    """A comparison and its finished cells.

    Attributes
    ----------
    comparison : Comparison
        What is to be run.
    cells : tuple of Cell
        In the comparison's order. Those that are not finished are missing.
    batch_seconds : float
        How long a node takes for one batch: given, or measured.
    """

    comparison: Comparison
    cells: tuple[Cell, ...]
    batch_seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", tuple(self._with_slowdown(cell) for cell in self.cells))

    def _with_slowdown(self, cell: Cell) -> Cell:
        """Return a cell that knows if another of its strategy, whose server had as much to do, was far quicker."""
        if strategy_named(cell.strategy).client in ("solon", "draco"):  # to decode takes longer if there are lies
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
        """The attack-free run to compare with: FedAvg's, or that of the first strategy that has one."""
        candidates = [REFERENCE, *self.comparison.strategies]
        found = (self.cell(strategy, None) for strategy in candidates)
        return next((cell for cell in found if cell is not None and cell.accuracies), None)

    @property
    def target_accuracy(self) -> float | None:
        """The accuracy to which times are compared; None if it is not given and there is no reference."""
        if self.comparison.target_accuracy is not None:
            return self.comparison.target_accuracy
        return None if self.reference is None else 0.95 * self.reference.accuracies[-1]

    def verdict(self, cell: Cell) -> Verdict | None:
        """Return what an attack did: "survived", "harmed" or "broken"; None without an attack or anything to judge by.

        The run is compared with the attack-free run of the same strategy, or with the reference if there is none. It is
        harmed if its final accuracy is more than 2 points lower. It is broken if, besides, more than half of what
        training gains is lost, or if it broke off.
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
            return None  # nothing was learnt that could be lost
        lost = round(end - cell.accuracies[-1], 9)  # two points are 0.02, not 0.02 and some float noise
        if lost <= HARMED_BELOW:
            return "survived"
        return "broken" if lost > round(BROKEN_BELOW * (end - start), 9) else "harmed"

    def speed(self, cell: Cell | None, network: Network) -> float | None:
        """Return how many times as long as Solon under the same attack a run takes to the target accuracy."""
        target = self.target_accuracy
        if target is None or cell is None or cell.outcome is None:
            return None
        solon = self.cell("solon", cell.attack)
        if solon is None or solon.outcome is None:
            return None
        own, other = (c.seconds_to(target, network, self.batch_seconds) for c in (solon, cell))
        return None if not own or other is None else other / own
