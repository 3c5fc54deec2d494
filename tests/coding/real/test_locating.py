from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon_fl import FourierCode, RealCode, VandermondeCode
from solon_fl.coding.real.locating import explaining_supports, parity_of
from tests.coding.real.problems import problem_of


@given(
    kind=st.sampled_from([FourierCode, VandermondeCode]),
    compression=st.integers(1, 5),
    num_projections=st.sampled_from([1, 3, 16]),
    seed=st.integers(0, 2**32),
)
def test_residuals_are_those_of_least_squares(
    kind: type[RealCode], compression: int, num_projections: int, seed: int
) -> None:
    code = kind(group_size=4 + compression, compression=compression)
    problem = problem_of(code, {0: 1.0, 2: 1e-3}, seed, num_projections)
    for size in range(3):
        supports = np.array(list(combinations(range(code.group_size), size)), dtype=np.int64)
        for support, residual in zip(supports, problem.residuals(supports), strict=True):
            kept = np.delete(np.arange(code.group_size), support)
            chunks = np.linalg.lstsq(code.generator[kept], problem.projected[kept], rcond=None)[0]
            expected = np.linalg.norm(problem.projected[kept] - code.generator[kept] @ chunks)
            assert residual == pytest.approx(expected, rel=1e-6, abs=1e-10)
            assert problem.residual(tuple(support.tolist())) == pytest.approx(residual, abs=1e-12)


@given(
    size=st.integers(1, 3),
    loud=st.sampled_from([1.0, 1e6, 1e14]),
    threshold=st.sampled_from([1e-9, 0.5, 3.0]),
    seed=st.integers(0, 2**32),
)
def test_the_explaining_supports_are_those_with_small_residuals(
    size: int, loud: float, threshold: float, seed: int
) -> None:
    """This holds even if one row is so large that its rounding error hides the disagreement of the others."""
    problem = problem_of(FourierCode(group_size=8, compression=2), {1: loud, 4: 1.0}, seed)
    supports, residuals = explaining_supports(problem.parity, problem.projected, size, threshold)
    every = np.array(list(combinations(range(8), size)), dtype=np.int64)
    expected = problem.residuals(every)
    assert [tuple(support) for support in supports] == [tuple(s) for s in every[expected <= threshold]]
    np.testing.assert_allclose(residuals, expected[expected <= threshold], atol=threshold / 100)


def test_the_size_of_a_row_that_is_left_out_does_not_matter() -> None:
    problem = problem_of(FourierCode(group_size=8, compression=2), {1: 1.0, 4: 1e-9})
    expected = problem.residual((1,))
    problem.projected[1] *= 1e15
    assert problem.residual((1,)) == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(1e-9, rel=0.9)


def test_small_lies_beside_huge_ones_are_not_lost_in_a_difference() -> None:
    problem = problem_of(FourierCode(group_size=7, compression=3), {1: 1e6, 4: 1e-6})
    assert problem.residual((1,)) == pytest.approx(1e-6, rel=0.9)
    assert problem.residual((1, 4)) < 1e-9


@given(n=st.integers(1, 12), k=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_parity_is_orthonormal_and_annihilates(n: int, k: int, seed: int) -> None:
    k = min(n, k)
    generator = np.random.default_rng(seed).normal(size=(n, k))
    parity = parity_of(generator)
    assert parity.shape == (n - k, n)
    np.testing.assert_allclose(parity @ generator, 0, atol=1e-10)
    np.testing.assert_allclose(parity @ parity.T, np.eye(n - k), atol=1e-10)
