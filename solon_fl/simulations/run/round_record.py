"""Records of the rounds of a run, in which nodes have numbers."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from solon_fl.coding import DecodeStatus
from solon_fl.simulations.attacks import place_number
from solon_fl.simulations.run.grid import partition_of
from solon_fl.strategies import GroupReport, RoundReport
from solon_fl.strategies.reports import Asked

__all__ = ["NumberedGroup", "NumberedReferee", "NumberedReport", "RoundRecord"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedReferee:
    """A `RefereeReport` in which nodes have the numbers of `Scenario.liars`.

    Attributes
    ----------
    reason, answered, seconds
        See `RefereeReport`.
    convicted, acquitted : tuple of int
        Numbers of the nodes; see `RefereeReport`.
    """

    reason: Asked
    answered: bool
    seconds: float = 0.0
    convicted: tuple[int, ...] = ()
    acquitted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedGroup:
    """A `GroupReport` in which nodes have the numbers of `Scenario.liars`.

    Attributes
    ----------
    group, status, escalated, failed_classes
        See `GroupReport`.
    corrupt_nodes, suspect_nodes, silent_nodes, escalated_by, different_bits : tuple of int
        Numbers of the nodes; see `GroupReport`.
    malformed_nodes : dict
        The reason why the reply was malformed, by the node's number.
    residual, tolerance, error_bound : float or None
        See `Decoded`. None if there is no finite number: the group failed, or the strategy does not bound the error.
    nodes_asked : int
        Number of the group's nodes that had a task.
    referee : NumberedReferee or None
        The referee's report; None if it was not asked.
    """

    group: int
    status: str
    corrupt_nodes: tuple[int, ...] = ()
    suspect_nodes: tuple[int, ...] = ()
    silent_nodes: tuple[int, ...] = ()
    malformed_nodes: dict[int, str] = field(default_factory=dict)
    residual: float | None = None
    tolerance: float | None = None
    error_bound: float | None = None
    escalated: bool = False
    escalated_by: tuple[int, ...] = ()
    different_bits: tuple[int, ...] = ()
    failed_classes: tuple[str, ...] = ()
    nodes_asked: int
    referee: NumberedReferee | None = None

    @classmethod
    def of(cls, report: GroupReport, *, regrouped: bool) -> "NumberedGroup":
        """Number the nodes of a strategy's report by place, or by partition id if places change every round."""
        size = len(report.nodes)
        number_of = {
            node: partition_of(node) if regrouped else place_number(report.group, size, slot)
            for slot, node in enumerate(report.nodes)
            if node is not None
        }

        def numbers(nodes: Iterable[int]) -> tuple[int, ...]:
            return tuple(number_of[node] for node in nodes)

        asked = report.referee
        referee = None
        if asked is not None:
            referee = NumberedReferee(
                reason=asked.reason,
                answered=asked.answered,
                seconds=asked.seconds,
                convicted=numbers(asked.convicted),
                acquitted=numbers(asked.acquitted),
            )

        return cls(
            group=report.group,
            status=report.status,
            corrupt_nodes=numbers(report.corrupt_nodes),
            suspect_nodes=numbers(report.suspect_nodes),
            silent_nodes=numbers(report.silent_nodes),
            malformed_nodes={number_of[node]: reason for node, reason in report.malformed_nodes.items()},
            residual=_finite(report.residual),
            tolerance=_finite(report.tolerance),
            error_bound=_finite(report.error_bound),
            escalated=report.escalated,
            escalated_by=numbers(report.escalated_by),
            different_bits=numbers(report.different_bits),
            failed_classes=report.failed_classes,
            nodes_asked=len(number_of),
            referee=referee,
        )

    @property
    def decoded(self) -> bool:
        """Whether the group's gradient was recovered."""
        return self.status in (DecodeStatus.CLEAN, DecodeStatus.CORRECTED)

    def named(self) -> Iterator[tuple[int, str]]:
        """Yield the number of each reported node, and the kind of report: see `KIND_LABELS`."""
        for kind, numbers in (
            ("lying", self.corrupt_nodes),
            ("different", self.different_bits),
            ("suspected", self.suspect_nodes),
            ("silent", self.silent_nodes),
            ("malformed", self.malformed_nodes),
        ):
            for number in numbers:
                yield number, kind


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedReport:
    """A `RoundReport` in which nodes have the numbers of `Scenario.liars`.

    Attributes
    ----------
    groups : tuple of NumberedGroup
        One for each group. Strategies without groups have one for all nodes.
    round, stepped, bytes_out, bytes_in, seconds_waiting, seconds_aggregating, seconds_stepping
        See `RoundReport`.
    unprotected_training_loss : float or None
        See `RoundReport.training_loss`: it is not protected from liars. None if the strategy's nodes report no loss.
    """

    round: int
    groups: tuple[NumberedGroup, ...]
    stepped: bool
    bytes_out: int
    bytes_in: int
    seconds_waiting: float
    seconds_aggregating: float
    seconds_stepping: float
    unprotected_training_loss: float | None = None

    @classmethod
    def of(cls, report: RoundReport, *, regrouped: bool) -> "NumberedReport":
        """Number the nodes of a strategy's report; see `NumberedGroup.of`."""
        return cls(
            round=report.round,
            groups=tuple(NumberedGroup.of(group, regrouped=regrouped) for group in report.groups),
            stepped=report.stepped,
            bytes_out=report.bytes_out,
            bytes_in=report.bytes_in,
            seconds_waiting=report.seconds_waiting,
            seconds_aggregating=report.seconds_aggregating,
            seconds_stepping=report.seconds_stepping,
            unprotected_training_loss=report.training_loss,
        )

    @property
    def corrupt_nodes(self) -> tuple[int, ...]:
        """Numbers of all nodes located as liars, ascending."""
        return tuple(sorted(number for group in self.groups for number in group.corrupt_nodes))

    @property
    def different_nodes(self) -> tuple[int, ...]:
        """Numbers of all nodes whose bits differ from those of their group, ascending."""
        return tuple(sorted(number for group in self.groups for number in group.different_bits))

    @property
    def silent_nodes(self) -> tuple[int, ...]:
        """Numbers of all nodes that had not answered when their group was decoded, ascending."""
        return tuple(sorted(number for group in self.groups for number in group.silent_nodes))

    @property
    def malformed_nodes(self) -> tuple[int, ...]:
        """Numbers of all nodes whose reply was malformed, ascending."""
        return tuple(sorted(number for group in self.groups for number in group.malformed_nodes))

    @property
    def failed_groups(self) -> tuple[int, ...]:
        """Numbers of the groups that could not be decoded."""
        return tuple(group.group for group in self.groups if not group.decoded)

    @property
    def escalated_groups(self) -> tuple[int, ...]:
        """Numbers of the groups whose resting nodes had to be asked."""
        return tuple(group.group for group in self.groups if group.escalated)

    @property
    def nodes_asked(self) -> int:
        """Number of nodes that had a task."""
        return sum(group.nodes_asked for group in self.groups)

    @property
    def referee_reports(self) -> tuple[NumberedReferee, ...]:
        """The referee's reports, one for each group that it was asked about."""
        return tuple(group.referee for group in self.groups if group.referee is not None)

    @property
    def referee_computations(self) -> int:
        """Number of groups whose batches the referee computed."""
        return sum(referee.answered for referee in self.referee_reports)

    @property
    def convicted_nodes(self) -> tuple[int, ...]:
        """Numbers of all nodes that the referee convicted, ascending."""
        return tuple(sorted(number for referee in self.referee_reports for number in referee.convicted))

    @property
    def server_seconds(self) -> float:
        """Measured seconds that the server took to decode or aggregate, and to step, without those of the referee."""
        of_referee = sum(referee.seconds for referee in self.referee_reports)
        return max(self.seconds_aggregating - of_referee, 0.0) + self.seconds_stepping


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """The record of one round.

    Attributes
    ----------
    round : int
        Number of the round; 0 for the untrained model.
    accuracy, loss : float
        Accuracy (0..1) and mean loss on the test set.
    seconds : float
        Seconds since the run began.
    report : NumberedReport or None
        The strategy's report; None for round 0.
    waited : bool
        Whether a deployed server would have waited for its deadline, because a node that it needed did not reply.
    model_sha256 : str
        SHA-256 of the model after the round, in hexadecimal digits; see the function `model_sha256`.
    cpu_share : float or None
        CPU seconds of this process, all threads together, per second since the record before. None if unknown, or if
        nodes compute in other processes.
    """

    round: int
    accuracy: float
    loss: float
    seconds: float
    report: NumberedReport | None = None
    waited: bool = False
    model_sha256: str = ""
    cpu_share: float | None = None

    def named(self) -> list[tuple[int, str]]:
        """Return the number of each node reported in this round, and the kind; see `NumberedGroup.named`."""
        return [] if self.report is None else [named for group in self.report.groups for named in group.named()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
