"""Finds out which silo each node is in, and which silos are groups (``SolonConfig.grouping`` "silo")."""

import logging
import time
from collections.abc import Callable, Collection, Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.strategies.exchange import exchange
from solon_fl.strategies.fetching import fetcher_of
from solon_fl.strategies.ledger import NodeRecord
from solon_fl.strategies.replies import Unusable, one_line, read, read_silo
from solon_fl.task import SILO_QUERY, time_to_live

__all__ = ["groups_by_silo", "learn_silos"]

LINES = 5  # most nodes that are logged one by one
logger = logging.getLogger("flwr")


def learn_silos(
    grid: Grid, nodes: Iterable[NodeRecord], timeout: float | None, label: Callable[[NodeRecord], str]
) -> float:
    """Record each node's silo: the part of its registered name before the "/", or else the silo it declares.

    Returns
    -------
    seconds : float
        The time spent waiting for nodes that did not reply; 0 if all did.
    """
    asked = {}
    for record in nodes:
        silo, slash, _ = record.name.partition("/")
        if slash and silo:
            record.silo = silo
        else:
            asked[record.node_id] = record
    reasons: dict[int, str] = {}

    def receive(batch: list[tuple[int, Message]]) -> bool:
        for node_id, reply in batch:
            silo = read(reply, read_silo)
            if isinstance(silo, Unusable):
                reasons[node_id] = silo.reason
            else:
                asked[node_id].silo = silo
        return False

    if not asked:
        return 0.0
    started = time.monotonic()
    messages = {node_id: Message(RecordDict(), node_id, SILO_QUERY, ttl=time_to_live(timeout)) for node_id in asked}
    _, unanswered = exchange(grid, messages, timeout, receive)
    for message_id in unanswered:
        fetcher_of(grid).forget(message_id)
    for node_id in list(reasons)[:LINES]:
        logger.warning("Node %s did not say which silo it is in: %s", label(asked[node_id]), reasons[node_id])
    if len(reasons) > LINES:
        logger.warning("%d more nodes did not say which silo they are in.", len(reasons) - LINES)
    return time.monotonic() - started if unanswered else 0.0


def groups_by_silo(nodes: Collection[NodeRecord], config: SolonConfig) -> list[list[NodeRecord]]:
    """Return the nodes of each group, at most r each. Silos with enough nodes become groups, sorted by name.

    Raises
    ------
    ConfigurationError
        If too few silos have enough nodes.
    """
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
            "There are more silos than num_nodes / group_size = %d: %d are ignored, among them %s. To choose which "
            "take part, register the nodes under names like silo/node.",
            *(config.num_groups, len(ignored), one_line(ignored[0])[:40]),
        )
    return [members[silo][: config.group_size] for silo in sorted(chosen)]
