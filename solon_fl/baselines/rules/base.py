"""What every robust rule is, and how many liars it must be ready for where vectors are missing."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Rule", "liars_among", "ready_for", "squared_distances"]

BLOCK = 1 << 16  # columns whose products are summed at once
LONGEST = 1e75  # products of four such lengths are finite in float64; vectors of float32 are shorter


class Rule(Protocol):
    """A robust rule. It has no state, draws nothing at random, and does not change what it is given."""

    def __call__(self, vectors: Tensor, num_liars: int, /) -> Tensor:
        """Return what n vectors amount to, (d,), like them in dtype.

        Parameters
        ----------
        vectors : Tensor, (n, d), float32 or float64
            All finite, one row a node.
        num_liars : int
            f, rows that may be lies.
        """


def liars_among(num_liars: int, num_nodes: int, num_present: int) -> int:
    """Return how many of the vectors that are there may be lies: f - (P - n), and never less than 0.

    An honest node sends a valid vector. Those that are missing, or were dropped because they were not finite, are
    therefore the first of the liars. A rule that goes on reckoning with all f of them leaves out honest vectors
    in place of the missing ones, or refuses to work.

    Parameters
    ----------
    num_liars : int
        f, among all nodes.
    num_nodes : int
        P.
    num_present : int
        n, valid vectors.

    Examples
    --------
    >>> [liars_among(5, 20, present) for present in (20, 17, 15, 12)]
    [5, 2, 0, 0]
    """
    return max(0, num_liars - (num_nodes - num_present))


def ready_for(rule: Rule, num_liars: int, num_nodes: int) -> Callable[[Tensor], Tensor]:
    """Return a function of the vectors alone, for `AggregatorStrategy`: the rule, told `liars_among` them.

    Vectors longer than 1e75, whose products would overflow, count as missing; only float64 has such.

    Parameters
    ----------
    rule : Rule
        For example `bulyan`.
    num_liars, num_nodes : int
        f and P, of the whole run.
    """

    def aggregate(vectors: Tensor) -> Tensor:
        is_usable = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64) <= LONGEST
        present = vectors if is_usable.all() else vectors[is_usable]
        return rule(present, liars_among(num_liars, num_nodes, len(present)))

    return aggregate


def squared_distances(vectors: Tensor) -> Tensor:
    """Return all squared distances between n vectors, (n, n) float64.

    They are differences of products, which float32 would lose between vectors that are much alike.
    """
    products = vectors.new_zeros(len(vectors), len(vectors), dtype=torch.float64)
    for block in torch.split(vectors, BLOCK, dim=1):
        wide = block.double()
        products += wide @ wide.T
    norms = products.diagonal()
    distances = norms[:, None] + norms - (products + products.T)  # symmetric to the last bit
    return distances.clamp_min_(0).fill_diagonal_(0)
