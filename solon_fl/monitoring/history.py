"""The history of a run's rounds for its page, which is thinned out in long runs so that the page stays small."""

from collections.abc import Mapping

from flwr.app import MetricRecord

from solon_fl.pages import KINDS, NodeRow, Span

__all__ = ["History", "kinds_of"]

MOST_BINS = 240  # more can't be told apart on a page
GRAVITY = {kind: number for number, kind in enumerate(KINDS)}
KIND_OF = {  # entries of RoundReport.to_metrics that name nodes
    "corrupt-nodes": "lying",
    "malformed-nodes": "malformed",
    "different-nodes": "other bits",
    "suspect-nodes": "suspected",
    "silent-nodes": "silent or late",
}


class History:
    """The figures of all rounds and the kind of each node, in at most 240 bins of equally many rounds.

    A bin holds the mean of each figure and the gravest kind of each node.

    Attributes
    ----------
    width : int
        Number of rounds in a bin. It starts at 1 and doubles whenever there would be more than 240 bins.
    last : int
        The last round entered, or -1 if there is none.
    """

    def __init__(self) -> None:
        self.width = 1
        self.last = -1
        self._sums: dict[str, dict[int, tuple[float, int]]] = {}
        self._kinds: dict[int, dict[int, str]] = {}  # by node id
        self._latest: dict[str, float] = {}

    def enter(self, number: int, figures: Mapping[str, float], kinds: Mapping[int, str]) -> None:
        """Enter a round's figures by name and kinds of nodes by id; rounds must come in order, from 0."""
        while number // self.width >= MOST_BINS:
            self._widen()
        place = number // self.width
        for name, value in figures.items():
            total, count = self._sums.setdefault(name, {}).get(place, (0.0, 0))
            self._sums[name][place] = (total + value, count + 1)
            self._latest[name] = value
        for node_id, kind in kinds.items():
            found = self._kinds.setdefault(node_id, {})
            found[place] = _graver(found.get(place, kind), kind)
        self.last = max(self.last, number)

    def names(self, prefix: str) -> list[str]:
        """Return the names of the figures with this prefix."""
        return [name for name in self._sums if name.startswith(prefix)]

    def latest(self, name: str) -> float | None:
        """Return the latest value of a figure."""
        return self._latest.get(name)

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Return the rounds and values of a figure: the last round of each bin, and the bin's mean."""
        bins = sorted(self._sums.get(name, {}).items())
        rounds = [float(min((place + 1) * self.width - 1, self.last)) for place, _ in bins]
        return rounds, [total / count for _, (total, count) in bins]

    def gravest_nodes(self, most: int) -> list[int]:
        """Return the ids of at most `most` nodes, those with the gravest and most frequent kinds first."""

        def trouble(node_id: int) -> tuple[int, int]:
            kinds = self._kinds[node_id].values()
            gravest = min(GRAVITY[kind] for kind in kinds)
            return gravest, -sum(GRAVITY[kind] == gravest for kind in kinds)

        return sorted(self._kinds, key=trouble)[:most]

    @property
    def num_named(self) -> int:
        """The number of nodes that were ever named."""
        return len(self._kinds)

    def row(self, node_id: int, label: str) -> NodeRow:
        """Return a node's row in a map of nodes."""
        spans = [
            Span(max(place * self.width, 1), min((place + 1) * self.width - 1, self.last), kind)
            for place, kind in sorted(self._kinds[node_id].items())
        ]
        return NodeRow.of(label, spans)

    def _widen(self) -> None:
        self.width *= 2
        for name, bins in self._sums.items():
            merged: dict[int, tuple[float, int]] = {}
            for place, (total, count) in bins.items():
                before = merged.get(place // 2, (0.0, 0))
                merged[place // 2] = (before[0] + total, before[1] + count)
            self._sums[name] = merged
        for node_id, kinds in self._kinds.items():
            joined: dict[int, str] = {}
            for place, kind in kinds.items():
                joined[place // 2] = _graver(joined.get(place // 2, kind), kind)
            self._kinds[node_id] = joined


def kinds_of(metrics: MetricRecord) -> dict[int, str]:
    """Return the gravest kind of each node that a round's metrics name, by the node's id."""
    found: dict[int, str] = {}
    for name, kind in KIND_OF.items():
        nodes = metrics.get(name, [])
        for node_id in nodes if isinstance(nodes, list) else []:
            found.setdefault(int(node_id), kind)
    return found


def _graver(one: str, other: str) -> str:
    return min(one, other, key=GRAVITY.__getitem__)
