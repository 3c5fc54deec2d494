"""Rules that look for a point near most vectors."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .base import BLOCK

__all__ = ["centered_clipping", "geometric_median"]

MOST_STEPS = 1000
CONVERGED = 1e-9  # change of a weight, of 1
NEAREST = 1e-6  # of the median distance; a vector nearer to the centre counts as so far


def geometric_median(vectors: Tensor, num_liars: int) -> Tensor:
    """Return the point with the least sum of distances to the vectors.

    Weiszfeld's algorithm: z = sum(x_i / |x_i - z|) / sum(1 / |x_i - z|), from the median of each coordinate on, until
    no weight changes by more than 1e-9.

    Parameters
    ----------
    vectors, num_liars
        See `Rule`; it does not need to know f, which must be less than n / 2.

    Notes
    -----
    Differs from the paper: distances below 1e-6 of their median are taken to be that, where the paper has an absolute
    bound, so that vectors of any length are treated alike. It runs until it has converged; byzfl's does three steps.
    It begins at the median of each coordinate, to which no liar is near, and not at the mean.
    Cost: O(n^2 d), as all steps work on the products of the vectors' deviations from that median.

    References
    ----------
    Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning", IEEE TSP 2022, algorithm 2.
    """
    middle = vectors.median(dim=0).values
    products = _products(vectors, middle)
    squares = products.diagonal()
    weights = products.new_zeros(len(vectors))  # of the deviations, whose sum is the centre's
    for _ in range(MOST_STEPS):
        along = products @ weights
        distances = (squares - 2 * along + weights @ along).clamp_min(0).sqrt()  # of each vector to the centre
        least = NEAREST * distances.median()
        if least == 0:
            break
        closeness = least / distances.clamp_min(least)
        before, weights = weights, closeness / closeness.sum()
        if (weights - before).abs().max() < CONVERGED:
            break
    return torch.cat([centre + weights @ apart for apart, centre in _deviations(vectors, middle)]).to(vectors.dtype)


def _products(vectors: Tensor, middle: Tensor) -> Tensor:
    """Return the products of n vectors' deviations from a point near the honest, (n, n) float64.

    Between the vectors themselves, and of their distances, a gross liar's would differ by less than their rounding.
    """
    products = vectors.new_zeros(len(vectors), len(vectors), dtype=torch.float64)
    for apart, _ in _deviations(vectors, middle):
        products += apart @ apart.T
    return products


def _deviations(vectors: Tensor, middle: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of the vectors' deviations from a point, and of that point, in float64."""
    for block, point in zip(torch.split(vectors, BLOCK, dim=1), torch.split(middle.double(), BLOCK), strict=True):
        yield block - point, point


def centered_clipping(vectors: Tensor, num_liars: int, *, radius: float = 1.0, steps: int = 5) -> Tensor:
    """Return v after some steps of v + mean(clip(x_i - v)), which shortens what is longer than tau to that.

    Parameters
    ----------
    vectors, num_liars
        See `Rule`; it does not need to know f.
    radius : float
        tau, in multiples of the median of |x_i - v|.
    steps : int
        How many.

    Notes
    -----
    Differs from the paper: tau is a multiple of the median distance, which more than half honest nodes keep in bounds,
    rather than a number that must be chosen for the length of the gradients (byzfl's default, 100, clips nothing where
    they are shorter). v begins at 0 rather than at the last round's result, so that an attacker who tries
    the rule leaves no trace in it.

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
