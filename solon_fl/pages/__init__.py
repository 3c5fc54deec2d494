"""HTML pages: charts, maps and bars as data, and templates that render them. Independent of training."""

from solon_fl.pages.bars import Bar, BarChart
from solon_fl.pages.charts import Curve, LineChart
from solon_fl.pages.maps import KINDS, NodeMap, NodeRow, Span
from solon_fl.pages.page import page_html, templates_are_there, write_page

__all__ = [
    "KINDS",
    "Bar",
    "BarChart",
    "Curve",
    "LineChart",
    "NodeMap",
    "NodeRow",
    "Span",
    "page_html",
    "templates_are_there",
    "write_page",
]
