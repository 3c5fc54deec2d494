"""Which node is in which group and slot: fixed once, at the start of a run."""

import logging
import time
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError, InvalidReplyError, NodesMissingError
from solon_fl.strategies.exchange import exchange
from solon_fl.task import SILO_QUERY

__all__ = ["assign_groups", "wait_for_nodes"]

Groups = tuple[tuple[int, ...], ...]  # node ids, by group and slot
logger = logging.getLogger("flwr")


def wait_for_nodes(grid: Grid, num_nodes: int, timeout: float | None) -> list[int]:
    """Return the sorted ids of all connected nodes as soon as there are num_nodes of them.

    Parameters
    ----------
    timeout : float or None
        Seconds to wait; None waits for ever, as Flower's own strategies do.
    """
    started = time.monotonic()
    last_log = -60.0
    while len(node_ids := sorted(set(grid.get_node_ids()))) < num_nodes:
        waited = time.monotonic() - started
        if timeout is not None and waited > timeout:
            raise NodesMissingError(
                f"the run needs num_nodes={num_nodes} nodes; only {len(node_ids)} connected within {timeout:g} s; "
                "start more nodes, raise timeout, or lower num_nodes."
            )
        if waited - last_log > 10:
            logger.info("Waiting for nodes: %d connected, %d needed.", len(node_ids), num_nodes)
            last_log = waited
        time.sleep(min(1.0, 0.05 + waited / 10))
    return node_ids


def assign_groups(grid: Grid, config: SolonConfig, timeout: float | None) -> Groups:
    """Return the node ids by group and slot, after waiting for the nodes needed.

    With grouping "server" the first num_nodes ids in ascending order fill the groups one after the other. With
    "silo" every node is asked for its silo's name; silos in alphabetical order are the groups.
    """
    node_ids = wait_for_nodes(grid, config.num_nodes, timeout)
    size = config.group_size
    if config.grouping == "server":
        groups = tuple(tuple(node_ids[i : i + size]) for i in range(0, config.num_nodes, size))
        unused = node_ids[config.num_nodes :]
    else:
        silo_of = _ask_silos(grid, node_ids, timeout)
        groups, unused = _group_by_silo(silo_of, config)
        unused += [node_id for node_id in node_ids if node_id not in silo_of]
    if unused:
        logger.warning("%d nodes are not needed and stay idle: %s", len(unused), unused)
    return groups


def _ask_silos(grid: Grid, node_ids: Iterable[int], timeout: float | None) -> dict[int, str]:
    """Return the silo that each node declares; nodes that say nothing usable are left out."""
    silo_of: dict[int, str] = {}
    messages = {node_id: Message(RecordDict(), node_id, SILO_QUERY, ttl=timeout) for node_id in node_ids}

    def receive(batch: list[tuple[int, Message]]) -> bool:
        for node_id, reply in batch:
            try:
                silo_of[node_id] = _silo_name(reply)
            except Exception as error:  # anything may come from a node
                logger.warning("Node %d did not say which silo it is in: %s", node_id, str(error)[:200])
        return False

    exchange(grid, messages, timeout, receive)
    return silo_of


def _silo_name(reply: Message) -> str:
    if reply.has_error():
        raise InvalidReplyError(str(reply.error.reason))
    name = reply.content.config_records["silo"]["name"]
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise InvalidReplyError("a silo's name has 1 to 200 characters")
    return name


def _group_by_silo(silo_of: dict[int, str], config: SolonConfig) -> tuple[Groups, list[int]]:
    members: dict[str, list[int]] = {}
    for node_id in sorted(silo_of):
        members.setdefault(silo_of[node_id], []).append(node_id)
    full = {name: nodes for name, nodes in sorted(members.items()) if len(nodes) >= config.group_size}
    if len(full) != config.num_groups:
        counts = {name: len(nodes) for name, nodes in sorted(members.items())}
        raise ConfigurationError(
            f"grouping='silo' needs {config.num_groups} silos of at least group_size={config.group_size} nodes; "
            f"got {counts}; start more nodes in the small silos, or change num_nodes or group_size."
        )
    groups = tuple(tuple(nodes[: config.group_size]) for nodes in full.values())
    chosen = {node_id for group in groups for node_id in group}
    return groups, [node_id for node_id in silo_of if node_id not in chosen]
