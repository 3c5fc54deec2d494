"""Whatever nodes send, the strategy does not raise; tests/hostile/fuzz.py runs the same checks a million times."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile import checks
from tests.hostile.replies import Source


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


@pytest.mark.slow
@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_hostile_replies(check: Callable[[Source], None]) -> None:
    @settings(max_examples=10 if check in checks.SLOW else 60)
    @given(st.data())
    def run(data: Any) -> None:
        with checks.only_one_liners():
            check(Drawn(data))

    run()


def test_more_than_allowed_is_noticed() -> None:
    with (
        pytest.raises(AssertionError, match="bytes were allocated; 1000 are allowed"),
        checks.allocating_at_most(1000),
    ):
        bytes(5000)
