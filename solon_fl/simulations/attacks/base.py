"""The protocol of an attack on vectors, be they plain gradients or coded shares."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Attack"]


class Attack(Protocol):
    """Makes the vectors that liars send instead of their own.

    Attributes
    ----------
    omniscient : bool
        Whether the attack needs the vectors of all nodes. If not, it gets only the liar's own.
    """

    omniscient: bool

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """Return what the liars send, (len(liars), m), like `vectors` in dtype and device.

        Parameters
        ----------
        vectors : Tensor, (n, m)
            What each node would send if it were honest. The attack must not change it.
        liars : sequence of int
            All rows of `vectors` that lie, ascending. Liars collude.
        rng : torch.Generator
            On the CPU. All colluders get the same seed, so that they agree without talking.
        """


def honest_rows(vectors: Tensor, liars: Sequence[int]) -> Tensor:
    """Return the vectors of the honest nodes, (n - m, ...), or all vectors if every node lies."""
    kept = [row for row in range(len(vectors)) if row not in set(liars)]
    return vectors[kept] if kept else vectors
