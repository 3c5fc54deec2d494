"""Rules that search for a point near most vectors."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .base import BLOCK

__all__ = ["centered_clipping", "geometric_median"]

MOST_STEPS = 1000
CONVERGED = 1e-9  # largest change of a weight at convergence; the weights sum to 1
NEAREST = 1e-6  # smaller distances to the centre are raised to this fraction of the median distance


def geometric_median(vectors: Tensor, num_liars: int) -> Tensor:
    """Return the point with the least sum of distances to the vectors.

    This is Weiszfeld's algorithm, ``z = sum(x_i / |x_i - z|) / sum(1 / |x_i - z|)``. It starts from the median of each
    coordinate and stops when no weight changes by more than 1e-9.

    Parameters
    ----------
    vectors, num_liars
        See `Rule`. f is not used, but must be less than n / 2.

    Notes
    -----
    Differs from the paper: distances below 1e-6 of their median are raised to that value. The paper has an absolute
    bound; a relative one treats vectors of any length alike. The iteration starts at the median of each coordinate,
    which liars can't pull far away, rather than at the mean. It runs until it has converged; that of byzfl does three
    steps.

    Cost: O(n^2 d), because all steps use the products of the vectors' deviations from that median.

    References
    ----------
    Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning", IEEE TSP 2022, algorithm 2.
    """
    middle = vectors.median(dim=0).values
    products = _products(vectors, middle)
    squares = products.diagonal()
    weights = products.new_zeros(len(vectors))  # of the deviations; their weighted sum is the centre's deviation
    for _ in range(MOST_STEPS):
        along = products @ weights
        distances = (squares - 2 * along + weights @ along).clamp_min(0).sqrt()  # from each vector to the centre
        least = NEAREST * distances.median()
        if least == 0:
            break
        closeness = least / distances.clamp_min(least)
        before, weights = weights, closeness / closeness.sum()
        if (weights - before).abs().max() < CONVERGED:
            break
    return torch.cat([centre + weights @ apart for apart, centre in _deviations(vectors, middle)]).to(vectors.dtype)


def _products(vectors: Tensor, middle: Tensor) -> Tensor:
    """Return the products of n vectors' deviations from a point near the honest ones, (n, n) float64.

    Products of the vectors themselves would not do: next to those of a gross liar, differences are lost in rounding.
    """
    products = vectors.new_zeros(len(vectors), len(vectors), dtype=torch.float64)
    for apart, _ in _deviations(vectors, middle):
        products += apart @ apart.T
    return products


def _deviations(vectors: Tensor, middle: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of the vectors' deviations from a point and of the point itself, in float64."""
    for block, point in zip(torch.split(vectors, BLOCK, dim=1), torch.split(middle.double(), BLOCK), strict=True):
        yield block - point, point


def centered_clipping(vectors: Tensor, num_liars: int, *, radius: float = 1.0, steps: int = 5) -> Tensor:
    """Return v after some steps of ``v + mean(clip(x_i - v))``, where clip shortens vectors to at most tau.

    Parameters
    ----------
    vectors, num_liars
        See `Rule`. f is not used.
    radius : float
        tau, in multiples of the median of ``|x_i - v|``.
    steps : int
        Number of steps.

    Notes
    -----
    Differs from the paper: tau is a multiple of the median distance, which an honest majority keeps within bounds. The
    paper has a number that must be chosen for the length of the gradients; byzfl's default, 100, clips nothing if they
    are shorter. v starts at 0 rather than at the previous round's result, so that an attacker may try out the rule
    without changing its state.

    References
    ----------
    Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021, section 5.
    """
    centre = torch.zeros_like(vectors[0])
    for _ in range(steps):
        apart = vectors - centre
        lengths = torch.linalg.vector_norm(apart, dim=1, dtype=torch.float64)
        longest = radius * lengths.median()
        shortened = torch.where(lengths > longest, longest / lengths, 1.0)
        centre = centre + (shortened / len(vectors)).to(vectors.dtype) @ apart
    return centre
