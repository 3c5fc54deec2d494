"""Attacks that exploit the code and the decoder: the strongest that we know.

The size of a lie is given in typical norms: the median norm of all nodes' vectors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from solon_fl.coding import Code, ExactCode, ExactDecoder, RealCode, RealDecoder
from solon_fl.coding._types import FloatArray
from solon_fl.coding.exact.field import LARGEST, canonical, combined, halves
from solon_fl.coding.real.projection import Projector

from .base import Attack

__all__ = [
    "BelowTolerance",
    "Encoded",
    "NearCodeword",
    "OtherGradient",
    "PartialCollusion",
    "ProjectionAware",
    "SameLie",
]


def _typical_norm(vectors: Tensor) -> float:
    return float(torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).median())


def _unit(vector: Tensor) -> Tensor:
    return vector.div(torch.linalg.vector_norm(vector))


@dataclass(frozen=True)
class SameLie:
    """All liars add the same random vector. Lies of rank one are the hardest for the subspace locator.

    Parameters
    ----------
    size : float
        Norm of the added vector, in typical norms.
    """

    size: float = 1.0
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        common = torch.randn(vectors.shape[1], generator=rng, device="cpu").to(vectors)
        return vectors[list(liars)] + self.size * _typical_norm(vectors) * _unit(common)


@dataclass(frozen=True)
class Encoded:
    """An attack on gradients, applied to coded shares: each liar sends its own share of the malicious gradient.

    The liars' shares are consistent with each other, because they encode one gradient.

    Parameters
    ----------
    code : RealCode or ExactCode
        The code under attack.
    attack : Attack
        Computes the malicious gradient from the true one. All nodes of a group have the same gradient, so an attack
        that exploits differences between honest nodes (ALIE, Min-Max) has no effect.
    """

    code: Code
    attack: Attack
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        (malicious,) = self.attack.lies(self._gradient(vectors)[None], [0], rng)
        shares = [self.code.encode(malicious, liar) for liar in liars]
        return torch.stack(shares).to(vectors) if shares else vectors[:0]

    def _gradient(self, vectors: Tensor) -> Tensor:
        if isinstance(self.code, RealCode):
            chunks: Tensor = torch.linalg.pinv(torch.from_numpy(self.code.generator)) @ vectors.cpu().to(torch.float64)
            return chunks.T.reshape(-1)
        assert isinstance(self.code, ExactCode)
        gradient = ExactDecoder(self.code, byzantine=0).decode(vectors).gradient
        assert gradient is not None  # honest shares always decode
        return gradient


@dataclass(frozen=True)
class NearCodeword:
    """Lies that lies of other nodes explain almost as well.

    Of all sets C of 2 s nodes (at least 2, at most r), the attack takes the one whose ``H[:, C]`` has the smallest
    singular value, with right singular vector v. The sum over j of ``v_j H[:, j]`` nearly vanishes, so the lies v_j on
    one half of C look like the lies -v_j on the other half. `best_liars` chooses the liars. See also Borah & Harshan,
    arXiv:2510.20379.

    Parameters
    ----------
    decoder : RealDecoder
        The decoder under attack.
    size : float
        Norm of a lie (root mean square over the liars), in typical norms.
    """

    decoder: RealDecoder
    size: float = 1.0
    omniscient = True

    def best_liars(self) -> list[int]:
        """Return the s slots of C with the largest absolute entries of v."""
        slots, entries = self._singular_vector()
        order = np.argsort(-np.abs(entries))[: self.decoder.byzantine]
        return sorted(int(slots[position]) for position in order)

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`. Liars outside C have an entry of 1 in place of that of v."""
        slots, entries = self._singular_vector()
        weight_of = dict(zip(slots.tolist(), entries.tolist(), strict=True))
        weights = torch.tensor([weight_of.get(liar, 1.0) for liar in liars], dtype=torch.float64, device="cpu")
        weights *= self.size * _typical_norm(vectors) / weights.square().mean().sqrt()
        common = torch.randn(vectors.shape[1], generator=rng, device="cpu", dtype=torch.float64)
        added = weights[:, None] * _unit(common)
        return vectors[list(liars)] + added.to(vectors)

    def _singular_vector(self) -> tuple[np.ndarray, np.ndarray]:
        """Return C and v. With more than 12 nodes, C is a run of adjacent slots: those are the Fourier code's worst."""
        size = self.decoder.code.group_size
        count = min(2 * max(self.decoder.byzantine, 1), size)
        if size <= 12:
            sets = [np.array(chosen) for chosen in combinations(range(size), count)]
        else:
            sets = [(np.arange(count) + start) % size for start in range(size)]
        parity = self.decoder.code.parity
        if len(parity) == 0:  # no redundancy: no lie contradicts anything
            return np.arange(size), np.ones(size)
        worst = min(sets, key=lambda chosen: float(np.linalg.svd(parity[:, chosen])[1].min()))
        return worst, np.linalg.svd(parity[:, worst])[2][-1]


