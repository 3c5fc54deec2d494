"""Reads the fields of dataclasses from the tables of a TOML file, or from strings on the command line."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from solon_fl.checks import closest
from solon_fl.errors import ConfigurationError

__all__ = ["choices_of", "defaults_of", "from_text", "read_table", "text_of", "typed", "unknown"]

NONE = "none"  # the string for None
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", Path: "a string"}


def read_table(
    kind: type, values: Mapping[str, Any], *, table: str = "", excluded: Iterable[str] = (), complete: bool = False
) -> dict[str, Any]:
    """Convert the entries of a TOML table to arguments of a dataclass.

    Parameters
    ----------
    kind : type
        The dataclass.
    values : mapping
        The entries.
    table : str
        The table's name, for messages.
    excluded : iterable of str
        Fields that the table may not set.
    complete : bool
        Whether every field without a default must have an entry.

    Raises
    ------
    ConfigurationError
        If an entry is unknown, of the wrong type, or missing.
    """
    where = f"[{table}] " if table else ""
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.name not in excluded]
    for name in values:
        if name not in known:
            raise ConfigurationError(where + unknown("key", name, known))
    missing = [name for name in known if name not in values and name not in defaults_of(kind)]
    if complete and missing:
        raise ConfigurationError(f"{where}needs {', '.join(missing)}; add {missing[0]} = ....")
    return {name: typed(where + name, value, hints[name]) for name, value in values.items()}


def typed(name: str, value: Any, hint: Any) -> Any:
    """Convert a value from TOML to the type of a dataclass's field.

    Parameters
    ----------
    name : str
        For messages.
    value : object
        A list becomes a tuple, a whole number becomes a float if the field is one, and a string becomes a path if the
        field is one. Everything else that is not a number or a bool is given by its name.
    hint : type
        Type of the field.

    Raises
    ------
    ConfigurationError
        If the value is of another type.

    Examples
    --------
    >>> typed("learning_rate", 1, float), typed("networks", ["wan", "home"], tuple[str, ...])
    (1.0, ('wan', 'home'))
    >>> typed("rounds", "7", int)
    Traceback (most recent call last):
        ...
    solon_fl.errors.ConfigurationError: rounds must be a whole number; got '7'.
    """
    if value is None and _is_optional(hint):
        return None
    plain = _plain(hint)
    if get_origin(plain) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigurationError(f'{name} must be a list, such as ["a", "b"]; got {value!r}.')
        return tuple(typed(name, entry, get_args(plain)[0]) for entry in value)
    fits = {
        int: type(value) is int,
        float: type(value) in (int, float),
        bool: type(value) is bool,
        str: isinstance(value, str),
        Path: isinstance(value, str | Path),
    }
    if not fits[plain]:
        raise ConfigurationError(f"{name} must be {_NAMES[plain]}; got {value!r}.")
    return plain(value)


def from_text(text: str, hint: Any) -> Any:
    """Convert a string to the value that TOML would have for it. A string that does not fit the type stays unchanged.

    Examples
    --------
    >>> from_text("7", int), from_text("1e-3", float), from_text("true", bool), from_text("none", int | None)
    (7, 0.001, True, None)
    >>> from_text("solon,fedavg", tuple[str, ...])
    ['solon', 'fedavg']
    >>> from_text("seven", int)
    'seven'
    """
    if text == NONE and _is_optional(hint):
        return None
    plain = _plain(hint)
    if get_origin(plain) is tuple:
        item = get_args(plain)[0]
        return [from_text(part.strip(), item) for part in text.split(",") if part.strip()]
    if plain is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if plain not in (int, float):
        return text
    try:
        return plain(text)
    except ValueError:
        return text


def text_of(value: object) -> str:
    """Return the string that `from_text` reads as this value.

    Examples
    --------
    >>> text_of(None), text_of(True), text_of(1e-6), text_of((None, "alie"))
    ('none', 'true', '1e-06', 'none,alie')
    """
    if isinstance(value, tuple):
        return ",".join(map(text_of, value))
    return NONE if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def unknown(what: str, value: object, known: Iterable[str]) -> str:
    """Return a message about an unknown name, with the closest known name.

    Examples
    --------
    >>> unknown("strategies", "fedagv", ["solon", "fedavg"])
    "strategies: there is no 'fedagv'; did you mean fedavg?"
    """
    names = list(known)
    guess = closest(value, names)
    hint = f"did you mean {guess}?" if guess else f"choose from {', '.join(names)}."
    return f"{what}: there is no {value!r}; {hint}"


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the strings that a type of Literals allows, or none for another type.

    Examples
    --------
    >>> choices_of(Literal["algebra", "digest"] | Literal["any"])
    ('algebra', 'digest', 'any')
    """
    if get_origin(hint) is Literal:
        return get_args(hint)
    options = _options(hint)
    return tuple(choice for option in options for choice in choices_of(option)) if len(options) > 1 else ()


def defaults_of(kind: type) -> dict[str, Any]:
    """Return the defaults of a dataclass by field, without fields that have none.

    Examples
    --------
    >>> from solon_fl import SolonConfig
    >>> defaults = defaults_of(SolonConfig)
    >>> defaults["rtol"], "num_nodes" in defaults
    (1e-06, False)
    """
    defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    made = {field.name: field.default_factory() for field in fields(kind) if field.default_factory is not MISSING}
    return defaults | made


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_optional(hint: Any) -> bool:
    return type(None) in _options(hint)


def _plain(hint: Any) -> Any:
    """Return the type to convert to: str for everything that is given by its name."""
    plain = next(option for option in _options(hint) if option is not type(None))
    return plain if plain in _NAMES or get_origin(plain) is tuple else str
