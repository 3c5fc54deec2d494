"""Rules that search for liars along the direction in which the vectors vary most.

They use the n x n products of the vectors' deviations from their mean.
"""

import torch
from torch import Tensor

from .base import squared_distances

__all__ = ["caf", "dnc"]


def dnc(vectors: Tensor, num_liars: int) -> Tensor:
    """Return the mean of the n - f vectors that stand out least (divide and conquer); n >= 2f + 1.

    A vector's score is its squared deviation from the mean of all vectors along the direction in which they vary most.

    Parameters
    ----------
    vectors, num_liars
        See `Rule`.

    Notes
    -----
    Differs from the paper: the scores are computed from all coordinates. To save memory, the paper samples 10,000
    coordinates and repeats this. As many vectors are left out as there are liars, as in the paper with c = 1.

    References
    ----------
    Shejwalkar, Houmansadr, "Manipulating the Byzantine", NDSS 2021, algorithm 2.
    """
    between = squared_distances(vectors)
    scores, _ = _along_the_widest(between, between.new_ones(len(vectors)))
    kept = scores.topk(len(vectors) - num_liars, largest=False).indices.sort().values
    return vectors[kept].mean(dim=0)


def caf(vectors: Tensor, num_liars: int) -> Tensor:
    """Return a mean of n >= 2f + 1 vectors, weighted to reduce their variance (covariance-bound agnostic filter).

    All weights start at 1. While they sum to more than n - 2f, each is multiplied by 1 - t / max(t), where t is the
    vector's squared deviation from the weighted mean along the direction of most variance. The maximum is taken over
    vectors with a weight other than 0. The result is the weighted mean with the least variance along its direction
    among those of all steps.

    Parameters
    ----------
    vectors, num_liars
        See `Rule`. If f = 0, the result is the mean.

    Notes
    -----
    Does not differ from the paper. That of byzfl 0.0.11 finds the direction by one step from a random vector, so its
    results vary from run to run, and it returns None if f = 0. It also takes the maximum over all vectors; a single
    gross liar, even with weight 0, then keeps it from ever ending.

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
        if farthest == 0:  # all vectors that still count are equal
            break
        weights = weights * (1 - scores / farthest).clamp(0, 1)
    return (best / best.sum()).to(vectors.dtype) @ vectors


def _along_the_widest(between: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """Return the vectors' squared deviations along the direction of their greatest variance, and this variance.

    Parameters
    ----------
    between : Tensor, (n, n) float64
        Squared distances between the vectors.
    weights : Tensor, (n,) float64
        Weights of the vectors in their mean and covariance.
    """
    shares = weights / weights.sum()
    to_mean = between @ shares
    to_mean = to_mean - shares @ to_mean / 2  # squared distances to the weighted mean
    products = (to_mean[:, None] + to_mean - between) / 2  # of deviations from the weighted mean
    roots = shares.sqrt()
    variances, directions = torch.linalg.eigh(roots[:, None] * products * roots)
    variance = float(variances[-1])
    if variance <= 0:
        return torch.zeros_like(weights), 0.0
    return (products @ (roots * directions[:, -1])).square() / variance, variance
