"""Assigns nodes to groups and slots, in every round."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from solon_fl.config import SolonConfig
from solon_fl.errors import NodesMissingError, RefereeError
from solon_fl.strategies.keeper import Keeper, Places
from solon_fl.strategies.ledger import NodeRecord, Place, namesakes
from solon_fl.strategies.presence import connected_nodes, identity_of, is_called, wait_for_nodes, without
from solon_fl.strategies.replies import one_line
from solon_fl.strategies.silos import groups_by_silo, learn_silos

__all__ = ["Roster"]

MOST_STRANGERS = 100  # most nodes in the ledger that never had a task; or num_nodes, if that is more
STRANGERS_PATIENCE = 15.0  # seconds in which nodes that connect later must say which silo they are in
ALL_PATIENCE = 120.0  # seconds that all rounds of a run together may wait for such nodes in vain
LINES = 5  # most nodes that are logged one by one
logger = logging.getLogger("flwr")


class Roster(Keeper):
    """Assigns every place, a slot of a group, to a node; see `Keeper` for the ledger.

    A place belongs to one node for the whole run. The node is known by its identity: when it comes back after a restart
    or a broken connection, it has its place again. While it is away or quarantined, a spare fills in, if there is one.
    Nodes that connect after the run began are strangers: they are spares, or refused.

    Strangers can only make the server store a bounded amount: those that never had a task are in the ledger only while
    they are connected, and at most `MOST_STRANGERS` or num_nodes of them, whichever is more. The others get nothing to
    do, and only their number is kept. A node that once had a place stays in the ledger for good.

    With ``SolonConfig.regroup`` "round", all places are drawn anew in every round among the nodes that are connected
    and neither quarantined nor refused. Nodes without a place wait for the next draw. If there are fewer nodes than
    places, the empty places are spread evenly over the groups.

    Parameters
    ----------
    config : SolonConfig
        The run's configuration.
    seed : int, optional
        Makes the draw of places a function of the seed, the round and the nodes, for simulation only. Default: fresh
        entropy in every round, so that there is no generator whose state anybody could learn.
    trusted : collection of str
        Names or identities of the nodes that are referees, and have no place.
    """

    def __init__(self, config: SolonConfig, seed: int | None = None, trusted: Collection[str] = ()) -> None:
        super().__init__(config)
        self._trusted = tuple(trusted)
        self._pinned: dict[str, str] = {}  # identities of trusted nodes, by the name or identity that the user gave
        self._referees: dict[int, str] = {}  # their registered names, by id
        self._seed = seed
        self._substitutes: dict[Place, str] = {}
        self._connected: frozenset[str] = frozenset()
        self._idle_strangers: set[str] = set()  # identities of strangers that never had a place
        self._turned_away = 0  # most strangers turned away in one round
        self._patience_left = ALL_PATIENCE
        self._told: set[str] = set()  # shared names that have been logged

    @property
    def places(self) -> Places:
        """Node ids by group and slot; None if the slot is empty."""
        config = self._config
        return tuple(
            tuple(self._node_at((group, slot)) for slot in range(config.group_size))
            for group in range(config.num_groups)
        )

    def update(self, grid: Grid, timeout: float | None, server_round: int) -> None:
        """Find out which nodes are connected, and fill the places for the round.

        The first call waits for num_nodes nodes. So does the first one after `restore`, but only until the timeout, and
        then goes on without them: some nodes may be gone for good.
        """
        config = self._config
        began = not self._nodes
        try:
            if not self._connected:
                wait_for_nodes(grid, config.num_nodes, timeout, self._trusted)
        except NodesMissingError as error:
            if began:
                raise
            logger.warning("The run goes on without them: %s", error)
        connected = connected_nodes(grid)
        self._referees = self._find_referees(connected)
        nodes = without(connected, self._trusted)
        newcomers = self._meet(nodes, strangers=not began)
        if not began:
            self._admit(grid, newcomers, timeout)
        elif config.grouping == "silo":
            learn_silos(grid, newcomers, timeout, self._label)
        for record in self._nodes.values():
            if record.state not in ("quarantined", "refused"):
                record.state = "spare" if record.identity in self._connected else "away"
        if config.regroup == "round":
            self._draw_places(server_round)
        else:
            if began:
                self._found(newcomers)
            self._fill_places()
        self._idle_strangers = {i for i in self._idle_strangers if self._nodes[i].state in ("spare", "refused")}

    @property
    def referees(self) -> list[int]:
        """Ids of the trusted nodes that are connected, in the order in which they were named."""
        return list(self._referees)

    def referees_of(self, group: int) -> list[int]:
        """Return the referees that can judge a group: if it is a silo, those registered under names like silo/x."""
        silo = self.silo_of(group)
        return [i for i, name in self._referees.items() if silo is None or name.partition("/")[0] == silo]

    def _find_referees(self, nodes: list[NodeInfo]) -> dict[int, str]:
        """Return the registered names of the trusted nodes, by id.

        Raises
        ------
        RefereeError
            If two nodes share one of these names: either could be an impostor.
        """
        found = {}
        for name in self._trusted:
            holders = [node for node in nodes if is_called(node, name)]
            for node in [node for node in holders if identity_of(node) != self._pinned.get(name, identity_of(node))]:
                holders.remove(node)
                logger.error(
                    "Node %s (%s) is not trusted: %s belonged to %s before. To trust it, start a new run.",
                    *(one_line(node.name), identity_of(node), name, self._pinned[name]),
                )
            if len(holders) > 1:
                identities = ", ".join(identity_of(node) for node in holders[:LINES])
                raise RefereeError(
                    f"the name of a trusted node must be unique; got {len(holders)} nodes registered as {name!r}, "
                    f"with the identities {identities}; name the right one by its identity, or unregister the others."
                )
            for node in holders:
                found[node.node_id] = node.name
                self._pinned[name] = identity_of(node)
                if node.node_id not in self._referees:
                    logger.info("Trusted node %s (%s) is a referee.", one_line(node.name) or name, identity_of(node))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the whole state as JSON-serializable values."""
        return {
            "nodes": [asdict(record) for record in self._nodes.values()],
            "substitutes": [[*place, identity] for place, identity in self._substitutes.items()],
            "idle_strangers": sorted(self._idle_strangers),
            "referees": self._pinned,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the result of `to_dict`. Given anything else, raise ValueError or the like and change nothing."""
        config = self._config
        records = [NodeRecord.restored(entries) for entries in state["nodes"]]
        nodes = {record.identity: record for record in records}
        owners = {record.place: record.identity for record in records if record.place is not None}
        ids = {record.node_id for record in records if record.node_id}
        substitutes = {(group, slot): identity for group, slot, identity in state["substitutes"]}
        strangers = set(state.get("idle_strangers", ()))
        for what, is_right in (
            ("no nodes", bool(records)),
            ("a node twice", len(nodes) == len(records)),
            ("a place twice", len(owners) == sum(record.place is not None for record in records)),
            ("an id twice", len(ids) == sum(record.node_id != 0 for record in records)),
            ("an impossible stranger", strangers <= nodes.keys() - {*owners.values(), *substitutes.values()}),
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
        self._idle_strangers = strangers
        self._connected = frozenset()
        self._pinned = {str(name): str(identity) for name, identity in state.get("referees", {}).items()}
        self._index()

    # Identities

    def _meet(self, nodes: Iterable[NodeInfo], *, strangers: bool) -> list[NodeRecord]:
        """Record which nodes are connected; return those never seen before, and of strangers only as many as fit."""
        here = {identity_of(node): node for node in nodes}
        for identity in self._idle_strangers - here.keys():
            del self._nodes[identity]
        self._idle_strangers &= here.keys()
        unknown = [identity for identity in here if identity not in self._nodes]
        if strangers:
            room = max(MOST_STRANGERS, self._config.num_nodes) - len(self._idle_strangers)
            self._tell_of_those_turned_away(len(unknown) - room)
            unknown = sorted(unknown, key=lambda identity: not here[identity].name)[: max(room, 0)]
            self._idle_strangers.update(unknown)
        self._nodes |= {identity: NodeRecord(identity=identity, node_id=0) for identity in unknown}
        holders = {node.node_id: identity for identity, node in here.items()}
        for identity, record in self._nodes.items():
            node = here.get(identity)
            if node is not None:
                record.node_id = node.node_id
                record.name = one_line(node.name)
            elif record.node_id in holders:  # its tasks must not go to another node
                record.node_id = 0
        self._connected = frozenset(here.keys() & self._nodes.keys())
        self._index()
        return [self._nodes[identity] for identity in unknown]

    def _index(self) -> None:
        """Index the records by id, find shared names, and warn if names are not enough to tell nodes apart."""
        self._by_id = {record.node_id: record for record in self._nodes.values() if record.node_id}
        self._namesakes = namesakes(self._nodes.values())
        new = sorted({self._nodes[identity].name for identity in self._namesakes} - self._told)
        if new and len(self._told) < MOST_STRANGERS:
            self._told.update(new)
            logger.warning(
                "More than one node has the name %s, or one that looks like it%s: the log adds a part of their keys. "
                "Register every node under a unique name.",
                *(repr(new[0]), f" (and {len(new) - 1} more such names)" if len(new) > 1 else ""),
            )

    def _tell_of_those_turned_away(self, number: int) -> None:
        if number > self._turned_away:
            self._turned_away = number
            logger.warning(
                "%d more nodes connected after the run began than the ledger has room for: they get no tasks.",
                number,
            )

    # Places

    def _found(self, nodes: list[NodeRecord]) -> None:
        """Assign the places to their owners, once and for all."""
        config = self._config
        if config.grouping == "server":
            size = config.group_size
            groups = [nodes[i : i + size] for i in range(0, config.num_nodes, size)]
        else:
            groups = groups_by_silo(nodes, config)
        for group, members in enumerate(groups):
            for slot, record in enumerate(members):
                record.place = (group, slot)
                self._owners[group, slot] = record.identity
        spares = [record for record in nodes if record.place is None]
        if spares:
            shown = ", ".join(map(self._label, spares[: 4 * LINES]))
            logger.info("%d nodes wait as spares: %s%s", len(spares), shown, ", ..." if spares[4 * LINES :] else "")

    def _draw_places(self, server_round: int) -> None:
        """Assign the places of this round to nodes drawn among all eligible ones, slot by slot across the groups."""
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
            logger.warning("Only %d of %d nodes take part in this round.", len(drawn), config.num_nodes)

    def _admit(self, grid: Grid, strangers: list[NodeRecord], timeout: float | None) -> None:
        """Refuse the nodes that connected later, or let them wait as spares, once their silo is known."""
        config = self._config
        level, fate = logging.INFO, "waits as a spare"
        if config.strangers == "refuse":
            level, fate = logging.WARNING, "is refused"
            for record in strangers:
                record.state = "refused"
        elif config.regroup == "round":
            fate = "may be drawn for a place"
        for record in strangers[:LINES]:
            logger.log(level, "Node %s connected after the run began and %s.", self._label(record), fate)
        if len(strangers) > LINES:
            logger.log(level, "The same holds for %d more nodes.", len(strangers) - LINES)
        if config.grouping == "silo" and config.strangers != "refuse":
            patience = max(min(STRANGERS_PATIENCE, self._patience_left), 0.0)
            if not patience:  # from now on, only registered names count
                strangers = [record for record in strangers if "/" in record.name[1:]]
            timeout = patience if timeout is None else min(timeout, patience)
            self._patience_left -= learn_silos(grid, strangers, timeout, self._label)
            if self._patience_left <= 0 < patience:
                logger.warning(
                    "Nodes that don't say which silo they are in have delayed the run by %g s in all: from now on, the "
                    "server no longer asks new nodes; register them under names like silo/node instead.",
                    ALL_PATIENCE,
                )

    def _own_vacant_places(self) -> None:
        """Give places without an owner to spares of the same silo. A silo has such places if it began incomplete."""
        for group in range(self._config.num_groups):
            silos = {self._nodes[owner].silo for place, owner in self._owners.items() if place[0] == group}
            for slot in range(self._config.group_size):
                if (group, slot) in self._owners or not silos:
                    continue
                newcomer = self._best_spare(next(iter(silos)))
                if newcomer is not None and newcomer.place is None:
                    newcomer.place = (group, slot)
                    self._owners[group, slot] = newcomer.identity
                    logger.info("Node %s takes an empty place (group %d).", self._label(newcomer), group)
        self._owners = dict(sorted(self._owners.items()))

    def _fill_places(self) -> None:
        """Give owners their places, and give spares the places of owners that are away or quarantined."""
        if self._config.grouping == "silo":
            self._own_vacant_places()
        for place, owner in self._owners.items():
            if self._nodes[owner].state == "spare":
                self._nodes[owner].state = "member"
                if self._substitutes.pop(place, None) is not None:
                    logger.info("Node %s is back in its place.", self._label(self._nodes[owner]))
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
                    *(self._label(self._nodes[owner]), place[0], self._nodes[owner].state, self._label(substitute)),
                )

    def _best_spare(self, silo: str | None) -> NodeRecord | None:
        """Return the spare of that silo with the fewest offences."""
        spares = [r for r in self._nodes.values() if r.state == "spare" and r.place is None and r.silo == silo]
        return min(spares, key=self._offences, default=None)

    def _node_at(self, place: Place) -> int | None:
        """Return the id of the node that has a place now.

        An owner that is away keeps its place if no spare fills in: it may be back within the round.
        """
        holder = self._substitutes.get(place, self._owners.get(place))
        if holder is None or self._nodes[holder].state == "quarantined":
            return None
        return self._nodes[holder].node_id or None
