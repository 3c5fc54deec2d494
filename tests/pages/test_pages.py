import json
import os
from pathlib import Path

import pytest

from solon_fl.pages import Bar, BarChart, Curve, LineChart, NodeMap, NodeRow, Span, write_page
from solon_fl.pages.charts import MOST_POINTS


def chart(*curves: Curve, **changes: object) -> LineChart:
    return LineChart(**{"title": "t", "x_label": "round", "curves": curves, **changes})  # type: ignore[arg-type]


def curve(x: list[float], y: list[float], **changes: object) -> Curve:
    return Curve(**{"name": "a", "colour": "#000000", "x": x, "y": y, **changes})  # type: ignore[arg-type]


# Charts


def test_points_stand_where_the_axes_say() -> None:
    drawn = chart(curve([0, 10], [0.0, 0.8]), unit="%", bottom=0.0, top=0.8)
    (_, _, points), ticks = drawn.shown[0], drawn.y_ticks
    assert drawn.path(points) == f"M{drawn.left:.1f} {drawn.lower:.1f}L{drawn.right:.1f} {drawn.upper:.1f}"
    assert [tick.label for tick in ticks] == ["0 %", "20 %", "40 %", "60 %", "80 %"]
    assert [tick.label for tick in drawn.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert (ticks[0].at, ticks[-1].at) == (drawn.lower, drawn.upper)
    assert drawn.data(points).endswith("10,80.0\N{NO-BREAK SPACE}%")
    assert drawn.description == "t. Last values: a 80.0 %."


def test_a_logarithmic_axis_leaves_out_what_has_no_place_on_it() -> None:
    drawn = chart(curve([0.0, 0.1, 1.0, 10.0], [1, 2, 3, 4]), is_log=True)
    (_, _, points) = drawn.shown[0]
    assert points == [(0.1, 2), (1.0, 3), (10.0, 4)]
    middle = float(drawn.data(points).split(";")[1].split(",")[0])
    assert middle == pytest.approx((drawn.left + drawn.right) / 2, abs=0.06)


def test_long_curves_are_thinned_out_and_keep_their_end() -> None:
    numbers = [float(number) for number in range(10_000)]
    points = curve(numbers, numbers).points
    assert len(points) <= MOST_POINTS + 1
    assert points[-1] == (9999.0, 9999.0)


@pytest.mark.parametrize("values", [[], [float("nan")], [float("inf"), float("-inf")]])
def test_what_is_not_finite_is_not_drawn(values: list[float]) -> None:
    drawn = chart(curve([1.0] * len(values), values), curve([1.0], [5.0], name="b"))
    assert [line.name for line, _, _ in drawn.shown] == ["b"]
    assert drawn.x_ticks
    assert drawn.y_ticks
    assert chart(curve([1.0] * len(values), values)).is_empty


def test_no_figure_is_too_large_or_too_small_for_an_axis() -> None:
    assert curve([1, 2, 3, 4], [1e308, -1e308, 5e-324, 1e300]).points == [(3, 0.0), (4, 1e300)]
    for values in ([1e300, -1e300], [1.7e308, 0.1], [5e-324], [-1e-320, 1e-300]):
        drawn = chart(curve([1.0, 2.0][: len(values)], values))
        assert drawn.y_ticks
        assert all(len(part) < 40 for part in [drawn.description, *(tick.label for tick in drawn.y_ticks)])


def test_curves_can_be_told_apart_without_colours_and_a_wide_one_lies_below() -> None:
    drawn = chart(*(curve([1, 2], [1, 2], name=name) for name in "abc"), curve([1, 2], [1, 2], name="d", is_wide=True))
    assert [line.name for line, _, _ in drawn.shown] == ["d", "a", "b", "c"]
    assert len({dash for line, dash, _ in drawn.shown if not line.is_wide}) == 3


# Maps and bars


def test_spans_of_a_kind_that_meet_are_one() -> None:
    spans = [Span(1, 1, "lying"), Span(2, 2, "lying"), Span(4, 4, "lying"), Span(5, 5, "suspected")]
    row = NodeRow.of("x" * 30, spans)
    assert row.words == "lying, rounds 1 to 2; lying, round 4; suspected, round 5"
    assert row.short_label == "x" * 17 + "…"
    shown = NodeMap(title="t", rows=[row], first=1, last=5)
    assert [kind for kind, _ in shown.kinds] == ["lying", "suspected"]
    assert shown.across(6) == shown.width
    assert [number for _, number in shown.ticks] == [1, 2, 3, 4, 5]


def test_the_longest_bar_fills_the_row() -> None:
    bars = BarChart(
        title="t",
        caption="",
        parts=[("a", "#000000"), ("b", "#111111"), ("c", "#222222")],
        bars=[Bar(name="x", parts=[1, 3, 0]), Bar(name="y", parts=[1, 0, 0])],
    )
    assert [(name, width) for name, _, _, width in bars.pieces(bars.bars[0])] == [("a", 25.0), ("b", 75.0)]
    assert bars.words(bars.bars[1]) == "a 1 s"
    assert bars.used == [("a", "#000000"), ("b", "#111111")]


# Files


def test_a_page_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "new" / "page.html"
    write_page(page, "old")

    def full(self: Path, *args: object, **kwargs: object) -> int:
        os.close(os.open(self, os.O_CREAT | os.O_WRONLY))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_page(page, "new")
    assert page.read_text() == "old"
    assert list(page.parent.iterdir()) == [page]


def test_text_that_no_encoding_has_is_written_all_the_same(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", json.loads('"a\\ud800b"'))
    assert (tmp_path / "page.html").read_text() == "a?b"
