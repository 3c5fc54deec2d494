"""Attacks that need only the liar's own vector."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["BitFlip", "Constant", "NotFinite", "RandomGaussian", "Reverse", "SignFlip"]


@dataclass(frozen=True)
class Reverse:
    """Reverse gradient: -c times the node's own vector (Draco and DETOX use c = 100)."""

    factor: float = 100.0
    omniscient = False

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        return -self.factor * vectors[list(liars)]


@dataclass(frozen=True)
class SignFlip:
    """Sign flip: the node's own vector, negated (Karimireddy et al. call it bit flip)."""

    omniscient = False

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        return -vectors[list(liars)]


@dataclass(frozen=True)
class Constant:
    """Constant: the same number, -100 by default, in every coordinate (Draco)."""

    value: float = -100.0
    omniscient = False

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        return torch.full_like(vectors[list(liars)], self.value)


@dataclass(frozen=True)
class RandomGaussian:
    """Random: N(0, deviation^2) in every coordinate, independent (Blanchard et al. 2017: deviation = 200).

    Parameters
    ----------
    deviation : float
        Standard deviation of every coordinate.
    relative : bool
        If true, `deviation` is in units of ``|g| / sqrt(m)``, where g is the liar's own vector, of length m. The lie's
        norm is then about ``deviation * |g|``.
    """

    deviation: float = 200.0
    relative: bool = False
    omniscient = False

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        noise = torch.randn(len(liars), *vectors.shape[1:], generator=rng, device="cpu")
        lies = self.deviation * noise.to(vectors)
        if self.relative:
            lies *= vectors[list(liars)].square().mean(dim=1, keepdim=True).sqrt()
        return lies


@dataclass(frozen=True)
class NotFinite:
    """NaN (or another value, such as inf) in every coordinate."""

    value: float = float("nan")
    omniscient = False

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        return torch.full_like(vectors[list(liars)], self.value)


@dataclass(frozen=True)
class BitFlip:
    """Silent corruption: flips one random bit of one random float32 or float64 of the vector."""

    omniscient = False

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        corrupted = vectors[list(liars)].cpu()
        for row in corrupted.numpy():  # a view
            data = row.view(np.uint8)
            position = int(torch.randint(8 * data.size, (1,), generator=rng, device="cpu"))
            data[position // 8] ^= np.uint8(1 << position % 8)
        return corrupted.to(vectors.device)
