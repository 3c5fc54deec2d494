"""Line charts: the positions of all elements, for a template that writes SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

__all__ = ["Curve", "LineChart", "Tick"]

WIDTH, HEIGHT = 440, 250  # of the drawing, in its own units of about a pixel
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 36  # margins, for the ticks' labels
MOST_POINTS = 300  # of a curve; a screen does not show more
NUM_TICKS = 5
LARGEST, SMALLEST = 1e300, 1e-300  # an axis can be divided only between these values of y
DASHES = ("", "6 3", "2 2", "8 3 2 3", "12 3")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart.

    Attributes
    ----------
    name : str
        Name in the legend.
    colour : str
        "#rrggbb".
    x, y : sequence of float
        Coordinates, of equal length, x ascending. Points that are not finite, or with abs(y) above 1e300, are left out.
        A y with abs(y) below 1e-300 counts as 0.
    is_wide : bool
        Whether the curve is drawn as a wide line, below the others.
    note : str
        A remark in the legend, such as "broke off".
    """

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    is_wide: bool = False
    note: str = ""

    @cached_property
    def points(self) -> list[tuple[float, float]]:
        """The points to draw: at most about `MOST_POINTS` of those that can be drawn, always with the last one."""
        found = [
            (x, y if abs(y) >= SMALLEST else 0.0)
            for x, y in zip(self.x, self.y, strict=True)
            if math.isfinite(x) and abs(y) <= LARGEST
        ]
        step = math.ceil(len(found) / MOST_POINTS) or 1
        return found[::step] + ([found[-1]] if found and (len(found) - 1) % step else [])


class Tick(NamedTuple):
    """A mark on an axis: its position in the drawing, and its label."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Curves on common axes. Readers can point at them to see values.

    Attributes
    ----------
    title, x_label : str
        The heading, and the label of the x axis.
    curves : sequence of Curve
        The curves. Those without points are not shown.
    unit : str
        Unit of y. With "%", y is a fraction of 1 and is shown as a percentage.
    bottom, top : float or None
        Ends of the y axis. Default: from 0, or the smallest value if it is negative, to the largest.
    is_log : bool
        Whether the x axis is logarithmic. Points with x <= 0 are then left out.
    marked : float or None
        A value of y that is marked by a dotted line.
    """

    title: str
    x_label: str
    curves: Sequence[Curve]
    unit: str = ""
    bottom: float | None = None
    top: float | None = None
    is_log: bool = False
    marked: float | None = None

    width = WIDTH
    height = HEIGHT
    left, right = LEFT, WIDTH - RIGHT
    upper, lower = TOP, HEIGHT - BOTTOM

    @cached_property
    def shown(self) -> list[tuple[Curve, str, list[tuple[float, float]]]]:
        """The curves that have points, each with its dashes and points. Wide ones come first, and so lie below."""
        found = []
        for number, curve in enumerate(self.curves):
            points = [(x, y) for x, y in curve.points if x > 0 or not self.is_log]
            dash = "" if curve.is_wide else DASHES[number % len(DASHES)]  # for readers who can't tell the colours apart
            if points:
                found.append((curve, dash, points))
        return sorted(found, key=lambda item: not item[0].is_wide)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not self.shown

    @cached_property
    def x_ticks(self) -> list[Tick]:
        """The marks of the x axis."""
        low, high = self._x_range
        if self.is_log:
            values = [base * 10.0**power for power in range(-9, 10) for base in (1, 2, 5)]
            values = [value for value in values if low <= value <= high]
            values = values[:: math.ceil(len(values) / (NUM_TICKS + 2)) or 1]
        else:
            values = _round_values(low, high, whole=True)
        return [Tick(self._across(value), f"{value:,g}") for value in values]

    @cached_property
    def y_ticks(self) -> list[Tick]:
        """The marks of the y axis."""
        return [Tick(self._up(value), self.show(value)) for value in _round_values(*self._y_range)]

    @property
    def marked_at(self) -> float:
        """The position of the dotted line."""
        return self._up(self.marked or 0.0)

    @property
    def hint(self) -> str:
        """The text below the chart until a reader points at it."""
        return "at the end"

    @property
    def description(self) -> str:
        """The chart in words: the last value of each curve."""
        ends = ", ".join(f"{curve.name} {self.show(points[-1][1], 1)}" for curve, _, points in self.shown)
        return f"{self.title}. Last values: {ends}." if ends else f"{self.title}: no data yet."

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """Return the points as an SVG path."""
        places = (f"{self._across(x):.1f} {self._up(y):.1f}" for x, y in points)
        return "M" + "L".join(places) + ("h.1" if len(points) == 1 else "")

    def data(self, points: Sequence[tuple[float, float]]) -> str:
        """Return the points for the page's script: each point's across, up, x and y."""
        return ";".join(
            f"{self._across(x):.1f},{self._up(y):.1f},{x:.6g},{self.show(y, 1)}".replace(" ", "\N{NO-BREAK SPACE}")
            for x, y in points
        )

    def show(self, value: float, decimals: int = 0) -> str:
        """Return a value of y as text."""
        if self.unit == "%":
            return f"{100 * value:.{decimals}f} %"
        number = f"{value:.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.3g}"
        return f"{number} {self.unit}".strip()

    @cached_property
    def _x_range(self) -> tuple[float, float]:
        return _widened([x for _, _, points in self.shown for x, _ in points])

    @cached_property
    def _y_range(self) -> tuple[float, float]:
        values = [y for _, _, points in self.shown for _, y in points]
        low, high = _widened([*values, min(0.0, *values)] if values else [])
        return (low if self.bottom is None else self.bottom, high if self.top is None else self.top)

    def _across(self, x: float) -> float:
        low, high = map(math.log10, self._x_range) if self.is_log else self._x_range
        x = math.log10(x) if self.is_log else x
        return self.left + (self.right - self.left) * (x - low) / (high - low)

    def _up(self, y: float) -> float:
        low, high = self._y_range
        return self.lower - (self.lower - self.upper) * min(max((y - low) / (high - low), 0.0), 1.0)


def _widened(values: Sequence[float]) -> tuple[float, float]:
    """Return the smallest and the largest value; they differ by more than 0."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low, low + (abs(low) or 1.0))


def _round_values(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return about five round values between two others."""
    power = 10.0 ** math.floor(math.log10((high - low) / NUM_TICKS))
    step = next(power * base for base in (1, 2, 5, 10) if (high - low) / (power * base) <= NUM_TICKS)
    if whole:
        step = max(step, 1.0)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
