"""Finds out which nodes are connected."""

import hashlib
import logging
import time
from collections.abc import Collection

from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from solon_fl.errors import NodesMissingError

__all__ = ["connected_nodes", "identity_of", "is_called", "wait_for_nodes", "without"]

logger = logging.getLogger("flwr")


def wait_for_nodes(grid: Grid, num_nodes: int, timeout: float | None, trusted: Collection[str] = ()) -> list[NodeInfo]:
    """Return all connected nodes, by ascending name and id, as soon as there are at least `num_nodes` of them.

    Parameters
    ----------
    timeout : float or None
        Seconds to wait; None waits forever, like Flower's own strategies.
    trusted : collection of str
        Names or identities of nodes that neither count nor are returned.
    """
    started = time.monotonic()
    last_log = -60.0
    while len(nodes := without(connected_nodes(grid), trusted)) < num_nodes:
        waited = time.monotonic() - started
        if timeout is not None and waited > timeout:
            raise NodesMissingError(
                f"the run needs num_nodes={num_nodes} nodes; only {len(nodes)} connected within {timeout:g} s; "
                "start more nodes (a SuperLink refuses nodes whose clocks are wrong: set them by NTP), raise timeout, "
                "or lower num_nodes."
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


def without(nodes: list[NodeInfo], trusted: Collection[str]) -> list[NodeInfo]:
    """Return the nodes without those that have one of these names or identities."""
    return [node for node in nodes if not any(is_called(node, name) for name in trusted)]


def is_called(node: NodeInfo, name: str) -> bool:
    """Return whether a node has this identity, "key:..." or "id:...", or else is registered under this name."""
    return name == (identity_of(node) if name.startswith(("key:", "id:")) else node.name)


def identity_of(node: NodeInfo) -> str:
    """Return an identity that the node can't choose: a digest of its key, or Flower's number for it without keys."""
    if node.public_key:
        return f"key:{hashlib.blake2b(node.public_key, digest_size=16).hexdigest()}"
    return f"id:{node.node_id}"
