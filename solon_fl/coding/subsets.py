"""Sets of rows that are looked at one and all: what decoding beyond the bound tries."""

from collections.abc import Iterator
from itertools import combinations, islice

import numpy as np

from ._types import IntArray

__all__ = ["MAX_SETS", "blocks_of_sets"]

MAX_SETS = 3_000_000  # tried in some 5 s
SETS_AT_ONCE = 32_768  # of 20 rows, 5 MB a matrix


def blocks_of_sets(num_rows: int, size: int) -> Iterator[IntArray]:
    """Yield all sets of that many rows, ascending, (number, size) at a time."""
    sets = combinations(range(num_rows), size)
    while block := list(islice(sets, SETS_AT_ONCE)):
        yield np.array(block, dtype=np.int64)
