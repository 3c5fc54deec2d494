"""Which node is in which group and slot, in every round, and what each was caught at."""

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError, NodesMissingError
from solon_fl.strategies.exchange import exchange
from solon_fl.strategies.ledger import NodeRecord, Place
from solon_fl.strategies.replies import Unusable, one_line, read, read_silo
from solon_fl.strategies.reports import GroupReport, RoundReport
from solon_fl.task import SILO_QUERY, time_to_live

__all__ = ["Roster", "wait_for_nodes"]

Places = tuple[tuple[int | None, ...], ...]  # node ids by group and slot; None where nobody is
STRANGERS_PATIENCE = 15.0  # seconds that nodes which come later have to say which silo they are in
logger = logging.getLogger("flwr")


def wait_for_nodes(grid: Grid, num_nodes: int, timeout: float | None) -> list[NodeInfo]:
    """Return all connected nodes, by ascending name and id, as soon as there are num_nodes of them.

    Parameters
    ----------
    timeout : float or None
        Seconds to wait; None waits for ever, as Flower's own strategies do.
    """
    started = time.monotonic()
    last_log = -60.0
    while len(nodes := connected_nodes(grid)) < num_nodes:
        waited = time.monotonic() - started
        if timeout is not None and waited > timeout:
            raise NodesMissingError(
                f"the run needs num_nodes={num_nodes} nodes; only {len(nodes)} connected within {timeout:g} s; "
                "start more nodes, raise timeout, or lower num_nodes."
            )
        if waited - last_log > 10:
            logger.info("Waiting for nodes: %d connected, %d needed.", len(nodes), num_nodes)
            last_log = waited
        time.sleep(min(1.0, 0.05 + waited / 10))
    return nodes


def connected_nodes(grid: Grid) -> list[NodeInfo]:
    """Return the nodes that are connected now, by ascending registered name, then id."""
    nodes = {node.node_id: node for node in grid.get_nodes()}
    return sorted(nodes.values(), key=lambda node: (node.name, node.node_id))


