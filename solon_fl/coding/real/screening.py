"""Screening: which shares can't be honest whatever the gradient is, and how far apart honest shares may be."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from solon_fl.coding._types import FloatArray
from solon_fl.coding.sections import Sections

from .code import RealCode
from .projection import NOISE_MARGIN, SMALLEST_NUMBER, UNDERESTIMATE

__all__ = ["Screened", "noise_of", "scales", "screen", "smallest_noise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """The shares that remain after the screening.

    Attributes
    ----------
    slots : list of int
        Slots of the finite shares.
    alive : list of int
        The slots whose shares are not absurdly large.
    noise : (K,) float64
        For each class, the largest norm by which honest shares may disagree.
    max_errors : int
        Number of lies among `alive` that can be located.
    liars : int
        Number of lies that may be among `alive`: `max_errors`, or s less the dropped shares if that is more.
    """

    slots: list[int]
    alive: list[int]
    noise: FloatArray
    max_errors: int
    liars: int

    @property
    def rows(self) -> list[int]:
        """Indices of `alive` in `slots`."""
        return [self.slots.index(slot) for slot in self.alive]

    @property
    def tolerance(self) -> FloatArray:
        """The largest residuals, (K,), whose projections may be within 3 `noise`."""
        return UNDERESTIMATE * NOISE_MARGIN * self.noise


def screen(
    code: RealCode, slots: list[int], norms: FloatArray, smallest: FloatArray, *, rtol: float, byzantine: int
) -> Screened:
    """Drop the absurdly large shares, and return how much noise and how many lies the others may hold.

    Parameters
    ----------
    slots : list of n int
        Slots of the finite shares.
    norms : (K, n) float64
        Their norms, by class.
    smallest : (K,) float64
        See `smallest_noise`.
    rtol, byzantine
        See `Decoder`.
    """
    alive, scale = _without_absurd_rows(code, norms, smallest, rtol, byzantine)
    max_errors = (len(alive) - code.compression) // 2  # 2 * lies + erasures <= r - k; dropped rows are erasures
    return Screened(
        slots=slots,
        alive=[slots[row] for row in alive],
        noise=noise_of(code, scale, smallest, rtol),
        max_errors=max_errors,
        liars=max(max_errors, byzantine - (len(slots) - len(alive))),
    )


def scales(norms: FloatArray, liars: int, compression: int) -> FloatArray:
    """Return the (l + k)-th smallest norm of each part of `norms`, (parts, n); see `_without_absurd_rows`."""
    return np.asarray(np.sort(norms, axis=1)[:, min(liars + compression, norms.shape[1]) - 1])


def noise_of(code: RealCode, scale: FloatArray, smallest: FloatArray, rtol: float) -> FloatArray:
    """Return the norm by which honest shares may disagree: that of r rows, because it must not grow with n."""
    return math.sqrt(code.group_size) * (rtol * scale + smallest)


def smallest_noise(sections: Sections, compression: int, dtype: torch.dtype) -> FloatArray:
    """Return, for each tensor, how far k roundings next to zero can change a share; rtol does not apply there."""
    limits = torch.finfo(dtype)
    step = max(limits.smallest_normal * limits.eps, SMALLEST_NUMBER)
    return np.asarray(compression * step * np.sqrt(sections.widths))


def _without_absurd_rows(
    code: RealCode, norms: FloatArray, smallest: FloatArray, rtol: float, byzantine: int
) -> tuple[list[int], FloatArray]:
    """Drop rows so large that no gradient explains them together with the others; return the rest and the scales.

    Assume that l of the rows may be lies: (n - k) // 2 by the budget, or s if that is more. Then k of the l + k
    smallest rows in a class are honest, and these determine the class's part of the gradient. Its norm is at most
    amplification * sqrt(k) times the largest of them, and no honest row exceeds that times the norm of its row of G. So
    every dropped row is certainly a lie. If it stayed, it could drown small lies in the rounding errors of float64.

    The scale is the norm of the largest of those l + k rows. It is at least the norm of the k-th smallest honest row,
    so it vanishes only with the gradient. If l + k rows are honest, it is at most the norm of the largest honest row.
    """
    alive = np.arange(norms.shape[1])
    factor = (1.01 + 2 * rtol) * code.amplification * code.largest_row * math.sqrt(code.compression)
    while True:
        spare = len(alive) - code.compression
        liars = max(spare // 2, min(spare, byzantine - (norms.shape[1] - len(alive))))
        scale = scales(norms[:, alive], liars, code.compression)
        with np.errstate(invalid="ignore"):  # float32 rows beyond about 1e19 may come with infinite norms
            excess = (norms[:, alive] / (factor * (scale + 2 * smallest))[:, None]).max(axis=0)
        absurd = min(liars, int((excess > 1).sum()))
        if absurd == 0:
            return alive.tolist(), scale
        alive = np.sort(alive[np.argsort(excess, kind="stable")[:-absurd]])
