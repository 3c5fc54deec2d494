"""The checks of arguments that all of the package shares, so that every message has one voice.

A message states the rule, then the value that broke it.
"""

from collections.abc import Collection

from solon_fl.errors import ConfigurationError

__all__ = ["check_between", "check_one_of", "check_whole"]


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ConfigurationError unless the value is an int (and no bool) from `least` to `most`."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value and (most is None or value <= most):
        return
    limits = f">= {least}" if most is None else f"from {least} to {most}"
    raise ConfigurationError(f"{name} must be a whole number {limits}; got {name}={value!r}.")


def check_one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """Raise ConfigurationError unless the value is one of those allowed; None is shown as "none"."""
    if value not in allowed:
        names = ", ".join("none" if option is None else str(option) for option in allowed)
        raise ConfigurationError(f"{name} must be one of {names}; got {name}={value!r}.")


def check_between(name: str, value: float, low: float, high: float, remedy: str = "") -> None:
    """Raise ConfigurationError unless low < value < high; a NaN is not."""
    if not low < value < high:
        hint = f"; {remedy}" if remedy else ""
        raise ConfigurationError(f"{name} must be between {low:g} and {high:g}; got {name}={value!r}{hint}.")
