"""Keeps the ledger: records each node's offences, and quarantines nodes."""

import logging
from abc import ABC, abstractmethod

from solon_fl.config import SolonConfig
from solon_fl.strategies.ledger import NodeRecord, Place
from solon_fl.strategies.reports import GroupReport, RoundReport

__all__ = ["Keeper", "Places"]

Places = tuple[tuple[int | None, ...], ...]  # node ids by group and slot; None if the slot is empty
logger = logging.getLogger("flwr")


class Keeper(ABC):
    """Enters the rounds' reports into the ledger, and quarantines nodes.

    Parameters
    ----------
    config : SolonConfig
        The run's configuration.
    """

    def __init__(self, config: SolonConfig) -> None:
        self._config = config
        self._nodes: dict[str, NodeRecord] = {}  # by identity
        self._owners: dict[Place, str] = {}  # identities of the nodes that own places, by group and slot
        self._by_id: dict[int, NodeRecord] = {}
        self._namesakes: set[str] = set()  # identities of nodes that share a name

    @property
    @abstractmethod
    def places(self) -> Places:
        """Node ids by group and slot; None if the slot is empty."""

    @property
    def ledger(self) -> dict[str, NodeRecord]:
        """The records, by identity: all nodes of the start, all that have had a place since, and some strangers."""
        return self._nodes

    def label(self, node_id: int) -> str:
        """Return the name of the node of this id in the log."""
        record = self._of(node_id)
        return str(node_id) if record is None else self._label(record)

    def num_convicted(self, group: int) -> int:
        """Return how many places of a group are empty due to wrong replies: that many fewer of its nodes may lie.

        If places are drawn anew, only those count that would be empty even if all other nodes were present.
        """
        places = self.places[group]
        if self._config.regroup == "round":
            all_empty = sum(node_id is None for nodes in self.places for node_id in nodes)
            innocent = sum(r.state != "refused" and not self._is_guilty(r) for r in self._nodes.values())
            away = all_empty - max(self._config.num_nodes - innocent, 0)
            return max(sum(node_id is None for node_id in places) - away, 0)
        owners = [self._owners.get((group, slot)) for slot, node_id in enumerate(places) if node_id is None]
        return sum(owner is not None and self._is_guilty(self._nodes[owner]) for owner in owners)

    def silo_of(self, group: int) -> str | None:
        """Return the name of a group's silo; None with grouping "server"."""
        owners = (self._nodes[identity] for place, identity in self._owners.items() if place[0] == group)
        return next((owner.silo for owner in owners if owner.silo is not None), None)

    def acquitted(self) -> set[int]:
        """Return the ids of the nodes that the referee has acquitted."""
        return {record.node_id for record in self._nodes.values() if record.acquitted}

    def troubles(self, node_id: int) -> int:
        """Return how often the node of this id has offended, or made the server ask resting nodes."""
        record = self._of(node_id)
        return 0 if record is None else self._offences(record) + record.escalations

    def record(self, report: RoundReport) -> None:
        """Enter a round's report into the ledger, and quarantine nodes that have offended often enough.

        If a group failed because no more than s of its nodes sent a share, no reply in it is an offence.
        """
        offenders = []
        for group in report.groups:
            offending = {**group.malformed_nodes, **dict.fromkeys(group.corrupt_nodes, "a lie")}
            if self._counts_bits:
                offending |= dict.fromkeys(group.different_bits, "other bits than its group")
            if self._failed_for_all(group):
                offending = {}
            for node_id in group.nodes:
                record = None if node_id is None else self._of(node_id)
                if record is None or node_id is None:
                    continue
                record.rounds += 1
                record.silent += node_id in group.silent_nodes
                record.suspected += node_id in group.suspect_nodes
                record.different_bits += node_id in group.different_bits
                record.escalations += node_id in group.escalated_by
                if group.referee is not None:
                    record.convicted += node_id in group.referee.convicted
                    record.acquitted += node_id in group.referee.acquitted
                if node_id in offending:
                    record.lying += node_id in group.corrupt_nodes
                    record.malformed += node_id in group.malformed_nodes
                    record.garbled += node_id in group.garbled_nodes
                    record.last_offence = f"round {report.round}: {offending[node_id]}"
                    offenders.append(record)
        for node_id in report.lacking_nodes:
            if (lacking := self._of(node_id)) is not None:
                lacking.lacking += 1
        for record in offenders:
            self._consider_quarantine(record)

    def record_late(self, node_id: int) -> None:
        """Record that a reply to an earlier round has arrived."""
        record = self._of(node_id)
        if record is not None:
            record.late += 1

    def record_stall(self, node_id: int) -> None:
        """Record that a reply to an earlier round was announced and never sent."""
        record = self._of(node_id)
        if record is not None:
            record.stalled += 1
            record.last_offence = "an answer that was announced and never sent"
            logger.warning("Node %s announced an answer and never sent it.", self._label(record))
            self._consider_quarantine(record)

    def _is_guilty(self, record: NodeRecord) -> bool:
        """Whether a node is quarantined and sent what no honest node sends: it was one of the s in its group."""
        other_bits = record.different_bits if self._config.needs_equal_bits else 0
        return record.state == "quarantined" and record.lying + record.garbled + record.convicted + other_bits > 0

    def _offences(self, record: NodeRecord) -> int:
        """Return the offences that quarantine counts, including different bits if they make a node useless."""
        failures = record.malformed - record.garbled  # an honest node may fail, and each quarantine costs a place
        forgiven = failures if self._config.referee else 0
        return record.offences - forgiven + (record.different_bits if self._counts_bits else 0)

    @property
    def _counts_bits(self) -> bool:
        """Whether different bits are an offence: with an exact code, or if they would cause work for the referee."""
        return self._config.code == "exact" or (self._config.referee and self._config.verification == "digest")

    def _of(self, node_id: int) -> NodeRecord | None:
        return self._by_id.get(node_id)

    def _label(self, record: NodeRecord) -> str:
        return record.label_among_namesakes if record.identity in self._namesakes else record.label

    def _failed_for_all(self, group: GroupReport) -> bool:
        """Whether a group failed and so few of its nodes sent a share that all of these may be liars.

        Then nothing shows that a share was possible: the gradient may not be finite, or the batches can't be read. If
        honest nodes were quarantined for this, too few would be left to tolerate a liar.
        """
        asked = sum(node is not None for node in group.nodes)
        usable = asked - len(group.malformed_nodes) - len(group.silent_nodes)
        return not group.decoded and usable <= self._config.byzantine

    def _consider_quarantine(self, record: NodeRecord) -> None:
        limit = self._config.quarantine_after
        offences = self._offences(record)
        if limit is None or offences < limit:
            return
        if record.place is not None and not self._can_do_without_another(record.place[0]):
            logger.warning(
                "Node %s has offended %d times but is not quarantined: its group needs %d nodes and has none to spare.",
                *(self._label(record), offences, self._config.num_agreeing),
            )
            return
        record.state = "quarantined"
        logger.warning(
            "Node %s is quarantined after %d offence%s; the last one was in %s",
            *(self._label(record), offences, "s" * (offences > 1), record.last_offence),
        )

    def _can_do_without_another(self, group: int) -> bool:
        """Return whether a group could still be decoded if one more of its owners were missing, without a substitute.

        If places are drawn anew, return whether every group could be in the next round. With a referee, this is always
        so.
        """
        config = self._config
        if config.referee:
            return True
        if config.regroup == "round":
            present = sum(record.state in ("member", "spare") for record in self._nodes.values())
            return (present - 1) // config.num_groups >= config.num_agreeing
        missing = sum(
            place[0] == group and self._nodes[owner].state == "quarantined" for place, owner in self._owners.items()
        )
        return config.group_size - missing - 1 >= config.num_agreeing
