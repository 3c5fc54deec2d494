"""The checks of columns, with integer weights and with halves, against Python's integers."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solon_fl import ExactCode
from solon_fl.coding.exact import checks
from solon_fl.coding.exact.checks import LARGEST_SUM, Checks, _whole_weights
from solon_fl.coding.exact.field import LARGEST, P
from tests.oracles import evaluate

CPU = torch.device("cpu")
SMALLEST = -(2**31)


@contextmanager
def largest_sum(value: int) -> Iterator[None]:
    """Set the largest sum of weights; 0 forces halves."""
    _whole_weights.cache_clear()
    with patch.object(checks, "LARGEST_SUM", value):
        yield
    _whole_weights.cache_clear()


def failing_columns(code: ExactCode, rows: list[int], columns: np.ndarray, whole: bool) -> list[int]:
    with largest_sum(LARGEST_SUM if whole else 0):
        found = Checks(code, rows, columns.shape[1] + 3, CPU)
        passed = found.passed_by(torch.from_numpy(columns).double())
    places = found.failing.nonzero().flatten().tolist()
    assert passed == (not places)
    return [int(place) for place in places]


@given(compression=st.integers(1, 12), more=st.integers(1, 12), whole=st.booleans(), data=st.data())
def test_only_codewords_pass(compression: int, more: int, whole: bool, data: st.DataObject) -> None:
    """A column with any error, however small and wherever it is, fails."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    code = ExactCode(group_size=compression + 2 * more, compression=compression)
    rows = sorted(rng.choice(code.group_size, size=compression + more, replace=False).tolist())
    polynomials = rng.integers(P, size=(9, compression)).tolist()
    exact = [[evaluate(polynomial, row + 1) for polynomial in polynomials] for row in rows]
    columns = (np.array(exact, dtype=np.int64) - SMALLEST) % P + SMALLEST
    wrong = data.draw(st.sets(st.integers(0, 8)))
    for column in wrong:
        row = data.draw(st.integers(0, len(rows) - 1))
        off = data.draw(st.sampled_from([1, -1, 2**31, -(2**31)]))
        columns[row, column] = (columns[row, column] + off - SMALLEST) % P + SMALLEST
    assert failing_columns(code, rows, columns, whole) == sorted(wrong)


@given(compression=st.integers(1, 25), size=st.integers(2, 60), seed=st.integers(0, 2**32))
def test_whole_weights_annihilate_and_stay_small(compression: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    compression = min(compression, size - 1)
    spread = size + int(rng.integers(3))
    rows = sorted(rng.choice(spread, size=size, replace=False).tolist())
    weights = _whole_weights(tuple(rows), compression)
    if weights is None:
        return
    assert len(weights) == size - compression
    for number, check in enumerate(weights):
        assert all(check)
        assert sum(map(abs, check)) <= LARGEST_SUM
        window = rows[number : number + compression + 1]
        for power in range(compression):
            assert sum(weight * row**power for weight, row in zip(check, window, strict=True)) == 0


def test_neighbours_are_checked_by_binomial_coefficients_as_far_as_these_go() -> None:
    weights = _whole_weights(tuple(range(5, 28)), 22)
    assert weights is not None
    assert list(map(abs, weights[0])) == [math.comb(22, place) for place in range(23)]
    assert sum(map(abs, weights[0])) == LARGEST_SUM
    assert _whole_weights(tuple(range(5, 29)), 23) is None
    assert _whole_weights((0, 1, 2, 1000, 1_000_000), 3) is None  # too far apart


@pytest.mark.parametrize("whole", [True, False])
def test_the_largest_sums_are_exact(whole: bool) -> None:
    """All products have the same sign and add up to 2^53. A change of the last bit of one entry is detected."""
    code = ExactCode(group_size=30, compression=22)
    rows = list(range(23))
    weights = _whole_weights(tuple(rows), 22)
    assert weights is not None
    columns = np.where(np.array(weights[0]) > 0, LARGEST, SMALLEST)[:, None].repeat(24, axis=1)
    for place in range(23):
        columns[place, place] += 1 if columns[place, place] < 0 else -1
    sums = (np.array(weights[0], dtype=object) @ columns.astype(object)).tolist()
    assert max(map(abs, sums)) > 2**53 - 2**25
    expected = [number for number, total in enumerate(sums) if total % P]
    assert failing_columns(code, rows, columns, whole) == expected
