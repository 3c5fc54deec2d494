"""Rules that look for liars along the direction in which the vectors differ most.

They work on the n x n products of the vectors' deviations from their mean.
"""

import torch
from torch import Tensor

from .base import squared_distances

__all__ = ["caf", "dnc"]


def dnc(vectors: Tensor, num_liars: int) -> Tensor:
    """Return the mean of the n - f vectors that stand out least: divide and conquer; n >= 2f + 1.

    A vector's score is the square of its deviation from the mean of all, along the direction in which they vary most.

    Parameters
    ----------
    vectors, num_liars
        See `Rule`.

    Notes
    -----
    Differs from the paper: the scores are those of all coordinates. The paper takes 10,000 at random, to save memory,
    and repeats it. As there (c = 1), as many vectors are left out as there are liars.

    References
    ----------
    Shejwalkar, Houmansadr, "Manipulating the Byzantine", NDSS 2021, algorithm 2.
    """
    between = squared_distances(vectors)
    scores, _ = _along_the_widest(between, between.new_ones(len(vectors)))
    kept = scores.topk(len(vectors) - num_liars, largest=False).indices.sort().values
    return vectors[kept].mean(dim=0)


def caf(vectors: Tensor, num_liars: int) -> Tensor:
    """Return a weighted mean of vectors, weights chosen so that they vary little: covariance-bound agnostic filter.

    All weights begin at 1. As long as they sum to more than n - 2f, each is multiplied by 1 - t / max(t). There t is
    the square of the vector's deviation from the weighted mean along the direction of most variance, and the maximum
    that of the vectors whose weight is not 0. Of all weighted means on the way the one with the least such variance is
    returned. n >= 2f + 1.

    Parameters
    ----------
    vectors, num_liars
        See `Rule`. Without liars it is the mean.

    Notes
    -----
    Differs from the paper: nothing. byzfl's (0.0.11) finds the direction by one step from a random vector, so that no
    two runs are alike, returns None if f = 0, and takes the maximum over all vectors: one gross liar, though its weight
    is 0, then keeps it from ever coming to an end.

    References
    ----------
    Allouah, Guerraoui, Stephan, "Towards trustworthy federated learning with untrusted participants", ICML 2025,
    algorithm 2.
    """
    between = squared_distances(vectors)
    weights = best = between.new_ones(len(vectors))
    least = torch.inf
    while num_liars and weights.sum() > len(vectors) - 2 * num_liars:
        scores, variance = _along_the_widest(between, weights)
        if variance < least:
            least, best = variance, weights
        farthest = scores[weights > 0].max()
        if farthest == 0:  # all that still count are equal
            break
        weights = weights * (1 - scores / farthest).clamp(0, 1)
    return (best / best.sum()).to(vectors.dtype) @ vectors


def _along_the_widest(between: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """Return the squares of the vectors' deviations along the direction of their greatest variance, and this variance.

    Parameters
    ----------
    between : Tensor, (n, n) float64
        Squared distances.
    weights : Tensor, (n,) float64
        Of the vectors, in their mean and covariance.
    """
    shares = weights / weights.sum()
    to_mean = between @ shares
    to_mean = to_mean - shares @ to_mean / 2  # squared distances to the weighted mean
    products = (to_mean[:, None] + to_mean - between) / 2  # of deviations from it
    roots = shares.sqrt()
    variances, directions = torch.linalg.eigh(roots[:, None] * products * roots)
    variance = float(variances[-1])
    if variance <= 0:
        return torch.zeros_like(weights), 0.0
    return (products @ (roots * directions[:, -1])).square() / variance, variance
