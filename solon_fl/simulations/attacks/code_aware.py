"""Attacks made against the decoder itself; the hardest that we know of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ...coding import LinearCode

__all__ = ["NearCodeword", "PartialCollusion", "ProjectionAware", "SameLie"]


def _typical_norm(vectors: Tensor) -> float:
    return float(vectors.double().norm(dim=1).median())


@dataclass(frozen=True)
class SameLie:
    """Every liar adds one common random vector, of `size` typical norms: rank one, hardest for subspaces."""

    size: float = 1.0
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        common = torch.randn(vectors.shape[1], generator=rng).to(vectors)
        return vectors[list(liars)] + self.size * _typical_norm(vectors) * common / common.norm()


@dataclass(frozen=True)
class NearCodeword:
    """The lie nearest to being explained by other nodes than those who tell it.

    Of the 2 s-sets C of nodes take the one whose H[:, C] has the smallest singular value, and its right
    singular vector v: sum_j v_j H[:, j] nearly vanishes, so the lies v_j on the one half of C look like -v_j on
    the other half. Choose the liars with `best_liars`. Cf. Borah & Harshan, arXiv:2510.20379.

    Parameters
    ----------
    code : LinearCode
        The code under attack.
    size : float
        Norm of a liar's lie (root mean square over the liars), in typical norms.
    """

    code: LinearCode
    size: float = 1.0
    omniscient = True

    def best_liars(self) -> list[int]:
        """Return the s slots of C that carry most of v."""
        slots, entries = self._singular_vector()
        order = np.argsort(-np.abs(entries))[: self.code.byzantine]
        return sorted(int(slots[position]) for position in order)

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`. Liars outside C add the common vector as it is."""
        slots, entries = self._singular_vector()
        weight_of = dict(zip(slots.tolist(), entries.tolist(), strict=True))
        weights = torch.tensor([weight_of.get(liar, 1.0) for liar in liars], dtype=torch.float64)
        weights *= self.size * _typical_norm(vectors) / weights.square().mean().sqrt()
        common = torch.randn(vectors.shape[1], generator=rng, dtype=torch.float64)
        added = weights[:, None] * common / common.norm()
        return vectors[list(liars)] + added.to(vectors)

    def _singular_vector(self) -> tuple[np.ndarray, np.ndarray]:
        """Return C and v, by search over runs of neighbouring slots (the worst sets of the Fourier code)."""
        size, count = self.code.group_size, 2 * self.code.byzantine
        if size <= 12:
            sets = [np.array(chosen) for chosen in combinations(range(size), count)]
        else:
            sets = [(np.arange(count) + start) % size for start in range(size)]
        parity = self.code.parity
        worst = min(sets, key=lambda chosen: float(np.linalg.svd(parity[:, chosen])[1].min()))
        return worst, np.linalg.svd(parity[:, worst])[2][-1]


@dataclass(frozen=True)
class PartialCollusion:
    """Half of the liars add noise near the tolerance, to bend the locator; the others lie grossly.

    After Borah & Harshan, arXiv:2405.07454: not all adversaries should inject precision noise.
    """

    code: LinearCode
    size: float = 100.0
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        noise = torch.randn(len(liars), vectors.shape[1], generator=rng)
        noise *= _typical_norm(vectors) / noise.norm(dim=1, keepdim=True)
        sizes = torch.full((len(liars), 1), self.size)
        sizes[: len(liars) // 2] = 3 * self.code.rtol
        return vectors[list(liars)] + (sizes * noise).to(vectors)


@dataclass(frozen=True)
class ProjectionAware:
    """A lie orthogonal to the projection F that the liars expect: invisible if the server really draws that one.

    Parameters
    ----------
    project : callable from (n, m) Tensor to (n, q) Tensor
        The projection that is expected.
    size : float
        Norm of each lie, in typical norms.
    """

    project: Callable[[Tensor], Tensor]
    size: float = 1.0
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        dim = vectors.shape[1]
        matrix = self.project(torch.eye(dim, dtype=torch.float64))  # F itself, (m, q)
        common = torch.randn(dim, generator=rng, dtype=torch.float64)
        common -= matrix @ torch.linalg.lstsq(matrix, common[:, None]).solution[:, 0]
        lie = self.size * _typical_norm(vectors) * common / common.norm()
        return vectors[list(liars)] + lie.to(vectors)
