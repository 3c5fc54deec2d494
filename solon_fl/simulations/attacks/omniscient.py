"""Attacks by liars that know every node's vector.

mu and sigma are the mean and the (population, ddof = 0) standard deviation over the honest nodes, per coordinate.
There are n nodes, m of which are liars.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .base import honest_rows
from .tuning import Aggregate, check_candidates, most_damaging

__all__ = ["FallOfEmpires", "InnerProduct", "Mimic", "MinMax", "MinSum"]

EPS_GRID = tuple(float(f"{10 ** (step / 4):.3g}") for step in range(-4, 13))  # from stealthy to gross
FRACTIONS = (1.0, 0.75, 0.5, 0.25)  # of the largest gamma
HALVINGS = 24


@dataclass(frozen=True)
class InnerProduct:
    """Inner product manipulation: the lie -eps * mu (Xie et al. 2020).

    eps = 0.1 is stealthy. eps > (n - m) / m reverses the mean of all vectors.
    """

    eps: float = 0.1
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        return (-self.eps * honest_rows(vectors, liars).mean(0)).expand(len(liars), -1).clone()


@dataclass(frozen=True)
class FallOfEmpires:
    """Inner product manipulation: the lie -eps * mu with the most damaging eps (Xie et al. 2020).

    Parameters
    ----------
    aggregate : callable, (n, m) -> (d,)
        The server's aggregation of all nodes' vectors. `damage` measures the damage to it.
    candidates : tuple of float
        Values of eps to try, in this order. The first is used if none does any damage. Default: four per decade from
        0.1 to 1000. The smallest are stealthy, and those above (n - m) / m reverse a mean.

    Raises
    ------
    ConfigurationError
        If there is no candidate, or one is not positive and finite.

    Notes
    -----
    The authors choose eps by hand for every aggregator (0.1 against Krum, 10 against the mean). This attack searches
    for it.
    """

    aggregate: Aggregate
    candidates: tuple[float, ...] = EPS_GRID
    omniscient = True

    def __post_init__(self) -> None:
        check_candidates(self.candidates)

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        mean = honest_rows(vectors, liars).mean(0)
        lie = most_damaging(self.aggregate, vectors, liars, (-eps * mean for eps in self.candidates))
        return lie.expand(len(liars), -1).clone()


@dataclass(frozen=True)
class Mimic:
    """All liars copy the first honest node (Karimireddy et al. 2022, who search for the most extreme one)."""

    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        return honest_rows(vectors, liars)[0].expand(len(liars), -1).clone()


Deviation = Literal["unit", "std", "sign"]


@dataclass(frozen=True)
class MinMax:
    """The lie mu + gamma * dev, no farther from any honest vector than the two most distant honest vectors are apart.

    The direction dev is ``-mu / |mu|`` ("unit"), ``-sigma`` ("std") or ``-sign(mu)`` ("sign"). Bisection finds the
    largest such gamma (Shejwalkar & Houmansadr 2021).

    Parameters
    ----------
    deviation : "unit", "std" or "sign"
        The direction dev. With `aggregate`, the direction to use if no lie does any damage.
    aggregate : callable, (n, m) -> (d,), optional
        The server's aggregation of all nodes' vectors. If given, the attack tries every dev with 1, 3/4, 1/2 and 1/4 of
        its largest gamma, and sends the most damaging lie. `damage` measures the damage.
    """

    deviation: Deviation = "std"
    aggregate: Aggregate | None = None
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        honest = honest_rows(vectors, liars)
        limit = _distances(honest).max()

        def fits(lie: Tensor) -> bool:
            return bool(torch.linalg.vector_norm(honest - lie, dim=1, dtype=torch.float64).max() <= limit)

        return _farthest_or_worst(vectors, liars, self.deviation, fits, float(limit), self.aggregate)


@dataclass(frozen=True)
class MinSum:
    """Like `MinMax`, but bounds the sum of the squared distances to the honest vectors.

    The bound is the smallest such sum of any honest vector, as in the authors' code. Other implementations take the
    largest.
    """

    deviation: Deviation = "std"
    aggregate: Aggregate | None = None
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        honest = honest_rows(vectors, liars)
        limit = _distances(honest).square().sum(1).min()

        def fits(lie: Tensor) -> bool:
            return bool(torch.linalg.vector_norm(honest - lie, dtype=torch.float64).square() <= limit)

        return _farthest_or_worst(vectors, liars, self.deviation, fits, float(limit) ** 0.5, self.aggregate)


def _farthest_or_worst(
    vectors: Tensor,
    liars: Sequence[int],
    deviation: Deviation,
    fits: Callable[[Tensor], bool],
    limit: float,
    aggregate: Aggregate | None,
) -> Tensor:
    """Return the lies of `MinMax` and `MinSum`: the farthest that fits, or the most damaging on the way there."""
    honest = honest_rows(vectors, liars)
    if aggregate is None:
        return _farthest(honest, deviation, fits, limit).expand(len(liars), -1).clone()
    mean = honest.mean(0)
    deviations = (deviation, *(other for other in get_args(Deviation) if other != deviation))
    steps = (_farthest(honest, other, fits, limit) - mean for other in deviations)
    candidates = (mean + fraction * step for step in steps for fraction in FRACTIONS)
    return most_damaging(aggregate, vectors, liars, candidates).expand(len(liars), -1).clone()


def _distances(vectors: Tensor) -> Tensor:
    """Return all pairwise distances. A Gram matrix would lose small ones to rounding."""
    return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").double()


def _farthest(honest: Tensor, deviation: Deviation, fits: Callable[[Tensor], bool], limit: float) -> Tensor:
    """Return mu + gamma dev with the largest gamma that fits. A vector that fits is within `limit` of mu."""
    mean = honest.mean(0)
    direction: Tensor = {"unit": -mean, "std": -honest.std(0, correction=0), "sign": -mean.sign()}[deviation]
    length = float(torch.linalg.vector_norm(direction, dtype=torch.float64))
    if length == 0:
        return mean
    low, high = 0.0, 1.01 * limit / length  # no lie that fits is farther from the mean than the limit
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(mean + middle * direction) else (low, middle)
    return mean + low * direction
