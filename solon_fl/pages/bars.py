"""Stacked bars."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bar", "BarChart"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar of parts.

    Attributes
    ----------
    name : str
        Label of the bar.
    parts : sequence of float
        Lengths of the parts, not negative, in the order of `BarChart.parts`.
    notes : sequence of str
        Texts beside the bar, in the order of `BarChart.headings`.
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
        The heading, and the text below it.
    parts : sequence of (str, str)
        Name and colour of each part.
    bars : sequence of Bar
        From top to bottom.
    headings : sequence of str
        Headings of the texts beside the bars.
    unit : str
        Unit of the parts.
    """

    title: str
    caption: str
    parts: Sequence[tuple[str, str]]
    bars: Sequence[Bar]
    headings: Sequence[str] = ()
    unit: str = "s"

    @property
    def used(self) -> list[tuple[str, str]]:
        """The parts that are visible in some bar, for the legend."""
        return [part for number, part in enumerate(self.parts) if any(bar.parts[number] for bar in self.bars)]

    def pieces(self, bar: Bar) -> list[tuple[str, str, float, float]]:
        """Return name, colour, value and width (in per cent of the row) of each part of a bar that is not 0."""
        longest = max(sum(other.parts) for other in self.bars) or 1.0
        return [
            (name, colour, value, 100 * value / longest)
            for (name, colour), value in zip(self.parts, bar.parts, strict=True)
            if value
        ]

    def words(self, bar: Bar) -> str:
        """Return a description of a bar in words."""
        return ", ".join(f"{name} {value:.2g} {self.unit}" for name, _, value, _ in self.pieces(bar))
