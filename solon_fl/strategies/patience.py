"""How long a round waits for more shares than it needs, or before it asks the nodes at rest."""

import math
import statistics
from collections.abc import Collection

__all__ = ["Patience"]

FACTOR = 3.0
FLOOR = 2.0  # seconds


class Patience:
    """Three times what half of the nodes take to answer, and 2 seconds at least.

    The time that counts is the latest of each node. Liars can't move the median beyond what honest nodes take, as they
    are fewer than half of every group: neither by answering at the last moment nor by answering at once. A node that
    takes more than three times the median is slow, whoever it is. (With a referee liars may be more. Where they make
    honest nodes count as slow it computes in their place.)
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # of the latest answer, by node id

    def record(self, node_id: int, seconds: float) -> None:
        """Learn how long a node took to answer."""
        self._seconds[node_id] = seconds

    def seconds(self, nodes: Collection[int]) -> float:
        """Return how long to wait, given the ids of all nodes of all groups; inf if half of them never answered.

        Those at rest count too: among the nodes that were asked, liars can be the most.
        """
        times = [self._seconds.get(node_id, math.inf) for node_id in nodes]
        return max(FACTOR * statistics.median_high(times), FLOOR) if times else math.inf