class Roster:
    """Gives every place, a slot of a group, to a node, and keeps the ledger of what the nodes did.

    A place belongs to one node for the whole run, known by its identity: when it comes back from a restart or from
    behind a broken line, it has its place again. While it is away or in quarantine, a spare fills in, if there is
    one. Nodes that connect after the run began are strangers: spares, or refused.

    With `SolonConfig.regroup` "round", all places are drawn anew in every round, among the nodes that are connected and
    neither quarantined nor refused; who gets none waits for the next draw. If there are fewer nodes than places, each
    group lacks about as many.

    Parameters
    ----------
    config : SolonConfig
        Of the run.
    seed : int, optional
        Makes the places drawn a function of the seed, the round and the nodes, for simulation only. Default: fresh
        entropy in every round, so that there is no generator whose state anybody could learn.
    """

    def __init__(self, config: SolonConfig, seed: int | None = None) -> None:
        self._config = config
        self._seed = seed
        self._nodes: dict[str, NodeRecord] = {}  # by identity
        self._owners: dict[Place, str] = {}  # in the order of groups and slots
        self._substitutes: dict[Place, str] = {}
        self._connected: frozenset[str] = frozenset()

    @property
    def ledger(self) -> dict[str, NodeRecord]:
        """Every node that was ever seen, by its identity."""
        return self._nodes

    @property
    def places(self) -> Places:
        """Node ids by group and slot; None where nobody is."""
        config = self._config
        return tuple(
            tuple(self._node_at((group, slot)) for slot in range(config.group_size))
            for group in range(config.num_groups)
        )

    def label(self, node_id: int) -> str:
        """Return what the log calls the node of this id."""
        record = self._of(node_id)
        return str(node_id) if record is None else record.label

    def update(self, grid: Grid, timeout: float | None, server_round: int) -> None:
        """See who is connected, and fill the places for the round; the first call waits for num_nodes nodes.

        After `restore` it waits too, but only until the timeout: some nodes may be gone for good.
        """
        config = self._config
        began = not self._nodes
        try:
            nodes = connected_nodes(grid) if self._connected else wait_for_nodes(grid, config.num_nodes, timeout)
        except NodesMissingError as error:
            if began:
                raise
            logger.warning("Going on all the same: %s", error)
            nodes = connected_nodes(grid)
        newcomers = self._meet(nodes)
        if not began:
            newcomers = self._admit(newcomers)
            timeout = STRANGERS_PATIENCE if timeout is None else min(timeout, STRANGERS_PATIENCE)
        if config.grouping == "silo":
            self._learn_silos(grid, newcomers, timeout)
        for record in self._nodes.values():
            if record.state not in ("quarantined", "refused"):
                record.state = "spare" if record.identity in self._connected else "away"
        if config.regroup == "round":
            self._draw_places(server_round)
            return
        if began:
            self._found(newcomers)
        self._fill_places()

    def troubles(self, node_id: int) -> int:
        """Return how often the node of this id has offended, or made the server ask nodes at rest."""
        record = self._of(node_id)
        return 0 if record is None else record.offences + record.escalations

    def record(self, report: RoundReport) -> None:
        """Enter a round's report into the ledger, and quarantine those who have offended often enough.

        What nodes sent is no offence in a group that failed because no more than s of them sent a share.
        """
        offenders = []
        for group in report.groups:
            offending = {**group.malformed_nodes, **dict.fromkeys(group.corrupt_nodes, "a lie")}
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
                if node_id in offending:
                    record.lying += node_id in group.corrupt_nodes
                    record.malformed += node_id in group.malformed_nodes
                    record.last_offence = f"round {report.round}: {offending[node_id]}"
                    offenders.append(record)
        for record in offenders:
            self._consider_quarantine(record)

    def record_late(self, node_id: int) -> None:
        """Enter that an answer to an earlier round came after all."""
        record = self._of(node_id)
        if record is not None:
            record.late += 1

    def record_stall(self, node_id: int) -> None:
        """Enter that an answer to an earlier round was announced and never sent."""
        record = self._of(node_id)
        if record is not None:
            record.stalled += 1
            record.last_offence = "an answer that was announced and never sent"
            logger.warning("Node %s announced an answer and never sent it.", record.label)
            self._consider_quarantine(record)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole state, as json can write it."""
        return {
            "nodes": [asdict(record) for record in self._nodes.values()],
            "substitutes": [[*place, identity] for place, identity in self._substitutes.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `to_dict` returned; raise ValueError or the like, and change nothing, if it was not that."""
        config = self._config
        records = [NodeRecord.restored(entries) for entries in state["nodes"]]
        nodes = {record.identity: record for record in records}
        owners = {record.place: record.identity for record in records if record.place is not None}
        ids = {record.node_id for record in records if record.node_id}
        substitutes = {(group, slot): identity for group, slot, identity in state["substitutes"]}
        for what, is_right in (
            ("no nodes", bool(records)),
            ("a node twice", len(nodes) == len(records)),
            ("a place twice", len(owners) == sum(record.place is not None for record in records)),
            ("an id twice", len(ids) == sum(record.node_id != 0 for record in records)),
            ("an impossible place", all(g < config.num_groups and r < config.group_size for g, r in owners)),
            (
                "an unknown substitute",
                set(substitutes.values()) <= nodes.keys() and substitutes.keys() <= owners.keys(),
            ),
        ):
            if not is_right:
                raise ValueError(f"the ledger has {what}")
        self._nodes = nodes
        self._owners = dict(sorted(owners.items()))
        self._substitutes = substitutes
        self._connected = frozenset()

    # Who is who

    def _of(self, node_id: int) -> NodeRecord | None:
        return next((record for record in self._nodes.values() if record.node_id == node_id), None)

    def _meet(self, nodes: Iterable[NodeInfo]) -> list[NodeRecord]:
        """Note who is connected; return those never seen before."""
        newcomers = []
        connected = set()
        for node in nodes:
            identity = _identity(node)
            connected.add(identity)
            record = self._nodes.get(identity)
            if record is None:
                record = self._nodes[identity] = NodeRecord(identity=identity, node_id=node.node_id)
                newcomers.append(record)
            record.node_id = node.node_id
            record.name = one_line(node.name)
        self._connected = frozenset(connected)
        taken = {self._nodes[identity].node_id for identity in connected}
        for identity in self._nodes.keys() - connected:
            if self._nodes[identity].node_id in taken:  # tasks meant for it must not go to another
                self._nodes[identity].node_id = 0
        return newcomers

    def _learn_silos(self, grid: Grid, nodes: Iterable[NodeRecord], timeout: float | None) -> None:
        """Note each node's silo: what stands before the "/" in its registered name, or else what it declares."""
        asked = {}
        for record in nodes:
            silo, slash, _ = record.name.partition("/")
            if slash and silo:
                record.silo = silo
            else:
                asked[record.node_id] = record
        messages = {node_id: Message(RecordDict(), node_id, SILO_QUERY, ttl=time_to_live(timeout)) for node_id in asked}

        def receive(batch: list[tuple[int, Message]]) -> bool:
            for node_id, reply in batch:
                silo = read(reply, read_silo)
                if isinstance(silo, Unusable):
                    label = asked[node_id].label
                    logger.warning("Node %s did not say which silo it is in: %s", label, silo.reason)
                else:
                    asked[node_id].silo = silo
            return False

        if messages:
            exchange(grid, messages, timeout, receive)

    # Who is where

    def _found(self, nodes: list[NodeRecord]) -> None:
        """Give the places to their owners, once and for all."""
        config = self._config
        if config.grouping == "server":
            size = config.group_size
            groups = [nodes[i : i + size] for i in range(0, config.num_nodes, size)]
        else:
            groups = self._groups_by_silo(nodes)
        for group, members in enumerate(groups):
            for slot, record in enumerate(members):
                record.place = (group, slot)
                self._owners[group, slot] = record.identity
        spares = [record.label for record in nodes if record.place is None]
        if spares:
            logger.info("%d nodes wait as spares: %s", len(spares), ", ".join(spares))

    def _draw_places(self, server_round: int) -> None:
        """Give the places of this round to nodes drawn among all that can have one, slot by slot of all groups."""
        config = self._config
        for record in self._nodes.values():
            record.place = None
        present = [record for record in self._nodes.values() if record.state == "spare"]
        # numpy's seeds can't be negative, torch's can.
        rng = np.random.default_rng(None if self._seed is None else [self._seed % 2**64, server_round])
        drawn = [present[number] for number in rng.permutation(len(present))[: config.num_nodes]]
        for number, record in enumerate(drawn):
            slot, group = divmod(number, config.num_groups)
            record.place = (group, slot)
            record.state = "member"
        self._owners = {record.place: record.identity for record in drawn if record.place is not None}
        if len(drawn) < config.num_nodes:
            logger.warning("Only %d nodes take part in this round, of %d.", len(drawn), config.num_nodes)

    def _groups_by_silo(self, nodes: Iterable[NodeRecord]) -> list[list[NodeRecord]]:
        config = self._config
        members: dict[str, list[NodeRecord]] = {}
        for record in nodes:
            if record.silo is not None:
                members.setdefault(record.silo, []).append(record)
        enough = config.group_size - config.stragglers
        chosen = sorted(
            (silo for silo, records in members.items() if len(records) >= enough),
            key=lambda silo: (-sum(bool(record.name) for record in members[silo]), silo),
        )[: config.num_groups]
        if len(chosen) < config.num_groups:
            counts = {silo[:40]: len(records) for silo, records in sorted(members.items())[:20]}
            raise ConfigurationError(
                f"grouping='silo' needs {config.num_groups} silos of at least group_size={config.group_size} nodes"
                f"{f', less stragglers={config.stragglers}' if config.stragglers else ''}; "
                f"got {counts}; start more nodes in the small silos, or change num_nodes or group_size."
            )
        ignored = sorted(members.keys() - set(chosen))
        if ignored:
            logger.warning(
                "More silos than num_nodes / group_size = %d: %d are ignored, %s among them. To say which take part, "
                "register the nodes under names like silo/node.",
                *(config.num_groups, len(ignored), ignored[0][:40]),
            )
        return [members[silo][: config.group_size] for silo in sorted(chosen)]

    def _admit(self, strangers: list[NodeRecord]) -> list[NodeRecord]:
        """Return those that may wait as spares."""
        for record in strangers:
            if self._config.strangers == "refuse":
                record.state = "refused"
                logger.warning("Node %s connected after the run began and is refused.", record.label)
            elif self._config.regroup == "round":
                logger.info("Node %s connected after the run began and takes part in the draws.", record.label)
            else:
                logger.info("Node %s connected after the run began and waits as a spare.", record.label)
        return [record for record in strangers if record.state != "refused"]

    def _own_vacant_places(self) -> None:
        """Give places that nobody owns, as a silo began without some of its nodes, to spares of that silo."""
        for group in range(self._config.num_groups):
            silos = {self._nodes[owner].silo for place, owner in self._owners.items() if place[0] == group}
            for slot in range(self._config.group_size):
                if (group, slot) in self._owners or not silos:
                    continue
                newcomer = self._best_spare(next(iter(silos)))
                if newcomer is not None and newcomer.place is None:
                    newcomer.place = (group, slot)
                    self._owners[group, slot] = newcomer.identity
                    logger.info("Node %s takes a place that was empty (group %d).", newcomer.label, group)
        self._owners = dict(sorted(self._owners.items()))

    def _fill_places(self) -> None:
        """Let owners have their places, and spares those of owners who are away or in quarantine."""
        if self._config.grouping == "silo":
            self._own_vacant_places()
        for place, owner in self._owners.items():
            if self._nodes[owner].state == "spare":
                self._nodes[owner].state = "member"
                if self._substitutes.pop(place, None) is not None:
                    logger.info("Node %s is back in its place.", self._nodes[owner].label)
            elif self._nodes[self._substitutes.get(place, owner)].state != "spare":
                self._substitutes.pop(place, None)
        for identity in self._substitutes.values():
            self._nodes[identity].state = "substitute"
        for place, owner in self._owners.items():
            if self._nodes[owner].state == "member" or place in self._substitutes:
                continue
            substitute = self._best_spare(self._nodes[owner].silo)
            if substitute is not None:
                substitute.state = "substitute"
                self._substitutes[place] = substitute.identity
                logger.warning(
                    "Node %s (group %d) is %s: node %s fills in.",
                    *(self._nodes[owner].label, place[0], self._nodes[owner].state, substitute.label),
                )

    def _best_spare(self, silo: str | None) -> NodeRecord | None:
        """Return the spare of that silo with the fewest offences."""
        spares = [r for r in self._nodes.values() if r.state == "spare" and r.place is None and r.silo == silo]
        return min(spares, key=lambda record: record.offences, default=None)

    def _node_at(self, place: Place) -> int | None:
        """Return the id of the node that has a place now.

        An owner who is away keeps it if nobody fills in: it may be back within the round.
        """
        holder = self._substitutes.get(place, self._owners.get(place))
        if holder is None or self._nodes[holder].state == "quarantined":
            return None
        return self._nodes[holder].node_id or None

    def _failed_for_all(self, group: GroupReport) -> bool:
        """Whether so few of a group sent a share that they may all be liars: then nothing shows that it could be had.

        The gradient may not be finite, or the batches can't be read. Were honest nodes put in quarantine for it, those
        left would not be enough to bear a liar.
        """
        asked = sum(node is not None for node in group.nodes)
        usable = asked - len(group.malformed_nodes) - len(group.silent_nodes)
        return not group.decoded and usable <= self._config.byzantine

    def _consider_quarantine(self, record: NodeRecord) -> None:
        limit = self._config.quarantine_after
        if limit is None or record.offences < limit:
            return
        if record.place is not None and not self._can_do_without_another(record.place[0]):
            logger.warning(
                "Node %s has offended %d times, but a group needs %d nodes and has no more to spare: "
                "it is not quarantined.",
                *(record.label, record.offences, self._config.num_agreeing),
            )
            return
        record.state = "quarantined"
        logger.warning(
            "Node %s is quarantined after %d offences; the last was in %s",
            *(record.label, record.offences, record.last_offence),
        )

    def _can_do_without_another(self, group: int) -> bool:
        """Return whether a group could be decoded if one more of its owners were missing, with no substitute.

        Where places are drawn anew: whether every group could be in the next round.
        """
        config = self._config
        if config.regroup == "round":
            present = sum(record.state in ("member", "spare") for record in self._nodes.values())
            return (present - 1) // config.num_groups >= config.num_agreeing
        missing = sum(
            place[0] == group and self._nodes[owner].state == "quarantined" for place, owner in self._owners.items()
        )
        return config.group_size - missing - 1 >= config.num_agreeing


def _identity(node: NodeInfo) -> str:
    if node.public_key:
        return f"key:{hashlib.blake2b(node.public_key, digest_size=16).hexdigest()}"
    return f"id:{node.node_id}"
