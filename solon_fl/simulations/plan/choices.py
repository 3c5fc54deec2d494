"""The rows of a plan: what can be chosen, what it costs, and which rows are best."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import get_args

from solon_fl.coding import RealCode
from solon_fl.coding.real.decoder import locates_every_lie, worst_relative_error
from solon_fl.coding.real.projection import NOISE_MARGIN, UNDERESTIMATE
from solon_fl.config import (
    EARLY_ERROR,
    CodeName,
    DownlinkName,
    Redundancy,
    SolonConfig,
    Verification,
    make_code,
    num_agreeing,
)
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.network import RoundSeconds
from solon_fl.simulations.plan.server_time import Kind
from solon_fl.simulations.plan.workload import Workload

__all__ = ["Baseline", "Choice", "Plan", "Variant", "nodes_asked"]

Variant = tuple[Verification, Redundancy, DownlinkName]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One admissible pair of group_size and compression in one variant of Solon.

    Attributes
    ----------
    num_nodes, byzantine, stragglers, group_size, compression, code, rtol, verification, redundancy, downlink, referee
        Fields of the `SolonConfig`.
    bytes_out, bytes_in : int
        Bytes to and from all nodes that are asked in a round. With downlink "delta", in any round but the first.
    seconds : RoundSeconds
        Duration of a round in which every node that is asked replies and, with redundancy "reactive", none of them
        lies.
    seconds_if_woken : float
        Duration of a round in which all groups must also ask their nodes at rest. With redundancy "full", that of any
        round.
    seconds_if_asked : float or None
        Duration of such a round in which the referee is also asked about one group. None if there is no referee.
    """

    num_nodes: int
    byzantine: int
    stragglers: int
    group_size: int
    compression: int
    code: CodeName
    rtol: float
    verification: Verification = "algebra"
    redundancy: Redundancy = "full"
    downlink: DownlinkName = "full"
    referee: bool = False
    bytes_out: int
    bytes_in: int
    seconds: RoundSeconds
    seconds_if_woken: float
    seconds_if_asked: float | None = None

    @property
    def variant(self) -> Variant:
        """Verification, redundancy and downlink."""
        return self.verification, self.redundancy, self.downlink

    @property
    def num_groups(self) -> int:
        """Number of groups, P / r."""
        return self.num_nodes // self.group_size

    @property
    def asked_per_group(self) -> int:
        """Nodes of a group that compute: r, or with redundancy "reactive" as many as are enough if they agree."""
        return nodes_asked(
            self.verification, self.redundancy, self.byzantine, self.compression, self.stragglers, self.group_size
        )

    @property
    def num_asked(self) -> int:
        """Nodes of all groups that compute."""
        return self.num_groups * self.asked_per_group

    @property
    def batches_per_node(self) -> int:
        """Batches that each node that is asked computes in a round: r."""
        return self.group_size

    @property
    def computations(self) -> int:
        """Batches that all nodes together compute in a round, each counted as often as it is computed."""
        return self.num_asked * self.batches_per_node

    @property
    def bytes_per_node(self) -> int:
        """Bytes that each node that is asked sends in a round."""
        return self.bytes_in // self.num_asked

    @property
    def bytes_to_node(self) -> int:
        """Bytes that each node that is asked receives in a round."""
        return self.bytes_out // self.num_asked

    @property
    def certificate(self) -> float:
        """`Decoder.certificate` of the run. The first access computes it, which can take a second."""
        return self._relative_error(UNDERESTIMATE * NOISE_MARGIN)

    def _relative_error(self, residual: float) -> float:
        return _relative_error(self.code, self.group_size, self.compression, self.rtol, residual)

    @property
    def is_void(self) -> bool:
        """Whether the choice can't be recommended.

        A choice is void in three cases:

        - The certificate is 1 or more, so that it promises nothing.
        - Liars could make a decode fail to locate anybody, and there is no referee.
        - Redundancy is "reactive", but more than `asked_per_group` nodes must be asked, because the shares of so few do
          not bound the error by ``EARLY_ERROR``.
        """
        if self.code == "exact":
            return False
        if self.certificate >= 1 or not (self.referee or locates_every_lie(self.group_size, self.compression)):
            return True
        by_algebra = self.redundancy == "reactive" and self.verification == "algebra"
        return by_algebra and self._relative_error(NOISE_MARGIN) > EARLY_ERROR

    def config(self) -> SolonConfig:
        """Return the configuration to run."""
        return SolonConfig(
            num_nodes=self.num_nodes,
            byzantine=self.byzantine,
            compression=self.compression,
            stragglers=self.stragglers,
            group_size=self.group_size,
            code=self.code,
            rtol=self.rtol,
            verification=self.verification,
            redundancy=self.redundancy,
            downlink=self.downlink,
            referee=self.referee,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a round costs without Solon.

    Attributes
    ----------
    name : str
        "no defence", "signum", "multikrum", "bulyan", "draco-cyclic" or "draco-repetition".
    tolerates : str
        How many liars it tolerates, in words.
    downlink : "full" or "delta"
        How nodes receive the model.
    num_nodes : int
        P, the number of nodes.
    group_size : int
        Nodes of the largest group.
    batches_per_node : int
        Batches of the node that computes most.
    bytes_out, bytes_in : int
        Bytes to and from all nodes in a round.
    seconds : RoundSeconds
        Duration of a round in which every node replies.
    """

    name: Kind
    tolerates: str
    num_nodes: int
    group_size: int
    batches_per_node: int
    downlink: DownlinkName = "full"
    bytes_out: int
    bytes_in: int
    seconds: RoundSeconds

    @property
    def is_exact(self) -> bool:
        """Whether it recovers the exact gradient as long as no more nodes lie than it tolerates."""
        return self.name in ("draco-cyclic", "draco-repetition")

    @property
    def num_asked(self) -> int:
        """Nodes that compute: all."""
        return self.num_nodes

    @property
    def bytes_per_node(self) -> int:
        """Bytes that a node sends in a round."""
        return self.bytes_in // self.num_nodes

    @property
    def bytes_to_node(self) -> int:
        """Bytes that a node receives in a round."""
        return self.bytes_out // self.num_nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All choices for a workload, and the baselines to compare them with.

    Attributes
    ----------
    workload : Workload
        What the plan is for.
    choices : tuple of Choice
        All admissible choices, the shortest round first.
    baselines : tuple of Baseline
        The baselines.
    """

    workload: Workload
    choices: tuple[Choice, ...]
    baselines: tuple[Baseline, ...]

    @property
    def best(self) -> Choice:
        """The choice with the shortest round among those that are not void.

        Raises
        ------
        ConfigurationError
            If all choices are void.
        """
        return self._first(self.choices)

    @property
    def thriftiest(self) -> Choice:
        """The choice with the fewest computations among those that are not void, and of these the shortest round.

        Raises
        ------
        ConfigurationError
            If all choices are void.
        """
        return self._first(sorted(self.choices, key=lambda choice: (choice.computations, choice.seconds.total)))

    def best_of_each_variant(self) -> dict[Variant, Choice]:
        """Return the best choice of every variant of Solon in the plan that has one."""
        options = [get_args(kind) for kind in (Verification, Redundancy, DownlinkName)]
        best = {}
        for variant in itertools.product(*options):
            of_variant = (choice for choice in self.choices if choice.variant == variant)
            if (first := next((choice for choice in of_variant if not choice.is_void), None)) is not None:
                best[first.variant] = first
        return best

    def baseline(self, name: Kind) -> Baseline | None:
        """Return the fastest way to run a baseline, or None if it needs more nodes."""
        rows = (baseline for baseline in self.baselines if baseline.name == name)
        return min(rows, key=lambda baseline: baseline.seconds.total, default=None)

    def _first(self, choices: Iterable[Choice]) -> Choice:
        for choice in choices:
            if not choice.is_void:
                return choice
        least = min(self.choices, key=lambda choice: choice.certificate)
        raise ConfigurationError(
            f"a certificate must be below 1; the least of all choices is {least.certificate:.1e}, at "
            f"group_size={least.group_size}, compression={least.compression}, rtol={least.rtol:g}; "
            "lower rtol (with float64 shares) or byzantine."
        )

    def best_of_each_size(self) -> tuple[Choice, ...]:
        """Return the best choice of every group size that has one, the smallest first."""
        best: dict[int, Choice] = {}
        for choice in self.choices:
            if choice.group_size not in best and not choice.is_void:
                best[choice.group_size] = choice
        return tuple(best[size] for size in sorted(best))

    def break_even(self, *baselines: Baseline) -> float:
        """Return the factor on all rates of the network below which some choice is faster than all these baselines.

        The choice is not void, and need not be `best`. The factor is 0 if no choice is faster at any rates, and inf if
        one is faster at all rates. Latency, overheads, computation and the server's seconds do not change.
        """
        factors = [
            (min(self._break_even(choice, baseline) for baseline in baselines), choice) for choice in self.choices
        ]
        factors.sort(key=lambda pair: pair[0], reverse=True)
        return next((factor for factor, choice in factors if factor == 0 or not choice.is_void), 0.0)

    def _break_even(self, choice: Choice, baseline: Baseline) -> float:
        # A round takes a + b / factor seconds, b of them on the links at factor 1.
        saved = self._seconds_on_links(baseline) - self._seconds_on_links(choice)
        paid = sum(
            sign * (row.seconds.computation + row.seconds.server + row.seconds.overhead)
            for sign, row in ((1, choice), (-1, baseline))
        )
        if paid > 0:
            return max(saved / paid, 0.0)
        return math.inf if saved > 0 or (saved == 0 > paid) else 0.0

    def _seconds_on_links(self, row: Choice | Baseline) -> float:
        network = replace(self.workload.network, latency=0.0)
        return network.transfer_seconds(num_nodes=row.num_asked, bytes_out=row.bytes_out, bytes_in=row.bytes_in)


def nodes_asked(
    verification: Verification, redundancy: Redundancy, byzantine: int, compression: int, stragglers: int, size: int
) -> int:
    """Return how many nodes of a group compute in an honest round."""
    return size if redundancy == "full" else num_agreeing(verification, byzantine, compression) + stragglers


@lru_cache(maxsize=4096)
def _relative_error(name: CodeName, group_size: int, compression: int, rtol: float, residual: float) -> float:
    code = make_code(name, group_size, compression)
    return worst_relative_error(code, rtol, residual) if isinstance(code, RealCode) else 0.0
