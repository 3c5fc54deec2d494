"""Argument checks shared by the whole package, for consistent error messages.

A message states the rule, then the value that broke it. numpy's numbers are accepted.
"""

import difflib
from collections.abc import Collection, Iterable
from numbers import Integral, Real

from solon_fl.errors import ConfigurationError

__all__ = ["check_between", "check_number", "check_one_of", "check_timeout", "check_whole", "closest"]


def check_whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return the value as an int; raise ConfigurationError unless it is an integer (not a bool) in `least`..`most`."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if least <= number and (most is None or number <= most):
            return number
    limits = f">= {least}" if most is None else f"from {least} to {most}"
    raise ConfigurationError(f"{name} must be a whole number {limits}; got {name}={value!r}{_remedy(value)}.")


def check_number(name: str, value: object) -> float:
    """Return the value as a float; raise ConfigurationError unless it is a number (not a bool)."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    raise ConfigurationError(f"{name} must be a number; got {name}={value!r}{_remedy(value)}.")


def check_timeout(timeout: float | None) -> float | None:
    """Return a deadline as a float; raise ConfigurationError unless it is a number above 0. None means no deadline."""
    if timeout is None:
        return None
    seconds = check_number("timeout", timeout)
    if not seconds > 0:
        raise ConfigurationError(f"timeout must be above 0 seconds; got timeout={timeout!r}.")
    return seconds


def check_one_of(name: str, value: object, allowed: Collection[object], also: str = "") -> None:
    """Raise ConfigurationError unless the value is one of the allowed ones; None is shown as "none".

    The message suggests the closest allowed value. `also` describes further valid values.
    """
    if value in allowed:
        return
    names = ["none" if option is None else str(option) for option in allowed]
    rule = ", ".join(names) + (f", or {also}" if also else "")
    guess = closest(value, names)
    hint = f"; did you mean {guess}?" if guess else "."
    raise ConfigurationError(f"{name} must be one of {rule}; got {name}={value!r}{hint}")


def closest(value: object, names: Iterable[str]) -> str | None:
    """Return the name that is most similar to a misspelt one, or None if none is similar."""
    return next(iter(difflib.get_close_matches(str(value), list(names), n=1)), None)


def check_between(name: str, value: float, low: float, high: float, remedy: str = "") -> None:
    """Raise ConfigurationError unless low < value < high. NaN fails."""
    if not low < check_number(name, value) < high:
        hint = f"; {remedy}" if remedy else ""
        raise ConfigurationError(f"{name} must be between {low:g} and {high:g}; got {name}={value!r}{hint}.")


def _remedy(value: object) -> str:
    """Return the remedy for a string, or a whole float, in place of a number."""
    if isinstance(value, str):
        return "; give it as a number, not as a string (in YAML, 1.0e-6 is a number and 1e-6 is a string)"
    if isinstance(value, Real) and not isinstance(value, (Integral, bool)) and float(value).is_integer():
        return f"; write {int(float(value))}"
    return ""
