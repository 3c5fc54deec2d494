"""Errors of deployments."""

import difflib
from collections.abc import Iterable

from solon_fl.errors import SolonError

__all__ = ["FederationError", "did_you_mean"]


class FederationError(SolonError, RuntimeError):
    """A deployment, or a run on it, has failed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown word, which suggests the closest known one if one is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else "."
