import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solon_fl import FourierCode, RealCode, VandermondeCode
from solon_fl.coding._types import FloatArray
from solon_fl.coding.real import amplification
from solon_fl.coding.real.amplification import lagrange_bound, worst_amplification
from tests.oracles import largest_amplification

CODES = [FourierCode, VandermondeCode]


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize(("group_size", "compression"), [(1, 1), (3, 1), (4, 2), (5, 3), (7, 3), (8, 4), (9, 5)])
def test_the_exact_value_is_that_of_brute_force(kind: type[RealCode], group_size: int, compression: int) -> None:
    code = kind(group_size=group_size, compression=compression)
    for num_rows in range(compression, code.group_size + 1):
        expected = largest_amplification(code.generator, num_rows)
        assert expected * (1 - 1e-9) <= code.worst_amplification(num_rows) <= code.stretch * expected * (1 + 1e-9)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("compression", [1, 2, 3, 4, 5])
def test_lagrange_bound_is_at_least_the_exact_value(kind: type[RealCode], compression: int) -> None:
    code = kind(group_size=4 + compression, compression=compression)
    bound = lagrange_bound(code.points, code.multipliers, compression)
    for num_rows in range(compression, code.group_size + 1):
        assert code.stretch * bound >= code.worst_amplification(num_rows) * (1 - 1e-9)


def test_a_repetition_code_amplifies_nothing() -> None:
    assert FourierCode(group_size=5, compression=1).amplification == pytest.approx(1)


def test_all_rows_of_the_fourier_code_average_noise() -> None:
    code = FourierCode(group_size=12, compression=4)
    assert code.worst_amplification(code.group_size) == pytest.approx(math.sqrt(4 / 12))


def test_fewer_rows_amplify_no_less() -> None:
    code = FourierCode(group_size=10, compression=6)
    values = [code.worst_amplification(num_rows) for num_rows in range(6, 11)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize(("group_size", "compression"), [(9, 8), (12, 9), (13, 11), (14, 12), (14, 14)])
def test_rows_left_out_tell_as_much_as_those_kept(kind: type[RealCode], group_size: int, compression: int) -> None:
    code = kind(group_size=group_size, compression=compression)
    for num_rows in range(compression, group_size + 1):
        expected, margin = largest_amplification(code.generator, num_rows), 1e-9
        margin = max(margin, 1e-14 * expected)
        assert expected * (1 - margin) <= code.worst_amplification(num_rows) <= code.stretch * expected * (1 + margin)


@pytest.mark.parametrize("num_rows", [4, 5, 6])
def test_the_scale_of_a_generator_counts(num_rows: int) -> None:
    generator = FourierCode(group_size=6, compression=4).generator
    amplification_of_10 = worst_amplification((10 * generator).tobytes(), 6, num_rows, True)
    assert amplification_of_10 == pytest.approx(largest_amplification(generator, num_rows) / 10, rel=1e-9)


@pytest.mark.slow
@given(
    kind=st.sampled_from(CODES),
    sizes=st.tuples(*[st.integers(1, 256)] * 3).map(sorted),
)
@settings(max_examples=20, deadline=None)
@example(FourierCode, [118, 118, 120])
@example(FourierCode, [248, 248, 250])
@example(FourierCode, [10, 10, 20])
@example(FourierCode, [31, 31, 37])
@example(FourierCode, [3, 255, 256])
@example(VandermondeCode, [17, 20, 21])
def test_a_search_is_bounded_in_memory_and_in_work(kind: type[RealCode], sizes: list[int]) -> None:
    compression, num_rows, group_size = sizes
    arrays: list[tuple[int, int, int]] = []
    bounds = amplification._inverse_bounds

    def record(matrices: FloatArray) -> FloatArray:
        assert matrices.nbytes <= amplification.BLOCK_BYTES
        arrays.append(matrices.shape)
        return bounds(matrices)

    with pytest.MonkeyPatch.context() as patch:
        code = kind(group_size=group_size, compression=compression)
        patch.setattr(amplification, "_inverse_bounds", record)
        worst_amplification.cache_clear()
        assert code.worst_amplification(num_rows) >= largest_of_some(code.generator, num_rows) * (1 - 1e-9)
    assert sum(number * (long + 2 * short) * short**2 for number, long, short in arrays) <= amplification.MAX_COST


def largest_of_some(generator: FloatArray, num_rows: int) -> float:
    """Return the largest 1 / sigma_min over windows of neighbours, a lower bound; 0 where float64 is too imprecise."""
    starts = range(0, len(generator), 1 + len(generator) // 4)
    rows = [generator.take(range(start, start + num_rows), axis=0, mode="wrap") for start in starts]
    largest = max(1 / max(float(np.linalg.svd(part)[1][-1]), 1e-300) for part in rows)
    return largest if largest < 1e6 else 0.0


def test_a_search_that_costs_too_much_falls_back_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    code = FourierCode(group_size=11, compression=5)
    exact = worst_amplification(code.generator.tobytes(), 11, 5, True)
    monkeypatch.setattr(amplification, "MAX_COST", 10)
    worst_amplification.cache_clear()
    assert worst_amplification(code.generator.tobytes(), 11, 5, True) == math.inf
    assert exact <= code.worst_amplification(5) < math.inf
    worst_amplification.cache_clear()


def test_the_worst_rows_need_not_hold_the_first() -> None:
    code = VandermondeCode(group_size=4, compression=2, nodes=[-10, 0, 0.1, 10])
    assert code.amplification == pytest.approx(largest_amplification(code.generator[1:3], 2))


def test_dependent_rows_amplify_without_limit() -> None:
    generator = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert worst_amplification(generator.tobytes(), 3, 2, False) == math.inf
