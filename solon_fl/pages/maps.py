"""Maps of nodes x rounds: who was named when, for a template to write as SVG."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = ["KINDS", "NodeMap", "NodeRow", "Span"]

ROW = 18  # height of a row, in the drawing's units: about a pixel each
LEFT, WIDTH = 120, 640
LONGEST_LABEL = 18  # characters
BOTTOM = 24
# What a node can be in a round, with its colour (Okabe & Ito), the gravest first.
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
    """Rounds one after the other, the last one included, in which a node was the same kind of `KINDS`."""

    first: int
    last: int
    kind: str

    @property
    def words(self) -> str:
        """It in words."""
        rounds = f"round {self.first}" if self.first == self.last else f"rounds {self.first} to {self.last}"
        return f"{self.kind}, {rounds}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A node, and what it was in which rounds.

    Attributes
    ----------
    label : str
        Its name, or number.
    spans : tuple of Span
        Ascending, none over another.
    is_marked : bool
        Whether it is shown as a liar, as only a simulation knows.
    """

    label: str
    spans: tuple[Span, ...]
    is_marked: bool = False

    @classmethod
    def of(cls, label: str, spans: Iterable[Span], *, is_marked: bool = False) -> "NodeRow":
        """Return the row of a node, given ascending spans, of which those of a kind that meet become one."""
        joined: list[Span] = []
        for span in spans:
            if joined and (joined[-1].kind, joined[-1].last + 1) == (span.kind, span.first):
                joined[-1] = Span(joined[-1].first, span.last, span.kind)
            else:
                joined.append(span)
        return cls(label=label, spans=tuple(joined), is_marked=is_marked)

    @property
    def short_label(self) -> str:
        """Its label, cut to what there is room for."""
        return self.label if len(self.label) <= LONGEST_LABEL else self.label[: LONGEST_LABEL - 1] + "…"

    @property
    def words(self) -> str:
        """What it was, in words."""
        return "; ".join(span.words for span in self.spans) or "never named"


@dataclass(frozen=True, kw_only=True)
class NodeMap:
    """A row for each node, and a column for each round.

    Attributes
    ----------
    title : str
        The heading.
    rows : sequence of NodeRow
        The nodes to show.
    first, last : int
        Rounds.
    note : str
        What is said of the nodes that have no row.
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
        """Of the drawing."""
        return len(self.rows) * ROW + BOTTOM

    @cached_property
    def kinds(self) -> list[tuple[str, str]]:
        """The kinds that occur, for the legend, with their colours."""
        found = {span.kind for row in self.rows for span in row.spans}
        return [(kind, colour) for kind, colour in KINDS.items() if kind in found]

    def colour(self, span: Span) -> str:
        """Return the colour of a span."""
        return KINDS[span.kind]

    @property
    def ticks(self) -> list[tuple[float, int]]:
        """Where rounds have a label, and their numbers."""
        numbers = dict.fromkeys(self.first + round(part * (self.last - self.first) / 4) for part in range(5))
        return [(self.across(number) + self._round_width / 2, number) for number in numbers]

    def across(self, number: int) -> float:
        """Return where a round begins."""
        return LEFT + (number - self.first) * self._round_width

    def span_width(self, span: Span) -> float:
        """Return how wide a span is drawn."""
        gap = min(1.0, self._round_width / 4)
        return (min(span.last, self.last) - span.first + 1) * self._round_width - gap

    @property
    def _round_width(self) -> float:
        return (WIDTH - LEFT) / max(self.last - self.first + 1, 1)
