"""The reports of a round, for a callback and as Flower metrics."""

import statistics
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import MetricRecord

from solon_fl.coding import ClassOutcome, DecodeStatus

__all__ = ["NOT_FINITE", "Asked", "GroupReport", "RefereeReport", "RoundReport"]

NOT_FINITE = "the share holds NaN or inf"  # a reason in `GroupReport.malformed_nodes`
Asked = Literal["shares missing", "shares disagree", "suspects", "unclear which parameters have gradients", "audit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefereeReport:
    """Why the referee was asked about a group, and what it found.

    Attributes
    ----------
    reason : str
        "shares missing", "shares disagree", "suspects", "unclear which parameters have gradients", or "audit".
    answered : bool
        Whether its answer came in time.
    seconds : float
        Time from the question to the answer.
    convicted : tuple of int
        Ids of the nodes that certainly sent something wrong. They are liars or, if nodes must compute the same bits,
        may just have different hardware or software. They are also among `GroupReport.corrupt_nodes`,
        ``different_bits`` or ``malformed_nodes``.
    acquitted : tuple of int
        Ids of the suspects whose shares were right up to float noise.
    contradicted : bool
        Whether the referee itself may be wrong or have different hardware or software: no node of the group sent what
        the referee computed or, if nodes must compute the same bits, too few did.
    """

    reason: Asked
    answered: bool
    seconds: float = 0.0
    convicted: tuple[int, ...] = ()
    acquitted: tuple[int, ...] = ()
    contradicted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """The outcome of one group in one round.

    Attributes
    ----------
    group : int
        The group's number.
    nodes : tuple of (int or None)
        Ids of its nodes, by slot. None if the slot has no node, or if its node rested in this round.
    status : str
        A `DecodeStatus`.
    different_bits : tuple of int
        Ids of the nodes whose share or digests differ from their group's in some bits without being provably lies:
        other hardware or software may be the reason. With verification "digest", these nodes sent other digests than
        the elected ones, or a share that does not match the elected digests. With code "exact", these are all nodes
        with a wrong share.
    escalated : bool
        Whether resting nodes had to be asked after all (redundancy "reactive").
    escalated_by : tuple of int
        Ids of the nodes that caused this, among those asked first: nodes that had sent no share by then, nodes whose
        share or digests turned out to differ, and nodes that contradicted more than s others on whether a parameter
        has a gradient.
    corrupt_nodes : tuple of int
        Ids of the nodes whose shares are certainly lies.
    suspect_nodes : tuple of int
        Ids of the nodes whose shares were also left out of the gradient but may be honest: lies this small have
        several explanations. Being a suspect has no consequences.
    silent_nodes : tuple of int
        Ids of the nodes that had not replied when the group was decoded. They are silent, or just slower than the
        k + s nodes whose agreement sufficed.
    malformed_nodes : dict
        Maps the id of each node whose reply was not a valid share to the reason.
    garbled_nodes : tuple of int
        Ids of those malformed nodes whose reply no honest node sends: neither a share nor an error, or a share with
        NaN or infinity although the gradient has none.
    residual, tolerance, error_bound : float
        See `Decoded`.
    classes : tuple of ClassOutcome
        The same, separately for the gradient of the parameters and the change of the buffers. Empty if the group
        failed, if the code is exact, or if the referee supplied the gradient.
    failed_classes : tuple of str
        Where the shares disagree if the group could not be decoded: "parameters", "buffers", or both.
    unreached : tuple of str
        Parameters that no batch's loss depends on, according to more than s nodes. They have no gradient.
    losses : dict
        Training losses by node id ("loss" in a MetricRecord beside the share), from nodes that were neither accused
        nor suspects. They are not coded: even such a node can report any number here.
    referee : RefereeReport or None
        The referee's findings; None if it was not asked.
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
        """Whether the group yielded a gradient."""
        return self.status in (DecodeStatus.CLEAN, DecodeStatus.CORRECTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """The outcome of one round.

    Attributes
    ----------
    round : int
        The round's number, from 1.
    groups : tuple of GroupReport
        One report per group. Strategies without groups have a single one for all nodes.
    stepped : bool
        Whether the optimizer made a step.
    bytes_out, bytes_in : int
        Bytes of model sent to all nodes together, and bytes of shares (or of whatever else the strategy asks for)
        received. Evaluation is not counted: with ``client_evaluation`` and downlink "delta", the evaluation messages
        carry a round's patch.
    lacking_nodes : tuple of int
        Ids of the nodes that did not have the version of the model that the server expected, or did not say that they
        have it, ascending. These nodes need the whole model again.
    seconds_waiting, seconds_aggregating, seconds_stepping : float
        The server's time in three parts. Waiting: sending and waiting for replies (0 under Flower's own ``start``,
        which waits itself). Aggregating: checking, decoding and averaging replies, including the work of a referee in
        the server's process. Stepping: the optimizer's step, and writing the new model for the nodes.
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
        """Ids of all nodes that sent different bits than their groups, whether they lied or not, ascending."""
        return tuple(sorted(node for group in self.groups for node in group.different_bits))

    @property
    def suspect_nodes(self) -> tuple[int, ...]:
        """Ids of all nodes whose shares were left out but may be honest, ascending."""
        return tuple(sorted(node for group in self.groups for node in group.suspect_nodes))

    @property
    def silent_nodes(self) -> tuple[int, ...]:
        """Ids of all nodes that had not replied when their group was decoded (silent or just slow), ascending."""
        return tuple(sorted(node for group in self.groups for node in group.silent_nodes))

    @property
    def malformed_nodes(self) -> tuple[int, ...]:
        """Ids of all nodes whose reply was not a valid share, ascending."""
        return tuple(sorted(node for group in self.groups for node in group.malformed_nodes))

    @property
    def escalated_groups(self) -> tuple[int, ...]:
        """Numbers of the groups whose resting nodes had to be asked after all."""
        return tuple(group.group for group in self.groups if group.escalated)

    @property
    def referee_reports(self) -> dict[int, RefereeReport]:
        """The referee's reports, by the number of the group."""
        return {group.group: group.referee for group in self.groups if group.referee is not None}

    @property
    def convicted_nodes(self) -> tuple[int, ...]:
        """Ids of all nodes that the referee convicted, ascending."""
        return tuple(sorted(node for asked in self.referee_reports.values() for node in asked.convicted))

    @property
    def training_loss(self) -> float | None:
        """Median of the losses reported by nodes of decoded groups; None if no node reports one.

        It is not protected: it is right only while most of the reporting nodes are honest. It influences nothing.
        """
        losses = [loss for group in self.groups if group.decoded for loss in group.losses.values()]
        return statistics.median(losses) if losses else None

    @property
    def nodes_asked(self) -> int:
        """Number of nodes that had a task. Each of them computed everything that its group computes."""
        return sum(node is not None for group in self.groups for node in group.nodes)

    @property
    def failed_groups(self) -> tuple[int, ...]:
        """Numbers of the groups that could not be decoded."""
        return tuple(group.group for group in self.groups if not group.decoded)

    def to_metrics(self) -> MetricRecord:
        """Return the report as Flower metrics. A list without entries is an empty list."""
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
