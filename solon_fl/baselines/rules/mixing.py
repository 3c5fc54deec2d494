"""What is done to vectors before another rule: mixing each with its neighbours, or with a few at random."""

import torch
from torch import Tensor

from .base import Rule, squared_distances
from .coordinates import trimmed_mean

__all__ = ["Bucketing", "mixed_with_neighbours", "nnm"]


def mixed_with_neighbours(vectors: Tensor, num_liars: int) -> Tensor:
    """Return for each of n vectors the mean of the n - f that are nearest to it, itself included, (n, d)."""
    kept = len(vectors) - num_liars
    nearest = squared_distances(vectors).topk(kept, dim=1, largest=False).indices
    weights = vectors.new_zeros(len(vectors), len(vectors))
    return weights.scatter_(1, nearest, 1 / kept) @ vectors


def nnm(vectors: Tensor, num_liars: int) -> Tensor:
    """Return the trimmed mean of n >= 2f + 1 vectors that were mixed with their nearest neighbours.

    Parameters
    ----------
    vectors, num_liars
        See `Rule`.

    Notes
    -----
    Differs from the paper: nothing.

    References
    ----------
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by mixing", AISTATS 2023, algorithm 2.
    """
    return trimmed_mean(mixed_with_neighbours(vectors, num_liars), num_liars)


class Bucketing:
    """Shuffles the vectors, averages them in buckets, and lets another rule aggregate the buckets.

    f liars spoil at most f of the ceil(n / size) buckets. Honest nodes whose data differ look more alike in buckets.

    Parameters
    ----------
    base : Rule
        What aggregates the buckets. It is told f, too.
    size : int
        Of a bucket. The last may be smaller.
    seed : int
        Of the shuffles. Each call shuffles anew.

    Notes
    -----
    Differs from the paper: nothing. `Rule` without state: the generator is the exception.

    References
    ----------
    Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing", ICLR 2022, algorithm 1.
    """

    def __init__(self, base: Rule, size: int = 2, seed: int = 0) -> None:
        self.base = base
        self.size = size
        self._rng = torch.Generator().manual_seed(seed)

    def __call__(self, vectors: Tensor, num_liars: int) -> Tensor:
        """See `Rule`."""
        order = torch.randperm(len(vectors), generator=self._rng, device="cpu")
        buckets = torch.stack([(part / len(part)).sum(dim=0) for part in torch.split(vectors[order], self.size)])
        return self.base(buckets, num_liars)
