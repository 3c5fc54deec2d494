"""What a round reports: to a callback, and as Flower metrics."""

from dataclasses import dataclass

from flwr.app import MetricRecord

from solon_fl.strategies.group import GroupReport

__all__ = ["RoundReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What happened in one round.

    Attributes
    ----------
    round : int
        From 1.
    groups : tuple of GroupReport
        One a group; in strategies without groups one for all nodes.
    stepped : bool
        Whether the optimizer made a step.
    bytes_out, bytes_in : int
        Bytes of model sent to all nodes asked, and of shares (or whatever else the strategy asks for) received.
    seconds_waiting, seconds_aggregating, seconds_stepping : float
        Server's time for: sending and waiting for replies (0 under Flower's own `start`, which waits
        itself); checking, decoding and averaging them; the step, and writing the new model for the nodes.
    """

    round: int
    groups: tuple[GroupReport, ...]
    stepped: bool
    bytes_out: int
    bytes_in: int
    seconds_waiting: float
    seconds_aggregating: float
    seconds_stepping: float

    @property
    def corrupt_nodes(self) -> tuple[int, ...]:
        """Ids of all nodes located as liars, ascending."""
        return tuple(sorted(node for group in self.groups for node in group.corrupt_nodes))

    @property
    def silent_nodes(self) -> tuple[int, ...]:
        """Ids of all nodes that had not answered when their group was decoded (silent, or just slow), ascending."""
        return tuple(sorted(node for group in self.groups for node in group.silent_nodes))

    @property
    def malformed_nodes(self) -> tuple[int, ...]:
        """Ids of all nodes whose reply was not a share, ascending."""
        return tuple(sorted(node for group in self.groups for node in group.malformed_nodes))

    @property
    def escalated_groups(self) -> tuple[int, ...]:
        """Numbers of the groups of which nodes that were to rest had to be asked after all."""
        return tuple(group.group for group in self.groups if group.escalated)

    @property
    def nodes_asked(self) -> int:
        """Nodes that had a task: as many computed what their group computes."""
        return sum(node is not None for group in self.groups for node in group.nodes)

    @property
    def failed_groups(self) -> tuple[int, ...]:
        """Numbers of the groups that could not be decoded."""
        return tuple(group.group for group in self.groups if not group.decoded)

    def to_metrics(self) -> MetricRecord:
        """Return the report as Flower metrics (an empty list where there is nobody to name)."""
        decoded = [group for group in self.groups if group.decoded]
        return MetricRecord(
            {
                "corrupt-nodes": list(self.corrupt_nodes),
                "silent-nodes": list(self.silent_nodes),
                "malformed-nodes": list(self.malformed_nodes),
                "failed-groups": list(self.failed_groups),
                "largest-residual": max((group.residual for group in decoded), default=0.0),
                "largest-error-bound": max((group.error_bound for group in decoded), default=0.0),
                "escalated-groups": list(self.escalated_groups),
                "nodes-asked": self.nodes_asked,
                "stepped": int(self.stepped),
                "bytes-out": self.bytes_out,
                "bytes-in": self.bytes_in,
                "seconds-waiting": self.seconds_waiting,
                "seconds-aggregating": self.seconds_aggregating,
                "seconds-stepping": self.seconds_stepping,
            }
        )
