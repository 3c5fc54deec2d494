"""Preprocessing for other rules: mixing each vector with its neighbours, or with a few at random."""

import torch
from torch import Tensor

from .base import Rule, squared_distances
from .coordinates import trimmed_mean

__all__ = ["Bucketing", "mixed_with_neighbours", "nnm"]


def mixed_with_neighbours(vectors: Tensor, num_liars: int) -> Tensor:
    """Replace each of n vectors with the mean of the n - f vectors nearest to it, including itself, (n, d)."""
    kept = len(vectors) - num_liars
    nearest = squared_distances(vectors).topk(kept, dim=1, largest=False).indices
    weights = vectors.new_zeros(len(vectors), len(vectors))
    return weights.scatter_(1, nearest, 1 / kept) @ vectors


def nnm(vectors: Tensor, num_liars: int) -> Tensor:
    """Return the trimmed mean of n >= 2f + 1 vectors after mixing each with its nearest neighbours.

    Parameters
    ----------
    vectors, num_liars
        See `Rule`.

    Notes
    -----
    Does not differ from the paper.

    References
    ----------
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by mixing", AISTATS 2023, algorithm 2.
    """
    return trimmed_mean(mixed_with_neighbours(vectors, num_liars), num_liars)


class Bucketing:
    """Shuffles the vectors, averages them in buckets, and aggregates the buckets with another rule.

    f liars spoil at most f of the ceil(n / size) buckets. If the nodes' data differ, buckets of honest vectors vary
    less than single ones.

    Parameters
    ----------
    base : Rule
        The rule that aggregates the buckets, also for f liars.
    size : int
        Size of a bucket. The last one may be smaller.
    seed : int
        Seed of the shuffles. Each call makes a new one.

    Notes
    -----
    Does not differ from the paper. Unlike other rules, it has state: the generator of the shuffles.

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
