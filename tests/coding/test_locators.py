"""The three locators on the same problems; the decoder's tests say what they are good for together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon_fl import (
    ExhaustiveLocator,
    FourierCode,
    LinearCode,
    Locator,
    RationalLocator,
    SubspaceLocator,
    VandermondeCode,
)
from solon_fl.coding.locators import _hankel_support, power_syndromes
from tests.coding.problems import problem_of

LOCATORS: list[Locator] = [ExhaustiveLocator(), SubspaceLocator(), RationalLocator()]


@given(
    locator=st.sampled_from(LOCATORS),
    kind=st.sampled_from([FourierCode, VandermondeCode]),
    compression=st.integers(1, 4),
    exponents=st.lists(st.floats(-2, 4), min_size=2, max_size=2),
    seed=st.integers(0, 2**32),
)
def test_as_many_lies_as_allowed_are_located(
    locator: Locator, kind: type[LinearCode], compression: int, exponents: list[float], seed: int
) -> None:
    code = kind(byzantine=2, compression=compression)
    rows = sorted(np.random.default_rng(seed).choice(code.group_size, 2, replace=False).tolist())
    lies = {row: 10**exponent for row, exponent in zip(rows, exponents, strict=True)}
    assert locator.locate(problem_of(code, lies, seed)) == tuple(rows)


@pytest.mark.parametrize("locator", LOCATORS, ids=lambda locator: type(locator).__name__)
@pytest.mark.parametrize("row", range(8))
def test_fewer_lies_than_allowed_are_among_those_named(locator: Locator, row: int) -> None:
    support = locator.locate(problem_of(FourierCode(byzantine=2, compression=4), {row: 1.0}, seed=row))
    assert row in support
    assert len(support) <= 2


@pytest.mark.parametrize("locator", [ExhaustiveLocator(), SubspaceLocator()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("seed", range(10))
def test_five_liars_of_twenty_are_located(locator: Locator, seed: int) -> None:
    code = FourierCode(byzantine=5, compression=10)
    rows = sorted(np.random.default_rng(seed).choice(20, 5, replace=False).tolist())
    assert locator.locate(problem_of(code, dict.fromkeys(rows, 0.01), seed)) == tuple(rows)


@pytest.mark.parametrize("kind", [FourierCode, VandermondeCode])
@pytest.mark.parametrize("seed", range(10))
def test_without_noise_the_null_space_alone_names_the_liars(kind: type[LinearCode], seed: int) -> None:
    code = kind(byzantine=3, compression=4, rtol=1e-9)
    rows = sorted(np.random.default_rng(seed).choice(10, 3, replace=False).tolist())
    problem = problem_of(code, dict.fromkeys(rows, 1.0), seed)
    assert _hankel_support(problem, power_syndromes(problem), 3) == tuple(rows)


@pytest.mark.parametrize("seed", range(10))
def test_exchanges_mend_what_noise_did_to_the_null_space(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sorted(np.random.default_rng(seed).choice(20, 5, replace=False).tolist())
    innocent = [row for row in range(20) if row not in rows]
    wrong = tuple(sorted([*rows[1:], innocent[seed]]))
    monkeypatch.setattr("solon_fl.coding.locators._hankel_support", lambda *_: wrong)
    problem = problem_of(FourierCode(byzantine=5, compression=10), dict.fromkeys(rows, 1.0), seed)
    assert SubspaceLocator().locate(problem) == tuple(rows)


def test_subspace_returns_the_best_of_its_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = iter([((0, 1), 1.0), ((2, 3), 2.0)])  # for two lies, for one; neither within the tolerance
    monkeypatch.setattr("solon_fl.coding.locators._exchange", lambda *_: next(attempts))
    assert SubspaceLocator().locate(problem_of(FourierCode(byzantine=2, compression=3), {0: 1.0, 4: 1.0})) == (0, 1)


@pytest.mark.parametrize("seed", range(20))
def test_subspace_finds_ten_liars_of_forty(seed: int) -> None:
    code = FourierCode(byzantine=10, compression=20, rtol=1e-14)
    rows = sorted(np.random.default_rng(seed).choice(40, 10, replace=False).tolist())
    assert SubspaceLocator().locate(problem_of(code, dict.fromkeys(rows, 1.0), seed)) == tuple(rows)


def test_exhaustive_is_the_least_of_all_residuals() -> None:
    problem = problem_of(FourierCode(byzantine=2, compression=3), {0: 1.0, 1: 1.0, 2: 1.0})  # one too many
    support = ExhaustiveLocator().locate(problem)
    assert problem.residual(support) == problem.all_residuals()[1].min()


def test_exhaustive_names_nobody_where_there_are_too_many_supports() -> None:
    problem = problem_of(FourierCode(byzantine=2, compression=3), {0: 1.0})
    # C(7, 2) supports of (4 - 2) x 4 numbers
    assert ExhaustiveLocator(max_numbers=21 * 8).can_try_all(problem)
    assert ExhaustiveLocator(max_numbers=21 * 8).locate(problem) != ()
    assert ExhaustiveLocator(max_numbers=21 * 8 - 1).locate(problem) == ()


@pytest.mark.parametrize("kind", [FourierCode, VandermondeCode])
def test_power_syndromes_vanish_for_honest_rows_and_show_the_point_of_a_lie(kind: type[LinearCode]) -> None:
    code = kind(byzantine=2, compression=3)
    np.testing.assert_allclose(power_syndromes(problem_of(code, {})), 0, atol=1e-9)
    syndromes = power_syndromes(problem_of(code, {4: 1.0}))
    np.testing.assert_allclose(syndromes[1:], code.points[4] * syndromes[:-1], atol=1e-9)
    assert np.abs(syndromes[0]).max() > 1e-3
