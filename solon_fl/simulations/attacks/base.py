"""The protocol of an attack on vectors: plain gradients or coded shares."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Attack"]


class Attack(Protocol):
    """Computes the vectors that liars send in place of their honest ones.

    Attributes
    ----------
    omniscient : bool
        Whether the attack needs the vectors of all nodes. If not, it gets only the liar's own.
    """

    omniscient: bool

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """Return the liars' vectors, (len(liars), m), with the dtype and device of `vectors`.

        Parameters
        ----------
        vectors : Tensor, (n, m)
            The honest vector of every node. The attack must not modify it.
        liars : sequence of int
            All rows of `vectors` that belong to liars, ascending. Liars collude.
        rng : torch.Generator
            A generator on the CPU. All colluders get the same seed, so that they agree without communicating.
        """


def honest_rows(vectors: Tensor, liars: Sequence[int]) -> Tensor:
    """Return the vectors of the honest nodes, (n - m, ...), or all vectors if every node lies."""
    kept = [row for row in range(len(vectors)) if row not in set(liars)]
    return vectors[kept] if kept else vectors
