"""Whatever nodes send, nothing leaves the strategy; fuzz/replies.py runs the same checks a million times."""

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import hostile_checks
from tests.hostile import Source


class Drawn:
    """Choices made by hypothesis."""

    def __init__(self, data: st.DataObject) -> None:
        self._draw = data.draw

    def whole(self, least: int, most: int) -> int:
        return self._draw(st.integers(least, most))

    def binary(self, most: int) -> bytes:
        return self._draw(st.binary(max_size=most))

    def text(self, most: int) -> str:
        return self._draw(st.text(st.characters(), max_size=most))


@pytest.fixture(scope="module", autouse=True)
def traced() -> Iterator[None]:
    """Measure what is allocated; what is made once is made before."""
    from tests.hostile_checks import CHECKS

    for check in CHECKS:
        check(Least())
    tracemalloc.start()
    yield
    tracemalloc.stop()


class Least:
    """Always the least choice."""

    def whole(self, least: int, most: int) -> int:
        return least

    def binary(self, most: int) -> bytes:
        return b""

    def text(self, most: int) -> str:
        return ""


@pytest.mark.slow
@pytest.mark.parametrize("check", hostile_checks.CHECKS, ids=lambda check: check.__name__)
def test_hostile_replies(check: Callable[[Source], None]) -> None:
    @settings(max_examples=10 if check in hostile_checks.SLOW else 60)
    @given(st.data())
    def run(data: Any) -> None:
        with hostile_checks.only_one_liners():
            check(Drawn(data))

    run()
