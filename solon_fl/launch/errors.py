"""What goes wrong with a deployment."""

import difflib
from collections.abc import Iterable

from solon_fl.errors import SolonError

__all__ = ["FederationError", "did_you_mean"]


class FederationError(SolonError, RuntimeError):
    """The deployment, or a run on it, failed; the message says how, in plain words."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about a name that does not exist: the closest that does, if one is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else "."