@dataclass(frozen=True)
class OtherGradient:
    """All liars send shares of another gradient, which agrees with the true one in k - 1 honest shares.

    With s liars in a group of 2 s + k, s + k shares are consistent with the true gradient and s + k - 1 with the other
    one. With s + 1 liars it is the other way round, so that no decoder can find the true gradient.

    Parameters
    ----------
    code : RealCode or ExactCode
        The code under attack.
    size : float
        Norm of a lie (root mean square over the liars), in typical norms. Ignored for an exact code, where the other
        gradient is random.
    """

    code: Code
    size: float = 1.0
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        honest = [row for row in range(len(vectors)) if row not in set(liars)]
        if isinstance(self.code, ExactCode):
            return self._exact_lies(self.code, vectors, honest, list(liars), rng)
        assert isinstance(self.code, RealCode)
        shared = self.code.generator[honest[: self.code.compression - 1]]
        difference = np.linalg.qr(shared.T, mode="complete").Q[:, -1]  # between the gradients, orthogonal to shared
        weights = torch.from_numpy(self.code.generator[list(liars)] @ difference)
        weights *= self.size * _typical_norm(vectors) / weights.square().mean().sqrt()
        common = torch.randn(vectors.shape[1], generator=rng, device="cpu", dtype=torch.float64)
        return vectors[list(liars)] + (weights[:, None] * _unit(common)).to(vectors)

    @staticmethod
    def _exact_lies(
        code: ExactCode, vectors: Tensor, honest: list[int], liars: list[int], rng: torch.Generator
    ) -> Tensor:
        """Return shares of the gradient with k - 1 honest shares and a random share of the first liar."""
        if not liars:
            return vectors[:0]
        known = [*honest[: code.compression - 1], liars[0]]
        numbers = vectors[known].cpu().view(torch.int32).to(torch.float64)
        numbers[-1] = torch.randint(LARGEST, numbers[-1].shape, generator=rng, device="cpu")
        shares = canonical(combined(halves(code.interpolation(known, liars), numbers.device), numbers))
        return shares.view(torch.float32).to(vectors)


@dataclass(frozen=True)
class PartialCollusion:
    """Half of the liars add noise near the tolerance, to mislead the locator. The others add gross lies.

    This follows Borah & Harshan, arXiv:2405.07454: not all adversaries should inject precision noise.

    Parameters
    ----------
    decoder : RealDecoder
        The decoder under attack.
    size : float
        Norm of a gross lie, in typical norms.
    """

    decoder: RealDecoder
    size: float = 100.0
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        noise = torch.randn(len(liars), vectors.shape[1], generator=rng, device="cpu", dtype=torch.float64)
        noise *= _typical_norm(vectors) / noise.norm(dim=1, keepdim=True)
        sizes = torch.full_like(noise[:, :1], self.size)
        sizes[: len(liars) // 2] = 3 * self.decoder.rtol
        return vectors[list(liars)] + (sizes * noise).to(vectors)


@dataclass(frozen=True)
class ProjectionAware:
    """A lie orthogonal to the projection F that the liars expect. If the server draws that F, the lie is invisible.

    Parameters
    ----------
    seed : int
        Seed of the generator from which the liars expect the server to draw F. By default the server draws F from fresh
        entropy.
    size : float
        Norm of each lie, in typical norms.
    """

    seed: int = 0
    size: float = 1.0
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`. A vector of at most q = 16 entries leaves no room to hide, so its liars stay honest."""
        # 64 columns are enough to hide in.
        probes = torch.eye(min(64, vectors.shape[1]), vectors.shape[1], device="cpu")
        seen, _ = Projector(torch.Generator().manual_seed(self.seed)).project(list(probes))
        basis = np.linalg.qr(seen, mode="complete").Q
        hidden = torch.from_numpy(basis[:, seen.shape[1] :])  # in these columns, orthogonal to F
        if hidden.shape[1] == 0:
            return vectors[list(liars)]
        common = torch.zeros(vectors.shape[1], dtype=torch.float64, device="cpu")
        common[: len(hidden)] = hidden @ torch.randn(hidden.shape[1], generator=rng, device="cpu", dtype=torch.float64)
        lie = self.size * _typical_norm(vectors) * _unit(common)
        return vectors[list(liars)] + lie.to(vectors)


@dataclass(frozen=True)
class BelowTolerance:
    """The largest lie that the decoder takes for float noise, aligned so that it distorts the gradient most.

    The lies are w_j times one common vector. If all r shares arrive, the decoder accepts a residual ``|H[:, L] w|`` of
    up to ``sqrt(r) * rtol * scale``, where scale is the ``((r - k) // 2 + k)``-th smallest norm of a share. Above that
    it checks again, and above three times that it locates lies. Of all w with that residual, this one has the largest
    effect ``|pinv(G)[:, L] w|`` on the gradient, which must not exceed `Decoded.error_bound` and
    `RealDecoder.certificate`.

    Parameters
    ----------
    decoder : RealDecoder
        The decoder under attack.
    size : float
        Residual of the lies, in units of the residual that is accepted. The default leaves room for the float noise of
        the honest shares, so that the lies go unnoticed.
    """

    decoder: RealDecoder
    size: float = 0.9
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`. For at most r - k liars: more could send another gradient's shares."""
        weights = torch.from_numpy(self.weights(liars))
        weights *= self.size * self._tolerated(vectors)
        common = torch.randn(vectors.shape[1], generator=rng, device="cpu", dtype=torch.float64)
        return (vectors[list(liars)].double() + weights[:, None] * _unit(common).to(weights)).to(vectors)

    def weights(self, liars: Sequence[int]) -> FloatArray:
        """Return w, (len(liars),), with ``|H[:, L] w| = 1``."""
        lying = list(liars)
        if not lying:
            return np.zeros(0)
        # With H[:, L] = Q R and y = R w: the unit vector y that maximises |pinv(G)[:, L] R^-1 y|.
        inverse = np.linalg.pinv(np.linalg.qr(self.decoder.code.parity[:, lying], mode="r"))
        effect = np.linalg.pinv(self.decoder.code.generator)[:, lying] @ inverse
        return np.asarray(inverse @ np.linalg.svd(effect)[2][0])

    def _tolerated(self, vectors: Tensor) -> float:
        code = self.decoder.code
        norms = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).sort().values
        scale = float(norms[(code.group_size - code.compression) // 2 + code.compression - 1])
        return math.sqrt(code.group_size) * self.decoder.rtol * scale
