"""Attacks that know what every node sends.

mu and sigma are the mean and the standard deviation (population, ddof = 0) over the HONEST nodes, per
coordinate; n nodes, m of them liars.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy import stats
from torch import Tensor

from .base import honest_rows

__all__ = ["Alie", "InnerProduct", "Mimic", "MinMax", "MinSum"]


@dataclass(frozen=True)
class Alie:
    """A little is enough: mu - z sigma, small enough to pass for honest (Baruch et al. 2019).

    Parameters
    ----------
    sign : -1 or 1
        The direction of the shift; -1 gives mu - z sigma.
    convention : "supporters" or "fraction"
        z = Phi^-1((n - m - h) / (n - m)) with h = floor(n / 2) + 1 - m, or Phi^-1((n - h) / n): both are
        published. n = 50, m = 12 gives 0.336 and 0.583.

    Notes
    -----
    Slips in other codes: the distribution function in place of its inverse, z fixed to 1.0 or 1.5,
    sigma taken over all nodes.
    """

    sign: Literal[-1, 1] = -1
    convention: Literal["supporters", "fraction"] = "supporters"
    omniscient = True

    def shift(self, num_nodes: int, num_liars: int) -> float:
        """Return z; 0 where the liars are a majority already (h <= 0 makes the quantile 1 or more)."""
        supporters = num_nodes // 2 + 1 - num_liars
        honest = num_nodes - num_liars
        if self.convention == "supporters":
            share = (honest - supporters) / honest if honest else 1.0
        else:
            share = (num_nodes - supporters) / num_nodes
        return float(stats.norm.ppf(share)) if 0 < share < 1 else 0.0

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        honest = honest_rows(vectors, liars)
        shift = self.sign * self.shift(len(vectors), len(liars))
        lie = honest.mean(0) + shift * honest.std(0, correction=0)
        return lie.expand(len(liars), -1).clone()


@dataclass(frozen=True)
class InnerProduct:
    """Inner product manipulation: -eps * mu (Xie et al. 2020); eps = 0.1 hides, eps > (n - m) / m turns the mean."""

    eps: float = 0.1
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        return (-self.eps * honest_rows(vectors, liars).mean(0)).expand(len(liars), -1).clone()


@dataclass(frozen=True)
class Mimic:
    """All liars copy one fixed honest node, the first (Karimireddy et al. 2022)."""

    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        return honest_rows(vectors, liars)[0].expand(len(liars), -1).clone()


Deviation = Literal["unit", "std", "sign"]


@dataclass(frozen=True)
class MinMax:
    """mu + gamma * dev with the largest gamma that keeps it no farther from any honest vector than two of these are.

    dev is -mu / |mu| ("unit"), -sigma ("std") or -sign(mu) ("sign"); gamma by bisection
    (Shejwalkar & Houmansadr 2021).
    """

    deviation: Deviation = "std"
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        honest = honest_rows(vectors, liars)
        limit = _distances(honest).max()

        def fits(lie: Tensor) -> bool:
            return bool((honest - lie).norm(dim=1).max() <= limit)

        return _farthest(honest, self.deviation, fits).expand(len(liars), -1).clone()


@dataclass(frozen=True)
class MinSum:
    """As `MinMax`, but the SUM of squared distances to the honest is at most the least such sum of an honest one.

    The least, as in the authors' code; others take the largest.
    """

    deviation: Deviation = "std"
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        honest = honest_rows(vectors, liars)
        limit = _distances(honest).square().sum(1).min()

        def fits(lie: Tensor) -> bool:
            return bool((honest - lie).square().sum() <= limit)

        return _farthest(honest, self.deviation, fits).expand(len(liars), -1).clone()


def _distances(vectors: Tensor) -> Tensor:
    """Return all distances; not from a Gram matrix, which loses those of vectors much alike."""
    return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")


def _farthest(honest: Tensor, deviation: Deviation, fits: Callable[[Tensor], bool]) -> Tensor:
    """Return mu + gamma dev with the largest gamma that fits, to 1e-6 of it; mu if none above 1e-6 does."""
    mean = honest.mean(0)
    direction: Tensor = {
        "unit": -mean / torch.linalg.vector_norm(mean).clamp_min(1e-30),
        "std": -honest.std(0, correction=0),
        "sign": -mean.sign(),
    }[deviation]
    low, high = 0.0, 1.0
    while fits(mean + high * direction) and high < 1e6:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(mean + middle * direction) else (low, middle)
    return mean + low * direction
