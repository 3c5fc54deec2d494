"""Locating lies in one word, against other algorithms in Python's integers."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from solon_fl.coding.exact.field import P
from solon_fl.coding.exact.locating import lying_places
from tests.oracles import evaluate, lies_by_subsets, lies_in_field


def found_by_the_package(points: list[int], word: list[int], compression: int) -> tuple[int, ...] | None:
    places = lying_places(np.array(word, dtype=np.uint64), np.array(points, dtype=np.uint64), compression)
    return None if places is None else tuple(places)


def word_with_lies(
    rng: np.random.Generator, size: int, compression: int, num_lies: int, near: bool
) -> tuple[list[int], list[int], tuple[int, ...]]:
    """Return points, a codeword with lies, and the lies' positions; with `near`, lies towards another codeword."""
    points = sorted((1 + rng.choice(2 * size, size=size, replace=False)).tolist())
    polynomial, other = rng.integers(P, size=(2, compression)).tolist()
    word = [evaluate(polynomial, x) for x in points]
    lies = sorted(rng.choice(size, size=num_lies, replace=False).tolist())
    for place in lies:
        word[place] = evaluate(other, points[place]) if near else (word[place] + int(rng.integers(1, P))) % P
    return points, word, tuple(lies)


@given(
    size=st.integers(1, 8), compression=st.integers(1, 8), lies=st.integers(0, 8), near=st.booleans(), data=st.data()
)
def test_small_words_as_by_trying_all_sets(
    size: int, compression: int, lies: int, near: bool, data: st.DataObject
) -> None:
    """This includes words beyond the bound, with no codeword or another codeword nearby."""
    compression, lies = min(size, compression), min(size, lies)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    points, word, _ = word_with_lies(rng, size, compression, lies, near)
    expected = lies_by_subsets(points, word, compression)
    assert found_by_the_package(points, word, compression) == expected
    assert lies_in_field(points, word, compression) == expected


@given(word=st.lists(st.integers(0, 3) | st.integers(P - 3, P - 1), min_size=1, max_size=7), data=st.data())
@example(word=[0, 1], data=None)
def test_any_word_as_by_trying_all_sets(word: list[int], data: st.DataObject | None) -> None:
    """The numbers are small, like the points, so that coincidences are frequent."""
    compression = data.draw(st.integers(1, len(word))) if data else 1
    points = list(range(1, 1 + len(word)))
    assert found_by_the_package(points, word, compression) == lies_by_subsets(points, word, compression)


@given(
    size=st.integers(1, 30), compression=st.integers(1, 30), lies=st.integers(0, 16), near=st.booleans(), data=st.data()
)
def test_words_as_by_berlekamp_and_welch(
    size: int, compression: int, lies: int, near: bool, data: st.DataObject
) -> None:
    compression = min(size, compression)
    lies = min(lies, (size - compression) // 2 + 1)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    points, word, where = word_with_lies(rng, size, compression, lies, near)
    found = found_by_the_package(points, word, compression)
    assert found == lies_in_field(points, word, compression)
    if lies <= (size - compression) // 2 and not near:
        assert found == where


@pytest.mark.parametrize(
    ("size", "compression", "lies"),
    [(100, 10, 45), (100, 10, 46), (100, 60, 20), (100, 99, 0), (100, 1, 49), (99, 50, 24), (100, 97, 1)],
)
def test_large_words_as_by_berlekamp_and_welch(size: int, compression: int, lies: int) -> None:
    points, word, where = word_with_lies(np.random.default_rng(7), size, compression, lies, near=False)
    found = found_by_the_package(points, word, compression)
    assert found == lies_in_field(points, word, compression)
    assert found == (where if lies <= (size - compression) // 2 else None)


@given(size=st.integers(1, 300), data=st.data())
def test_all_lies_within_the_bound_are_found(size: int, data: st.DataObject) -> None:
    compression = data.draw(st.integers(1, size))
    lies = data.draw(st.integers(0, (size - compression) // 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    points = sorted((1 + rng.choice(2 * size, size=size, replace=False)).tolist())
    word = np.zeros(size, dtype=np.uint64)  # zero is a codeword
    places = sorted(rng.choice(size, size=lies, replace=False).tolist())
    word[places] = rng.integers(1, P, size=lies) if size % 2 else 1
    assert found_by_the_package(points, word.tolist(), compression) == tuple(places)
