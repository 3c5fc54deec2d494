"""The protocol of aggregation rules, and the number of liars that a rule must tolerate when vectors are missing."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Rule", "liars_among", "ready_for", "squared_distances"]

BLOCK = 1 << 16  # columns whose products are summed at once
LONGEST = 1e75  # the product of four such lengths is finite in float64; float32 vectors are shorter


class Rule(Protocol):
    """A robust aggregation rule. It is stateless and deterministic, and does not change its arguments."""

    def __call__(self, vectors: Tensor, num_liars: int, /) -> Tensor:
        """Return the aggregate of n vectors, (d,), with their dtype.

        Parameters
        ----------
        vectors : Tensor, (n, d), float32 or float64
            Finite vectors, one row for each node.
        num_liars : int
            f, the number of rows that may be lies.
        """


def liars_among(num_liars: int, num_nodes: int, num_present: int) -> int:
    """Return how many of the vectors that arrived may be lies: f - (P - n), but at least 0.

    An honest node sends a valid vector. Nodes whose vectors are missing, or were dropped because they were not finite,
    are therefore liars. A rule that still expected all f liars among the rest would drop honest vectors instead of the
    missing ones, or fail.

    Parameters
    ----------
    num_liars : int
        f, the number of liars among all nodes.
    num_nodes : int
        P, the number of nodes.
    num_present : int
        n, the number of valid vectors.

    Examples
    --------
    >>> [liars_among(5, 20, present) for present in (20, 17, 15, 12)]
    [5, 2, 0, 0]
    """
    return max(0, num_liars - (num_nodes - num_present))


def ready_for(rule: Rule, num_liars: int, num_nodes: int) -> Callable[[Tensor], Tensor]:
    """Bind a rule to a run's number of liars: return a function of the vectors alone, for `AggregatorStrategy`.

    The function calls the rule with `liars_among` the vectors that arrived. Vectors longer than 1e75, whose products
    would overflow, count as missing; only float64 vectors can be that long.

    Parameters
    ----------
    rule : Rule
        For example `bulyan`.
    num_liars, num_nodes : int
        f and P of the whole run.
    """

    def aggregate(vectors: Tensor) -> Tensor:
        is_usable = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64) <= LONGEST
        present = vectors if is_usable.all() else vectors[is_usable]
        return rule(present, liars_among(num_liars, num_nodes, len(present)))

    return aggregate


def squared_distances(vectors: Tensor) -> Tensor:
    """Return all squared distances between n vectors, (n, n) float64.

    They are differences of products, which are computed in float64 because float32 would lose the small distances.
    """
    products = vectors.new_zeros(len(vectors), len(vectors), dtype=torch.float64)
    for block in torch.split(vectors, BLOCK, dim=1):
        wide = block.double()
        products += wide @ wide.T
    norms = products.diagonal()
    distances = norms[:, None] + norms - (products + products.T)  # symmetric to the last bit
    return distances.clamp_min_(0).fill_diagonal_(0)
