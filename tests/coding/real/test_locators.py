"""The locators on the same problems, and the decoder with any answer of a locator."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solon_fl import (
    DecodeStatus,
    ExhaustiveLocator,
    FourierCode,
    LocatingProblem,
    Locator,
    RationalLocator,
    RealCode,
    SubspaceLocator,
    VandermondeCode,
)
from solon_fl.coding.real.locating import Support, can_try_all, parity_of
from solon_fl.coding.real.locators import (
    InformationSetLocator,
    _hankel_support,
    default_locator,
    locate_rows,
    power_syndromes,
)
from tests.coding.real.problems import fourier_decoder, problem_of, shares_of

LOCATORS: list[Locator] = [ExhaustiveLocator(), InformationSetLocator(), SubspaceLocator(), RationalLocator()]


@given(
    locator=st.sampled_from(LOCATORS),
    kind=st.sampled_from([FourierCode, VandermondeCode]),
    compression=st.integers(1, 4),
    exponents=st.lists(st.floats(-2, 4), min_size=2, max_size=2),
    seed=st.integers(0, 2**32),
)
def test_as_many_lies_as_allowed_are_located(
    locator: Locator, kind: type[RealCode], compression: int, exponents: list[float], seed: int
) -> None:
    code = kind(group_size=4 + compression, compression=compression)
    rows = sorted(np.random.default_rng(seed).choice(code.group_size, 2, replace=False).tolist())
    lies = {row: 10**exponent for row, exponent in zip(rows, exponents, strict=True)}
    assert locator.locate(problem_of(code, lies, seed)) == tuple(rows)


@pytest.mark.parametrize("locator", LOCATORS, ids=lambda locator: type(locator).__name__)
@pytest.mark.parametrize("row", range(8))
def test_fewer_lies_than_allowed_are_among_those_named(locator: Locator, row: int) -> None:
    support = locator.locate(problem_of(FourierCode(group_size=8, compression=4), {row: 1.0}, seed=row))
    assert row in support
    assert len(support) <= 2


@pytest.mark.parametrize("locator", [ExhaustiveLocator(), SubspaceLocator()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("seed", range(10))
def test_five_liars_of_twenty_are_located(locator: Locator, seed: int) -> None:
    code = FourierCode(group_size=20, compression=10)
    rows = sorted(np.random.default_rng(seed).choice(20, 5, replace=False).tolist())
    assert locator.locate(problem_of(code, dict.fromkeys(rows, 0.01), seed)) == tuple(rows)


@pytest.mark.parametrize("kind", [FourierCode, VandermondeCode])
@pytest.mark.parametrize("seed", range(10))
def test_without_noise_the_null_space_alone_names_the_liars(kind: type[RealCode], seed: int) -> None:
    code = kind(group_size=10, compression=4)
    rows = sorted(np.random.default_rng(seed).choice(10, 3, replace=False).tolist())
    problem = problem_of(code, dict.fromkeys(rows, 1.0), seed)
    assert _hankel_support(problem, power_syndromes(problem), 3) == tuple(rows)


@pytest.mark.parametrize("seed", range(10))
def test_exchanges_mend_what_noise_did_to_the_null_space(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sorted(np.random.default_rng(seed).choice(20, 5, replace=False).tolist())
    innocent = [row for row in range(20) if row not in rows]
    wrong = tuple(sorted([*rows[1:], innocent[seed]]))
    monkeypatch.setattr("solon_fl.coding.real.locators._hankel_support", lambda *_: wrong)
    problem = problem_of(FourierCode(group_size=20, compression=10), dict.fromkeys(rows, 1.0), seed)
    assert SubspaceLocator().locate(problem) == tuple(rows)


def test_subspace_returns_the_best_of_its_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = iter([((0, 1), 1.0), ((2, 3), 2.0)])  # for two lies and for one; neither is within the tolerance
    monkeypatch.setattr("solon_fl.coding.real.locators._exchange", lambda *_: next(attempts))
    assert SubspaceLocator().locate(problem_of(FourierCode(group_size=7, compression=3), {0: 1.0, 4: 1.0})) == (0, 1)


@pytest.mark.parametrize("seed", range(20))
def test_subspace_finds_ten_liars_of_forty(seed: int) -> None:
    code = FourierCode(group_size=40, compression=20)
    rows = sorted(np.random.default_rng(seed).choice(40, 10, replace=False).tolist())
    assert SubspaceLocator().locate(problem_of(code, dict.fromkeys(rows, 1.0), seed)) == tuple(rows)


def test_exhaustive_is_the_least_of_all_residuals() -> None:
    problem = problem_of(FourierCode(group_size=7, compression=3), {0: 1.0, 1: 1e-3, 2: 1.0})
    problem = replace(problem, tolerance=1.0)  # more than one support explains the rows
    every = problem.residuals(np.array(list(combinations(range(7), 2)), dtype=np.int64))
    assert (every <= 1).sum() > 1
    assert problem.residual(ExhaustiveLocator().locate(problem)) == pytest.approx(every.min())


def test_exhaustive_names_nobody_where_nobody_would_do() -> None:
    problem = problem_of(FourierCode(group_size=7, compression=3), {0: 1.0, 1: 1.0, 2: 1.0})  # one too many
    assert ExhaustiveLocator().locate(problem) == ()


def test_exhaustive_names_nobody_where_there_are_too_many_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(FourierCode(group_size=7, compression=3), {0: 1.0})
    # C(7, 2) supports of (4 - 2) x 4 numbers
    monkeypatch.setattr("solon_fl.coding.real.locating.MAX_NUMBERS", 21 * 8)
    assert ExhaustiveLocator().can_try_all(problem)
    assert ExhaustiveLocator().locate(problem) != ()
    monkeypatch.setattr("solon_fl.coding.real.locating.MAX_NUMBERS", 21 * 8 - 1)
    assert ExhaustiveLocator().locate(problem) == ()


# s, k with a valid certificate that are too large to try all supports
STARVED = [(6, 9), (7, 4), (8, 4), (8, 8), (9, 7), (10, 3)]


@pytest.mark.parametrize(("s", "k"), STARVED)
def test_lies_next_to_a_codeword_are_located_by_default(s: int, k: int) -> None:
    """These lies in one direction nearly agree with 2 s - 1 honest rows, so that a local search gets stuck."""
    code = FourierCode(group_size=2 * s + k, compression=k)
    parity, rng = parity_of(code.generator), np.random.default_rng(s)
    assert not can_try_all(code.group_size, 2 * s, s)
    for size in 10 ** rng.uniform(-4.5, -2, size=15):
        around = (np.arange(2 * s) + rng.integers(code.group_size)) % code.group_size
        codeword = np.linalg.svd(parity[:, around])[2][-1]
        liars = np.argsort(-np.abs(codeword))[:s] if rng.random() < 0.5 else np.arange(2 * s)[::2]
        problem = problem_of(code, {}, int(rng.integers(2**32)))
        lies = size * codeword[liars] / np.sqrt(np.mean(codeword[liars] ** 2))
        problem.projected[around[liars]] += np.outer(lies, rng.normal(size=16) / 4)
        problem = replace(problem, tolerance=3e-6 * np.sqrt(code.group_size))
        support = locate_rows(None, problem)
        assert support is not None
        assert problem.residual(support) <= problem.tolerance


def test_information_sets_find_what_is_loud_and_name_no_more() -> None:
    code = FourierCode(group_size=24, compression=8)
    problem = problem_of(code, dict.fromkeys([0, 3, 4, 9, 11, 17, 20, 23], 1.0))
    assert InformationSetLocator().locate(problem) == (0, 3, 4, 9, 11, 17, 20, 23)


def test_information_sets_give_up_where_too_many_lie() -> None:
    problem = problem_of(FourierCode(group_size=12, compression=4), dict.fromkeys(range(0, 12, 2), 1.0))
    support = InformationSetLocator().locate(problem)
    assert not support or problem.residual(support) > problem.tolerance


def test_draws_are_as_many_as_make_twenty_honest_sets() -> None:
    assert InformationSetLocator().draws_needed(20, 10, 5) == math.ceil(20 * 184756 / 3003)


def test_where_honest_rows_are_hardly_ever_drawn_loud_lies_are_found_all_the_same() -> None:
    code = FourierCode(group_size=64, compression=32)
    lies = dict.fromkeys(range(1, 64, 4), 1.0)
    problem = replace(problem_of(code, lies), tolerance=1e-6)
    assert isinstance(default_locator(64, 32, 16), SubspaceLocator)
    assert locate_rows(None, problem) == tuple(lies)


@pytest.mark.parametrize("kind", [FourierCode, VandermondeCode])
def test_power_syndromes_vanish_for_honest_rows_and_show_the_point_of_a_lie(kind: type[RealCode]) -> None:
    code = kind(group_size=7, compression=3)
    np.testing.assert_allclose(power_syndromes(problem_of(code, {})), 0, atol=1e-9)
    syndromes = power_syndromes(problem_of(code, {4: 1.0}))
    np.testing.assert_allclose(syndromes[1:], code.points[4] * syndromes[:-1], atol=1e-9)
    assert np.abs(syndromes[0]).max() > 1e-3


# In a decode


class Says:
    """A locator that always gives the same answer."""

    def __init__(self, *rows: int) -> None:
        self.rows = rows

    def locate(self, problem: LocatingProblem) -> Support:
        return self.rows


@pytest.mark.parametrize("rows", [(), (0,), (0, 1), (0, 1, 2, 3), (3, 3), (2, 5, 6)])
def test_a_wrong_locator_makes_a_failure_not_a_wrong_result(rows: tuple[int, ...]) -> None:
    decoder = fourier_decoder(byzantine=2, compression=3, locator=Says(*rows))
    shares = shares_of(decoder.code, torch.arange(6.0))
    shares[2], shares[5] = shares[2] + 1, shares[5] - 3
    assert decoder.decode(shares).status is DecodeStatus.UNDECODABLE


def test_a_locator_in_disorder_is_understood() -> None:
    decoder = fourier_decoder(byzantine=2, compression=3, locator=Says(5, 2))
    shares = shares_of(decoder.code, torch.arange(6.0))
    shares[2], shares[5] = shares[2] + 1, shares[5] - 3
    assert decoder.decode(shares).corrupt_slots == (2, 5)


def test_needless_accusations_are_dropped() -> None:
    decoder = fourier_decoder(byzantine=2, compression=3, locator=Says(2, 5))
    shares = shares_of(decoder.code, torch.arange(6.0))
    shares[5] = shares[5] - 3
    assert decoder.decode(shares).corrupt_slots == (5,)
