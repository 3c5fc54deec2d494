"""What a round reports: to a callback, and as Flower metrics."""

import statistics
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import MetricRecord

from solon_fl.coding import ClassOutcome, DecodeStatus

__all__ = ["NOT_FINITE", "Asked", "GroupReport", "RefereeReport", "RoundReport"]

NOT_FINITE = "the share holds NaN or inf"  # why a reply is malformed
Asked = Literal["shares missing", "shares disagree", "suspects", "unclear which parameters have gradients", "audit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefereeReport:
    """Why the referee was asked about a group, and what came of it.

    Attributes
    ----------
    reason : str
        "shares missing", "shares disagree", "suspects", "unclear which parameters have gradients", or "audit".
    answered : bool
        Whether its answer came in time.
    seconds : float
        From the question to the answer.
    convicted : tuple of int
        Ids of the nodes that certainly sent something wrong, be they liars or, where nodes must compute the same bits,
        of another make. They are among `GroupReport.corrupt_nodes`, `different_bits` and `malformed_nodes`, too.
    acquitted : tuple of int
        Ids of the nodes that were suspects, and whose shares were right up to float noise.
    contradicted : bool
        Whether its answer may be of another make, or wrong: nobody of the group sent what it has, or where that must be
        the same bits too few did.
    """

    reason: Asked
    answered: bool
    seconds: float = 0.0
    convicted: tuple[int, ...] = ()
    acquitted: tuple[int, ...] = ()
    contradicted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """What became of one group in one round.

    Attributes
    ----------
    group : int
        Its number.
    nodes : tuple of (int or None)
        Ids of its nodes, by slot; None where there was none to ask, or it was left to rest.
    status : str
        A `DecodeStatus`.
    different_bits : tuple of int
        Ids of the nodes whose share or digests are not, bit by bit, those of their group, where that is no proof of a
        lie: other hardware or software may be the reason. With verification "digest" those who sent other digests than
        those elected, or a share that does not match them; with code "exact" all whose shares are wrong.
    escalated : bool
        Whether nodes that were to rest had to be asked after all (redundancy "reactive").
    escalated_by : tuple of int
        Ids of the nodes asked at first because of which that was so: those that had sent no share by then, those whose
        share or digests turned out to differ, and those that said of a parameter, whether it has a gradient, what more
        than s others deny.
    corrupt_nodes : tuple of int
        Ids of the nodes whose shares are certainly lies.
    suspect_nodes : tuple of int
        Ids of the nodes whose shares were left out of the gradient, too, but may be honest: lies this small can be
        told in several ways. Being a suspect has no consequences.
    silent_nodes : tuple of int
        Ids of the nodes that had not answered when the group was decoded: silent, or slower than the k + s
        whose agreement sufficed.
    malformed_nodes : dict
        Id of each node whose reply was not a share, and what was wrong with it.
    garbled_nodes : tuple of int
        Ids of those of them whose reply no honest node sends: neither a share nor an error, or NaN or infinity though
        the gradient has none.
    residual, tolerance, error_bound : float
        See `Decoded`.
    classes : tuple of ClassOutcome
        The same for the parameters' gradient and for the buffers' change; () if the group failed, if the code is exact,
        or if the gradient is the referee's.
    failed_classes : tuple of str
        "parameters" or "buffers", or both: where the shares disagree, if the group could not be decoded.
    unreached : tuple of str
        Parameters that no batch's loss depends on, as more than s nodes say: they have no gradient.
    losses : dict
        Training loss by id of each node that reported one ("loss" in a MetricRecord beside its share), and was neither
        accused nor a suspect. Not coded: such a node may say what it likes here.
    referee : RefereeReport or None
        What the referee said; None if it was not asked.
    """

    group: int
    nodes: tuple[int | None, ...]
    status: str
    corrupt_nodes: tuple[int, ...]
    silent_nodes: tuple[int, ...]
    malformed_nodes: dict[int, str]
    residual: float
    tolerance: float
    error_bound: float
    garbled_nodes: tuple[int, ...] = ()
    escalated: bool = False
    escalated_by: tuple[int, ...] = ()
    different_bits: tuple[int, ...] = ()
    suspect_nodes: tuple[int, ...] = ()
    classes: tuple[ClassOutcome, ...] = ()
    failed_classes: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    losses: dict[int, float] = field(default_factory=dict)
    referee: RefereeReport | None = None

    @property
    def decoded(self) -> bool:
        """Whether there was a gradient."""
        return self.status in (DecodeStatus.CLEAN, DecodeStatus.CORRECTED)


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
        Evaluation is not counted: with ``client_evaluation`` and downlink "delta" a round's patch goes with it.
    lacking_nodes : tuple of int
        Ids of the nodes that did not have the model that the server took them to have, or did not say so, ascending: to
        these all of it has to be sent again.
    seconds_waiting, seconds_aggregating, seconds_stepping : float
        Server's time for: sending and waiting for replies (0 under Flower's own `start`, which waits
        itself); checking, decoding and averaging them, and what a referee in this process took; the step, and writing
        the new model for the nodes.
    """

    round: int
    groups: tuple[GroupReport, ...]
    stepped: bool
    bytes_out: int
    bytes_in: int
    seconds_waiting: float
    seconds_aggregating: float
    seconds_stepping: float
    lacking_nodes: tuple[int, ...] = ()

    @property
    def corrupt_nodes(self) -> tuple[int, ...]:
        """Ids of all nodes that certainly lied, ascending."""
        return tuple(sorted(node for group in self.groups for node in group.corrupt_nodes))

    @property
    def different_nodes(self) -> tuple[int, ...]:
        """Ids of all nodes that sent other bits than their groups, lying or not, ascending."""
        return tuple(sorted(node for group in self.groups for node in group.different_bits))

    @property
    def suspect_nodes(self) -> tuple[int, ...]:
        """Ids of all nodes whose shares were left out but may be honest, ascending."""
        return tuple(sorted(node for group in self.groups for node in group.suspect_nodes))

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
    def referee_reports(self) -> dict[int, RefereeReport]:
        """What the referee said, by number of the group that it was asked about."""
        return {group.group: group.referee for group in self.groups if group.referee is not None}

    @property
    def convicted_nodes(self) -> tuple[int, ...]:
        """Ids of all nodes that the referee convicted, ascending."""
        return tuple(sorted(node for asked in self.referee_reports.values() for node in asked.convicted))

    @property
    def training_loss(self) -> float | None:
        """Median of the losses that the nodes of the groups that were decoded report; None if none does.

        Unprotected: right as long as most of those who report are honest. It steers nothing.
        """
        losses = [loss for group in self.groups if group.decoded for loss in group.losses.values()]
        return statistics.median(losses) if losses else None

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
        loss = self.training_loss
        return MetricRecord(
            {
                "corrupt-nodes": list(self.corrupt_nodes),
                "different-nodes": list(self.different_nodes),
                "suspect-nodes": list(self.suspect_nodes),
                "silent-nodes": list(self.silent_nodes),
                "malformed-nodes": list(self.malformed_nodes),
                "failed-groups": list(self.failed_groups),
                "largest-residual": max((group.residual for group in decoded), default=0.0),
                "largest-error-bound": max((group.error_bound for group in decoded), default=0.0),
                "lacking-nodes": list(self.lacking_nodes),
                "escalated-groups": list(self.escalated_groups),
                "refereed-groups": list(self.referee_reports),
                "convicted-nodes": list(self.convicted_nodes),
                "seconds-of-referee": sum(asked.seconds for asked in self.referee_reports.values()),
                "nodes-asked": self.nodes_asked,
                "stepped": int(self.stepped),
                **({} if loss is None else {"unprotected-training-loss": loss}),
                "bytes-out": self.bytes_out,
                "bytes-in": self.bytes_in,
                "seconds-waiting": self.seconds_waiting,
                "seconds-aggregating": self.seconds_aggregating,
                "seconds-stepping": self.seconds_stepping,
            }
        )
