"""How long a round waits for more shares than it needs, or before it asks resting nodes."""

import math
import statistics
from collections.abc import Collection

__all__ = ["Patience"]

FACTOR = 3.0
FLOOR = 2.0  # seconds


class Patience:
    """Three times the median reply time of the nodes, and at least 2 seconds.

    Each node's latest reply counts. Liars can't move the median outside the range of honest nodes, neither by replying
    at the last moment nor by replying at once, because they are fewer than half of every group. Any node that takes
    more than three times the median is slow. With a referee, liars may be the majority. If they make honest nodes count
    as slow, the referee computes in place of these.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # time of the latest reply, by node id

    def record(self, node_id: int, seconds: float) -> None:
        """Record how long a node took to reply."""
        self._seconds[node_id] = seconds

    def seconds(self, nodes: Collection[int]) -> float:
        """Return how long to wait, given the ids of all nodes of all groups; inf if half of them have never replied.

        Resting nodes count, too: liars can be the majority of the nodes that were asked.
        """
        times = [self._seconds.get(node_id, math.inf) for node_id in nodes]
        return max(FACTOR * statistics.median_high(times), FLOOR) if times else math.inf
