"""Arithmetic modulo p, against Python's integers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from solon_fl.coding.exact.field import (
    LARGEST,
    P,
    canonical,
    combined,
    dual_multipliers,
    float_bits,
    halves,
    inverse,
    lagrange,
    reduced,
)
from tests.coding.exact.problems import SPECIAL, assert_same_bits, of_bits, one_nan
from tests.oracles import PRIME, value_in_field

SMALLEST = -(2**31)
CPU = torch.device("cpu")
ODD_HALVES = (2**15 - 1) * (2**16 + 1)

edges = st.sampled_from([0, 1, 2, 2**16 - 1, 2**16, 2**31 - 6, 2**31 - 5, 2**31, P // 2, P // 2 + 1, P - 2, P - 1])
numbers = edges | st.integers(0, P - 1)
int32s = st.sampled_from([SMALLEST, SMALLEST + 1, -1, 0, LARGEST]) | st.integers(SMALLEST, LARGEST)


def field_array(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def float_column(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_p_is_the_largest_prime_below_2_to_the_32() -> None:
    assert P == PRIME
    assert all(P % divisor for divisor in range(2, math.isqrt(P) + 1))
    assert LARGEST - SMALLEST + 1 == P


@given(st.lists(numbers, min_size=1, max_size=20))
@example([0, 1, P - 1])
def test_inverses(values: list[int]) -> None:
    expected = [pow(value, -1, P) if value else 0 for value in values]
    assert inverse(field_array(values)).tolist() == expected


@given(st.data(), st.integers(1, 8), st.booleans())
def test_polynomials_are_interpolated(data: st.DataObject, degree: int, far: bool) -> None:
    """This includes points that are already known."""
    places = numbers if far else st.integers(1, 12)
    points = data.draw(st.lists(places, min_size=degree, max_size=degree, unique=True))
    others = data.draw(st.lists(places | st.sampled_from(points), min_size=1, max_size=6))
    values = data.draw(st.lists(numbers, min_size=degree, max_size=degree))
    matrix = lagrange(field_array(points), field_array(others))
    found = [sum(w * y for w, y in zip(row, values, strict=True)) % P for row in matrix.tolist()]
    assert found == [value_in_field(points, values, place) for place in others]


@given(st.lists(numbers, min_size=1, max_size=9, unique=True), st.data())
def test_dual_multipliers_are_orthogonal_to_polynomials(points: list[int], data: st.DataObject) -> None:
    coefficients = data.draw(st.lists(numbers, min_size=len(points) - 1, max_size=len(points) - 1))
    values = [sum(c * pow(x, i, P) for i, c in enumerate(coefficients)) for x in points]
    multipliers = dual_multipliers(field_array(points)).tolist()
    assert all(multipliers)
    assert sum(u * y for u, y in zip(multipliers, values, strict=True)) % P == 0


# Integers in float64


@given(st.lists(numbers, min_size=1, max_size=20))
@example([0, 1, P // 2, P // 2 + 1, P - 1, 2**15, 2**16])
def test_halves_are_small_and_make_up_the_number(values: list[int]) -> None:
    high, low = halves(field_array([values]), CPU).tolist()
    assert max(map(abs, high + low)) <= 2**15
    assert [int(2**16 * h + w) % P for h, w in zip(high, low, strict=True)] == values


@given(
    terms=st.sampled_from([1, 2, 10, 23, 24, 25, 47, 48, 49, 72, 199, 200]),
    rows=st.integers(1, 3),
    width=st.integers(1, 3),
    seed=st.integers(0, 2**32),
    extreme=st.none() | st.tuples(st.sampled_from([P // 2, P // 2 + 1, ODD_HALVES, P - ODD_HALVES]), int32s),
)
@example(terms=24, rows=1, width=1, seed=0, extreme=(ODD_HALVES, LARGEST - 1))
@example(terms=199, rows=1, width=1, seed=0, extreme=(ODD_HALVES, LARGEST - 1))
@example(terms=24, rows=1, width=1, seed=0, extreme=(P - ODD_HALVES, SMALLEST + 1))
@example(terms=199, rows=1, width=1, seed=0, extreme=(P - ODD_HALVES, SMALLEST + 1))
def test_matrix_products(terms: int, rows: int, width: int, seed: int, extreme: tuple[int, int] | None) -> None:
    """Products are exact even where nothing cancels and sums need all bits of a float64."""
    rng = np.random.default_rng(seed)
    matrix = rng.integers(P, size=(rows, terms), dtype=np.uint64)
    columns = rng.integers(SMALLEST, LARGEST, size=(terms, width), endpoint=True)
    if extreme:
        matrix[:], columns[:] = extreme
    found = combined(halves(matrix, CPU), torch.from_numpy(columns).double())
    exact = matrix.astype(object) @ columns.astype(object)
    assert [int(value) % P for value in found.flatten().tolist()] == [value % P for value in exact.flatten()]
    assert found.abs().max() < 2**51
    assert [value % P for value in canonical(found).flatten().tolist()] == [value % P for value in exact.flatten()]


wide = st.integers(-(2**53), 2**53) | st.builds(
    lambda multiple, offset: max(min(multiple * P + offset, 2**53), -(2**53)),
    st.integers(-(2**21), 2**21),
    st.sampled_from([0, 1, -1, P // 2, P // 2 + 1, -(P // 2), -(P // 2) - 1]) | st.integers(-9, 9),
)


@given(st.lists(wide, min_size=1, max_size=20), st.booleans())
@example([2**53, -(2**53), 2**53 - 1, 1 - 2**53, 0, P, -P, P * 2**20, P // 2, -(P // 2)], False)
def test_numbers_up_to_2_to_the_53_are_reduced(values: list[int], with_memory: bool) -> None:
    memory = torch.full((len(values),), torch.nan, dtype=torch.float64) if with_memory else None
    found = reduced(float_column(values), memory).tolist()
    assert [int(number) % P for number in found] == [value % P for value in values]
    assert all(number.is_integer() and abs(number) <= P / 2 + 8 for number in found)
    assert [number == 0 for number in found] == [value % P == 0 for value in values]


boundaries = [SMALLEST, SMALLEST + 1, -4, -3, -2, -1, 0, 1, LARGEST - 1, LARGEST]


@given(st.lists(int32s, min_size=1, max_size=20))
@example(boundaries)
def test_every_number_has_one_int32(values: list[int]) -> None:
    reached = [value + multiple for value in values for multiple in (-P, 0, P) if abs(value + multiple) <= P / 2 + 8]
    found = canonical(float_column(reached))
    assert found.dtype == torch.int32
    assert found.tolist() == [(value - SMALLEST) % P + SMALLEST for value in reached]
    assert set(found.tolist()) <= set(values)


@pytest.mark.parametrize("offset", range(-8, 9))
def test_numbers_beside_half_of_p_become_int32(offset: int) -> None:
    multiples = [0, 1, 2**18, 2**19 - 2]  # the last is near 2^51, the limit
    values = [sign * (multiple * P + P // 2) + offset for multiple in multiples for sign in (1, -1)]
    assert canonical(float_column(values)).tolist() == [(value - SMALLEST) % P + SMALLEST for value in values]


# The bits of floats


@given(st.lists(st.sampled_from(SPECIAL) | st.integers(SMALLEST, 2**31 - 1), min_size=1, max_size=20))
def test_bits_are_numbers_of_the_field_and_stand_for_the_same_floats(bits: list[int]) -> None:
    values = of_bits(bits)
    found = float_bits(values)
    assert found.max() <= LARGEST
    assert_same_bits(found.view(torch.float32), one_nan(values))
    assert values.view(torch.int32).tolist() == bits  # unchanged


def test_all_nans_are_one() -> None:
    patterns = [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x7FFFFFFB, -1, -0x007FFFFF, -0x00400000]
    assert set(float_bits(of_bits(patterns)).tolist()) == {0x7FC00000}


@pytest.mark.parametrize("values", [[1.0, -0.0], [math.inf, 1e-45], [3.4e38, 3.4e38], [-3.4e38, -3.4e38]])
def test_bits_without_a_nan_are_not_copied(values: list[float]) -> None:
    floats = torch.tensor(values)
    assert float_bits(floats).data_ptr() == floats.data_ptr()


def test_infinities_that_cancel_are_no_nan() -> None:
    values = torch.tensor([math.inf, -math.inf, -0.0, 1e-45])
    assert_same_bits(float_bits(values).view(torch.float32), values)
