"""Converts dataclasses to JSON values and back."""

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["jsonable", "rebuilt"]


def jsonable(value: Any) -> Any:
    """Return a JSON value: keys become strings, tuples lists, paths text, and numbers that are not finite null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str, NoneType)) else str(value)


def rebuilt(kind: Any, value: Any) -> Any:
    """Return the object from which `dataclasses.asdict` and `jsonable` made this value.

    Parameters
    ----------
    kind : type
        Type to return: a dataclass, or an annotation that its fields may have. A float that was null becomes NaN.
    value
        The JSON value.

    Raises
    ------
    ValueError, TypeError, AttributeError
        If the value was made from another type.

    Examples
    --------
    >>> rebuilt(dict[int, tuple[float, ...]], {"3": [1, 2]})
    {3: (1.0, 2.0)}
    """
    if is_dataclass(kind) and isinstance(kind, type):
        hints = _hints(kind)
        if unknown := value.keys() - hints.keys():
            raise ValueError(f"unknown entries {sorted(unknown)}")
        return kind(**{name: rebuilt(hints[name], item) for name, item in value.items()})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (only,) = (option for option in arguments if option is not NoneType)
        return None if value is None else rebuilt(only, value)
    if origin is list:
        return [rebuilt(arguments[0], item) for item in value]
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(rebuilt(of_item, item) for of_item, item in zip(kinds, value, strict=True))
    if origin is dict:
        of_key, of_item = arguments
        return {rebuilt(of_key, key): rebuilt(of_item, item) for key, item in value.items()}
    if origin is Literal:
        return value
    return math.nan if kind is float and value is None else kind(value)


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
