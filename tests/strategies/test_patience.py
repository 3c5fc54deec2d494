import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon_fl.strategies.patience import FACTOR, FLOOR, Patience

times = st.floats(0, 1e4)


def patience_after(seconds: dict[int, float]) -> Patience:
    patience = Patience()
    for node_id, taken in seconds.items():
        patience.record(node_id, taken)
    return patience


def test_it_is_three_times_the_median_and_two_seconds_at_least() -> None:
    assert patience_after({1: 10, 2: 1, 3: 100}).seconds([1, 2, 3]) == 30
    assert patience_after({1: 0.1, 2: 0.1, 3: 100}).seconds([1, 2, 3]) == FLOOR == 2


def test_it_has_no_end_until_more_than_half_have_answered() -> None:
    assert Patience().seconds([]) == Patience().seconds([1, 2, 3]) == math.inf
    assert patience_after({1: 1}).seconds([1, 2]) == math.inf
    assert patience_after({1: 1, 2: 1}).seconds([1, 2, 3]) == 3


def test_the_latest_answer_counts() -> None:
    patience = patience_after({1: 100})
    patience.record(1, 5)
    assert patience.seconds([1]) == 15


@given(honest=st.lists(times, min_size=1, max_size=9), liars=st.lists(times, max_size=8), silent=st.integers(0, 8))
def test_a_minority_can_not_move_it_beyond_what_honest_nodes_take(
    honest: list[float], liars: list[float], silent: int
) -> None:
    liars = liars[: len(honest) - 1]
    silent = min(silent, len(honest) - 1 - len(liars))
    patience = patience_after(dict(enumerate([*honest, *liars])))
    waited = patience.seconds(range(len(honest) + len(liars) + silent))
    assert max(FACTOR * min(honest), FLOOR) <= waited <= max(FACTOR * max(honest), FLOOR)


@pytest.mark.parametrize("liars", [1, 4])
def test_answering_at_the_last_moment_does_not_stretch_it_round_by_round(liars: int) -> None:
    patience = patience_after(dict.fromkeys(range(liars), 0.0) | dict.fromkeys(range(liars, 10), 1.0))
    for _ in range(20):
        for liar in range(liars):
            patience.record(liar, 0.99 * patience.seconds(range(10)))
    assert patience.seconds(range(10)) == 3
