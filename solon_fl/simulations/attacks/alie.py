"""A little is enough (ALIE): the honest mean, shifted by so few standard deviations that the lies look honest.

mu and sigma are the mean and the (population, ddof = 0) standard deviation over the honest nodes, per coordinate.
There are n nodes, m of which are liars.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy import special
from torch import Tensor

from .base import honest_rows
from .tuning import Aggregate, check_candidates, most_damaging

__all__ = ["Alie", "TunedAlie"]

SHIFTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)  # z to try


@dataclass(frozen=True)
class Alie:
    """A little is enough: the lie mu - z sigma, which looks honest (Baruch et al. 2019).

    Parameters
    ----------
    sign : -1 or 1
        The direction of the shift; -1 gives mu - z sigma.
    convention : "supporters" or "fraction"
        The formula for z. With h = floor(n / 2) + 1 - m, "supporters" is z = Phi^-1((n - m - h) / (n - m)) and
        "fraction" is z = Phi^-1((n - h) / n). Both are published. For n = 50, m = 12 they give 0.336 and 0.583.
    fixed_shift : float, optional
        A fixed z, which overrides `convention`. Some implementations use 1.0 or 1.5.

    Notes
    -----
    Other implementations deviate from the paper. They use the distribution function instead of its inverse (as in
    Shejwalkar & Houmansadr's table of z), fix z to 1.0 or 1.5, or compute sigma over all nodes.
    """

    sign: Literal[-1, 1] = -1
    convention: Literal["supporters", "fraction"] = "supporters"
    fixed_shift: float | None = None
    omniscient = True

    def shift(self, num_nodes: int, num_liars: int) -> float:
        """Return z. Unless it is fixed, z is 0 where liars are the majority: h <= 0 asks for Phi^-1 of 1 or more."""
        if self.fixed_shift is not None:
            return self.fixed_shift
        supporters = num_nodes // 2 + 1 - num_liars
        honest = num_nodes - num_liars
        if self.convention == "supporters":
            share = (honest - supporters) / honest if honest else 1.0
        else:
            share = (num_nodes - supporters) / num_nodes
        return float(special.ndtri(share)) if 0 < share < 1 else 0.0

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        honest = honest_rows(vectors, liars)
        shift = self.sign * self.shift(len(vectors), len(liars))
        lie = honest.mean(0) + shift * honest.std(0, correction=0)
        return lie.expand(len(liars), -1).clone()


@dataclass(frozen=True)
class TunedAlie:
    """The lie mu - z sigma sign(mu) with the most damaging z: every coordinate moves against its honest sign.

    Parameters
    ----------
    aggregate : callable, (n, m) -> (d,)
        The server's aggregation of all nodes' vectors. `damage` measures the damage to it.
    candidates : tuple of float
        Values of z to try, in this order. The first is used if none does any damage.

    Raises
    ------
    ConfigurationError
        If there is no candidate, or one is not positive and finite.

    Notes
    -----
    `Alie` moves all coordinates in the same direction, so part of its shift helps training. Its authors fix z before
    they see the aggregator. The search for z is that of Allouah et al. 2023 ("Fixing by mixing"), with other
    candidates.
    """

    aggregate: Aggregate
    candidates: tuple[float, ...] = SHIFTS
    omniscient = True

    def __post_init__(self) -> None:
        check_candidates(self.candidates)

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        honest = honest_rows(vectors, liars)
        mean = honest.mean(0)
        against = honest.std(0, correction=0) * mean.sign()
        lie = most_damaging(self.aggregate, vectors, liars, (mean - shift * against for shift in self.candidates))
        return lie.expand(len(liars), -1).clone()
