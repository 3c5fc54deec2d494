"""The damage that an attack does to an aggregator, and the search for the lie that does most."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from solon_fl.errors import ConfigurationError

__all__ = ["Aggregate", "check_candidates", "damage", "most_damaging"]

Aggregate = Callable[[Tensor], Tensor]
"""Returns what the server would make of n vectors, (n, m) -> (d,)."""

NO_DAMAGE = 1e-5  # less is float noise, or a lie that a decoder tolerates as such


def check_candidates(candidates: Sequence[float]) -> None:
    """Raise ConfigurationError unless there are candidates to try, all of them positive and finite."""
    if not candidates or not all(0 < candidate < math.inf for candidate in candidates):
        raise ConfigurationError(f"candidates must be positive numbers, at least one; got candidates={candidates}.")


def damage(aggregate: Aggregate, attacked: Tensor, reference: Tensor) -> float:
    """Return |aggregate(attacked) - reference| / |reference|, where reference is the aggregate of honest vectors.

    Shejwalkar & Houmansadr maximise this distance. It also counts what is done across the honest direction. Along that
    direction, as in inner product manipulation, it is 1 plus the negative inner product that Xie et al. use. A result
    that is not finite, or an exception, is infinite damage.
    """
    try:
        result = aggregate(attacked)
    except Exception:  # an attack that aborts the aggregator has stopped the training
        return math.inf
    if not bool(torch.isfinite(result).all()):
        return math.inf
    size = float(torch.linalg.vector_norm(reference, dtype=torch.float64))
    distance = float(torch.linalg.vector_norm(result - reference, dtype=torch.float64))
    return distance / max(size, 1e-300)


def most_damaging(aggregate: Aggregate, vectors: Tensor, liars: Sequence[int], candidates: Iterable[Tensor]) -> Tensor:
    """Return the candidate, (m,), that does most damage if all liars send it, or the first if none does any.

    Parameters
    ----------
    aggregate : callable
        The aggregator under attack. It gets a copy of the vectors.
    vectors : Tensor, (n, m)
        What each node would send if it were honest.
    liars : sequence of int
        The rows that lie.
    candidates : iterable of (m,) tensors
        In order of stealth. Of equals the first wins.
    """
    reference = aggregate(vectors.clone())
    best, most = None, NO_DAMAGE
    for candidate in candidates:
        attacked = vectors.clone()
        attacked[list(liars)] = candidate
        done = damage(aggregate, attacked, reference)
        if best is None or done > most:
            best, most = candidate, max(done, most)
    if best is None:
        raise ValueError("most_damaging needs at least one candidate")
    return best
