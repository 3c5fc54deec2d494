"""The damage that a lie does to an aggregation, and the search for the most damaging lie."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from solon_fl.errors import ConfigurationError

__all__ = ["Aggregate", "check_candidates", "damage", "most_damaging"]

Aggregate = Callable[[Tensor], Tensor]
"""The server's aggregation of n vectors, (n, m) -> (d,)."""

NO_DAMAGE = 1e-5  # less is float noise, or a lie that a decoder tolerates as float noise


def check_candidates(candidates: Sequence[float]) -> None:
    """Raise ConfigurationError unless there are candidates to try, all of them positive and finite."""
    if not candidates or not all(0 < candidate < math.inf for candidate in candidates):
        raise ConfigurationError(f"candidates must be one or more positive numbers; got candidates={candidates}.")


def damage(aggregate: Aggregate, attacked: Tensor, reference: Tensor) -> float:
    """Return ``|aggregate(attacked) - reference| / |reference|``; reference is the aggregate of honest vectors.

    Shejwalkar & Houmansadr maximise this distance. It also counts changes orthogonal to the honest direction. For
    changes along that direction, as in inner product manipulation, it is 1 plus the negative inner product that Xie et
    al. use. A result that is not finite, or an exception, counts as infinite damage.
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
    """Return the candidate, (m,), that does the most damage if all liars send it, or the first if none does any.

    Parameters
    ----------
    aggregate : callable
        The aggregation under attack. It gets a copy of the vectors.
    vectors : Tensor, (n, m)
        The honest vector of every node.
    liars : sequence of int
        The rows of the liars.
    candidates : iterable of (m,) tensors
        The lies to try, the stealthiest first. Of equally damaging ones the first is taken.
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
