import math
import time
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.plan.overflow import least_byzantine, overflow_in_run, overflow_probability


def by_enumeration(num_nodes: int, group_size: int, byzantine: int, liars: int) -> Fraction:
    """Enumerate every set of places that the liars may have."""
    over = total = 0
    for places in combinations(range(num_nodes), liars):
        counts = np.bincount(np.array(places, dtype=int) // group_size, minlength=1)
        over += int(counts.max()) > byzantine
        total += 1
    return Fraction(over, total)


@pytest.mark.parametrize(
    ("num_nodes", "group_size"), [(1, 1), (4, 1), (4, 2), (6, 2), (6, 3), (8, 8), (9, 3), (10, 5), (12, 4)]
)
def test_it_is_what_counting_all_groupings_gives(num_nodes: int, group_size: int) -> None:
    for byzantine in range(group_size + 2):
        for liars in range(num_nodes + 1):
            counted = by_enumeration(num_nodes, group_size, byzantine, liars)
            assert overflow_probability(num_nodes, group_size, byzantine, liars) == float(counted)


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 12), st.data())
def test_it_is_what_fractions_and_groups_one_by_one_give(
    group_size: int, num_groups: int, byzantine: int, data: st.DataObject
) -> None:
    """Multiply, group after group, the hypergeometric probability of each number of liars in it."""
    num_nodes = group_size * num_groups
    liars = data.draw(st.integers(0, min(num_nodes, 15)))
    within = {liars: Fraction(1)}  # probability of no overflow so far, by liars not placed yet
    for left in range(num_groups, 0, -1):
        rest = left * group_size
        following: dict[int, Fraction] = {}
        for open_liars, chance in within.items():
            if open_liars > rest:
                continue  # its probability is 0
            for here in range(min(byzantine, group_size, open_liars) + 1):
                ways = math.comb(group_size, here) * math.comb(rest - group_size, open_liars - here)
                share = chance * Fraction(ways, math.comb(rest, open_liars))
                following[open_liars - here] = following.get(open_liars - here, Fraction(0)) + share
        within = following
    assert overflow_probability(num_nodes, group_size, byzantine, liars) == float(1 - within.get(0, Fraction(0)))


@pytest.mark.parametrize(("num_nodes", "group_size", "byzantine", "liars"), [(100, 10, 2, 10), (60, 20, 4, 9)])
def test_it_is_what_random_permutations_show(num_nodes: int, group_size: int, byzantine: int, liars: int) -> None:
    trials = 20_000
    rng = np.random.default_rng(0)
    lying = np.zeros((trials, num_nodes), dtype=int)
    lying[:, :liars] = 1
    groups = rng.permuted(lying, axis=1).reshape(trials, -1, group_size)
    share = float((groups.sum(2).max(1) > byzantine).mean())
    expected = overflow_probability(num_nodes, group_size, byzantine, liars)
    assert 0.05 < expected < 0.95
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / trials)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 30), st.data())
def test_few_liars_are_certain_to_fit_many_certain_not_to_and_more_never_fit_better(
    group_size: int, num_groups: int, byzantine: int, data: st.DataObject
) -> None:
    num_nodes = group_size * num_groups
    liars = data.draw(st.integers(0, num_nodes))
    probability = overflow_probability(num_nodes, group_size, byzantine, liars)
    assert 0 <= probability <= 1
    assert (probability == 0) == (liars <= byzantine or byzantine >= group_size)
    if liars > byzantine * num_groups:
        assert probability == 1
    if liars < num_nodes:
        assert overflow_probability(num_nodes, group_size, byzantine, liars + 1) >= probability
    assert overflow_probability(num_nodes, group_size, byzantine + 1, liars) <= probability


@pytest.mark.parametrize(("group_size", "num_groups"), [(3, 2), (3, 4), (5, 3), (6, 3), (9, 2)])
def test_missing_nodes_spread_over_the_groups_make_it_no_likelier(group_size: int, num_groups: int) -> None:
    for present in range(num_groups, group_size * num_groups):
        sizes = [len(range(group, present, num_groups)) for group in range(num_groups)]
        for liars in range(1, min(present, 5) + 1):
            for byzantine in range(1, group_size):
                fitting = sum(
                    math.prod(map(math.comb, sizes, counts))
                    for counts in product(range(byzantine + 1), repeat=num_groups)
                    if sum(counts) == liars
                )
                missing_some = float(1 - Fraction(fitting, math.comb(present, liars)))
                if missing_some > 0:
                    assert missing_some <= overflow_probability(group_size * num_groups, group_size, byzantine, liars)


def test_over_a_run() -> None:
    assert overflow_in_run(0.0, 10**9) == 0
    assert overflow_in_run(1.0, 1) == 1
    assert overflow_in_run(0.25, 1) == pytest.approx(0.25, rel=1e-15)
    assert overflow_in_run(0.5, 2) == pytest.approx(0.75, rel=1e-15)
    exact = 1 - (1 - Fraction(1e-15)) ** 100
    assert overflow_in_run(1e-15, 100) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize(("num_nodes", "group_size", "liars"), [(100, 10, 5), (100, 20, 10), (1000, 20, 50), (4, 1, 2)])
def test_the_smallest_s_is_just_enough(num_nodes: int, group_size: int, liars: int) -> None:
    for rounds, risk in ((1, 0.5), (1000, 1e-6), (10**9, 1e-12)):
        enough = least_byzantine(num_nodes, group_size, liars, rounds, risk)

        def risked(byzantine: int, rounds: int = rounds) -> float:
            return overflow_in_run(overflow_probability(num_nodes, group_size, byzantine, liars), rounds)

        assert risked(enough) <= risk
        assert enough == 0 or risked(enough - 1) > risk


def test_the_largest_take_seconds() -> None:
    started = time.perf_counter()
    assert 0 < overflow_probability(20_000, 100, 40, 4000) < 1e-3
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_nodes": 0}, "num_nodes=0"),
        ({"num_nodes": 30_000}, "num_nodes must be at most 20000; got num_nodes=30000"),
        ({"num_nodes": 101}, "num_nodes must be a multiple of group_size; got num_nodes=101, group_size=10"),
        ({"group_size": 2.0}, r"group_size=2\.0"),
        ({"byzantine": -1}, "byzantine=-1"),
        ({"liars": True}, "liars=True"),
        ({"liars": 101}, "liars must be at most num_nodes=100; got liars=101"),
    ],
)
def test_bad_numbers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        overflow_probability(**{"num_nodes": 100, "group_size": 10, "byzantine": 2, "liars": 5, **changes})


def test_bad_rounds_and_risks_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="rounds=0"):
        overflow_in_run(0.5, 0)
    with pytest.raises(ConfigurationError, match=r"probability=1\.5"):
        overflow_in_run(1.5, 1)
    for risk in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigurationError, match=f"risk={risk}"):
            least_byzantine(100, 10, 5, 1, risk)
