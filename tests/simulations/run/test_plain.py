import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon_fl.simulations.run.plain import jsonable, rebuilt


@dataclass(frozen=True, kw_only=True)
class Inner:
    numbers: tuple[int, ...]
    reasons: dict[int, str]
    place: tuple[int, str] | None


@dataclass(frozen=True, kw_only=True)
class Outer:
    kind: Literal["a", "b"]
    inner: tuple[Inner, ...]
    folder: Path | None
    size: float
    flag: bool = False


numbers = st.integers(-5, 100)
inners = st.builds(
    Inner,
    numbers=st.lists(numbers).map(tuple),
    reasons=st.dictionaries(numbers, st.text()),
    place=st.none() | st.tuples(numbers, st.text()),
)
outers = st.builds(
    Outer,
    kind=st.sampled_from(["a", "b"]),
    inner=st.lists(inners, max_size=3).map(tuple),
    folder=st.none() | st.sampled_from([Path("x"), Path("/y/z")]),
    size=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
)


@given(outers)
def test_what_is_written_is_read_again(outer: Outer) -> None:
    text = json.dumps(jsonable(asdict(outer)), allow_nan=False)
    assert rebuilt(Outer, json.loads(text)) == outer


@pytest.mark.parametrize("size", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null_and_then_nan(size: float) -> None:
    plain = jsonable(asdict(Outer(kind="a", inner=(), folder=None, size=size)))
    assert plain["size"] is None
    assert math.isnan(rebuilt(Outer, plain).size)


@pytest.mark.parametrize(
    "changes",
    [
        {"unknown": 1},
        {"size": "large"},
        {"inner": [{"numbers": [1]}]},
        {"inner": [{"numbers": ["x"], "reasons": {}, "place": None}]},
        {"inner": [{"numbers": [], "reasons": [], "place": None}]},
        {"inner": [{"numbers": [], "reasons": {}, "place": [1]}]},
        {"inner": 3},
    ],
)
def test_anything_else_is_refused(changes: dict[str, Any]) -> None:
    plain = {"kind": "a", "inner": [], "folder": None, "size": 1.0, **changes}
    with pytest.raises((ValueError, TypeError, AttributeError)):
        rebuilt(Outer, plain)
