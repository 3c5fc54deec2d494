"""Compares strategies under attacks: grids of runs, and their results.

`tables`, `plots` and `report` are not imported here, as they need packages that nodes do not have.
"""

from solon_fl.simulations.compare.comparison import (
    NO_ATTACK,
    Comparison,
    load_comparison,
    parse_comparison,
    shipped_comparisons,
)
from solon_fl.simulations.compare.results import Cell, Results, Verdict
from solon_fl.simulations.compare.running import run_comparison

__all__ = [
    "NO_ATTACK",
    "Cell",
    "Comparison",
    "Results",
    "Verdict",
    "load_comparison",
    "parse_comparison",
    "run_comparison",
    "shipped_comparisons",
]
