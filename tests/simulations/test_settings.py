from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.settings import choices_of, from_text, text_of, typed

words = st.text("abcdefgh-_./", min_size=1).filter(lambda text: text != "none")
finite = st.floats(allow_nan=False)


@pytest.mark.parametrize(
    ("hint", "values"),
    [
        (int, st.integers()),
        (float, finite),
        (bool, st.booleans()),
        (str, words),
        (Path, words.map(Path)),
        (Literal["a", "b"], st.sampled_from(["a", "b"])),
        (int | None, st.none() | st.integers()),
        (Path | None, st.none() | words.map(Path)),
        (tuple[float, ...] | None, st.none() | st.lists(finite, min_size=1).map(tuple)),
        (tuple[str | None, ...], st.lists(st.none() | words).map(tuple)),
    ],
)
@given(data=st.data())
def test_what_is_written_is_read(hint: Any, values: st.SearchStrategy[Any], data: st.DataObject) -> None:
    value = data.draw(values)
    read = typed("key", from_text(text_of(value), hint), hint)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "hint", "message"),
    [
        ("1.0", int, "key must be a whole number; got '1.0'."),
        ("", int, "key must be a whole number; got ''."),
        ("none", int, "key must be a whole number; got 'none'."),
        ("ten", float | None, "key must be a number; got 'ten'."),
        ("yes", bool, "key must be true or false; got 'yes'."),
        ("1,two", tuple[float, ...], "key must be a number; got 'two'."),
    ],
)
def test_a_text_of_another_type_is_refused(text: str, hint: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        typed("key", from_text(text, hint), hint)
    assert str(caught.value) == message


def test_only_literals_are_choices() -> None:
    assert choices_of(Literal["a", "b"] | None) == ("a", "b")
    assert choices_of(str | None) == choices_of(tuple[str, ...]) == ()
