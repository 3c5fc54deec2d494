"""Bars of parts, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bar", "BarChart"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What one thing took.

    Attributes
    ----------
    name : str
        Of the thing.
    parts : sequence of float
        Not negative, in the order of `BarChart.parts`.
    notes : sequence of str
        What stands beside the bar, in the order of `BarChart.headings`.
    """

    name: str
    parts: Sequence[float]
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class BarChart:
    """Bars on one scale.

    Attributes
    ----------
    title, caption : str
        The heading, and what is said below it.
    parts : sequence of (str, str)
        Name and colour of each part.
    bars : sequence of Bar
        From top to bottom.
    headings : sequence of str
        Of what stands beside the bars.
    unit : str
        Of the parts.
    """

    title: str
    caption: str
    parts: Sequence[tuple[str, str]]
    bars: Sequence[Bar]
    headings: Sequence[str] = ()
    unit: str = "s"

    @property
    def used(self) -> list[tuple[str, str]]:
        """The parts of which there is anything to see, for the legend."""
        return [part for number, part in enumerate(self.parts) if any(bar.parts[number] for bar in self.bars)]

    def pieces(self, bar: Bar) -> list[tuple[str, str, float, float]]:
        """Return name, colour, value and width in per cent of the row, of each part of a bar."""
        longest = max(sum(other.parts) for other in self.bars) or 1.0
        return [
            (name, colour, value, 100 * value / longest)
            for (name, colour), value in zip(self.parts, bar.parts, strict=True)
            if value
        ]

    def words(self, bar: Bar) -> str:
        """Return a bar in words."""
        return ", ".join(f"{name} {value:.2g} {self.unit}" for name, _, value, _ in self.pieces(bar))
