"""Maps of nodes x rounds, which show when each node was named, for a template that writes SVG."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = ["KINDS", "NodeMap", "NodeRow", "Span"]

ROW = 18  # height of a row, in the drawing's units of about a pixel
LEFT, WIDTH = 120, 640
LONGEST_LABEL = 18  # characters
BOTTOM = 24
# The kinds of reports about a node, with their colours (Okabe & Ito), gravest first.
KINDS: dict[str, str] = {
    "lying": "#D55E00",
    "malformed": "#CC79A7",
    "other bits": "#0072B2",
    "suspected": "#E69F00",
    "silent or late": "#999999",
    "quarantined": "#56B4E9",
}


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rounds, including the last one, in which a node had the same kind of `KINDS`."""

    first: int
    last: int
    kind: str

    @property
    def words(self) -> str:
        """The span in words."""
        rounds = f"round {self.first}" if self.first == self.last else f"rounds {self.first} to {self.last}"
        return f"{self.kind}, {rounds}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A node, and its kinds in the rounds.

    Attributes
    ----------
    label : str
        Name or number of the node.
    spans : tuple of Span
        The spans, ascending and without overlaps.
    is_marked : bool
        Whether the node is shown as a liar. Only a simulation knows this.
    """

    label: str
    spans: tuple[Span, ...]
    is_marked: bool = False

    @classmethod
    def of(cls, label: str, spans: Iterable[Span], *, is_marked: bool = False) -> "NodeRow":
        """Return the row of a node. Of the ascending spans, adjacent ones of the same kind are joined."""
        joined: list[Span] = []
        for span in spans:
            if joined and (joined[-1].kind, joined[-1].last + 1) == (span.kind, span.first):
                joined[-1] = Span(joined[-1].first, span.last, span.kind)
            else:
                joined.append(span)
        return cls(label=label, spans=tuple(joined), is_marked=is_marked)

    @property
    def short_label(self) -> str:
        """The label, shortened to the space available."""
        return self.label if len(self.label) <= LONGEST_LABEL else self.label[: LONGEST_LABEL - 1] + "…"

    @property
    def words(self) -> str:
        """The row in words."""
        return "; ".join(span.words for span in self.spans) or "never named"


@dataclass(frozen=True, kw_only=True)
class NodeMap:
    """A row for each node, and a column for each round.

    Attributes
    ----------
    title : str
        The heading.
    rows : sequence of NodeRow
        Rows of the nodes to show.
    first, last : int
        First and last round.
    note : str
        A note about the nodes that have no row.
    """

    title: str
    rows: Sequence[NodeRow]
    first: int
    last: int
    note: str = ""

    width = WIDTH
    left = LEFT
    row_height = ROW

    @property
    def height(self) -> int:
        """Height of the drawing."""
        return len(self.rows) * ROW + BOTTOM

    @cached_property
    def kinds(self) -> list[tuple[str, str]]:
        """The kinds that occur, with their colours, for the legend."""
        found = {span.kind for row in self.rows for span in row.spans}
        return [(kind, colour) for kind, colour in KINDS.items() if kind in found]

    def colour(self, span: Span) -> str:
        """Return the colour of a span."""
        return KINDS[span.kind]

    @property
    def ticks(self) -> list[tuple[float, int]]:
        """Positions and numbers of the rounds that have a label."""
        numbers = dict.fromkeys(self.first + round(part * (self.last - self.first) / 4) for part in range(5))
        return [(self.across(number) + self._round_width / 2, number) for number in numbers]

    def across(self, number: int) -> float:
        """Return the position at which a round begins."""
        return LEFT + (number - self.first) * self._round_width

    def span_width(self, span: Span) -> float:
        """Return the width of a span in the drawing."""
        gap = min(1.0, self._round_width / 4)
        return (min(span.last, self.last) - span.first + 1) * self._round_width - gap

    @property
    def _round_width(self) -> float:
        return (WIDTH - LEFT) / max(self.last - self.first + 1, 1)
