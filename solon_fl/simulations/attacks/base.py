"""The protocol of an attack on vectors: plain gradients, or coded shares."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Attack"]


class Attack(Protocol):
    """What liars send instead of the vectors that they should.

    Attributes
    ----------
    omniscient : bool
        Whether the attack needs the vectors of all nodes; else it is given the liar's own only.
    """

    omniscient: bool

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """Return what the liars send, (len(liars), m), like `vectors` in dtype and device.

        Parameters
        ----------
        vectors : Tensor, (n, m)
            What each node would send if it were honest; not to be changed.
        liars : sequence of int
            The rows of `vectors` that lie, all of them, ascending: they collude.
        rng : torch.Generator
            CPU; all liars get one with the same seed, so that they agree without talking.
        """


def honest_rows(vectors: Tensor, liars: Sequence[int]) -> Tensor:
    """Return the vectors of those who do not lie, (n - m, ...); all of them if everybody lies."""
    kept = [row for row in range(len(vectors)) if row not in set(liars)]
    return vectors[kept] if kept else vectors
