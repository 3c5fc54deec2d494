"""Step 4 of a decode: which shares are too large to be true, and how large the noise of the others may be."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ._types import FloatArray
from .code import Code
from .projection import UNDERESTIMATE, project_rows

__all__ = ["LARGEST_NORM", "NOISE_MARGIN", "SMALLEST_NUMBER", "Screened", "project_finite", "screen", "smallest_noise"]

NOISE_MARGIN = 3.0  # projected noise is larger than 3 times the noise with a probability of about 1e-8
LARGEST_NORM = 1e150  # of a usable share; its square must not overflow
SMALLEST_NUMBER = 1e-150  # its square must not underflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """The shares that are left after the screening.

    Attributes
    ----------
    slots : list of int
        Slots of the finite shares.
    alive : list of int
        Those that are not absurd.
    noise : float
        Norm of what honest shares may disagree by.
    max_errors : int
        Lies among the alive that can be located.
    liars : int
        Lies that there may be among the alive: `max_errors`, or what is left of s, if that is more.
    """

    slots: list[int]
    alive: list[int]
    noise: float
    max_errors: int
    liars: int

    @property
    def tolerance(self) -> float:
        """The residual up to which a projected one may have been within 3 `noise`."""
        return UNDERESTIMATE * NOISE_MARGIN * self.noise


def project_finite(
    rows: Mapping[int, Tensor], generator: torch.Generator | None
) -> tuple[list[int], FloatArray, FloatArray]:
    """Return the slots of the finite shares, their projections and their norms."""
    slots = sorted(rows)
    projected, norms = project_rows([rows[slot] for slot in slots], generator)
    usable = norms < LARGEST_NORM  # false for NaN
    return [slot for slot, use in zip(slots, usable, strict=True) if use], projected[usable], norms[usable]


def screen(code: Code, byzantine: int, rtol: float, slots: list[int], norms: FloatArray, share: Tensor) -> Screened:
    """Drop the absurd shares, and say how much noise and how many lies the others may hold.

    Parameters
    ----------
    byzantine : int
        s.
    slots : list of n int
        Of the finite shares.
    norms : (n,) float64
        Of these shares.
    share : Tensor, (m,)
        Any of them, for its length and dtype.
    """
    floor = smallest_noise(code, share)
    alive, scale = _without_absurd_rows(code, byzantine, rtol, norms, floor)
    max_errors = (len(alive) - code.compression) // 2  # 2 * lies + erasures <= r - k, dropped rows being erasures
    return Screened(
        slots=slots,
        alive=[slots[row] for row in alive],
        noise=math.sqrt(len(alive)) * (rtol * scale + floor),
        max_errors=max_errors,
        liars=max(max_errors, byzantine - (len(slots) - len(alive))),
    )


def smallest_noise(code: Code, share: Tensor) -> float:
    """Return what k roundings next to zero can change a share by: rtol means nothing there."""
    limits = torch.finfo(share.dtype)
    step = max(limits.smallest_normal * limits.eps, SMALLEST_NUMBER)
    return code.compression * step * math.sqrt(share.numel())


def _without_absurd_rows(
    code: Code, byzantine: int, rtol: float, norms: FloatArray, floor: float
) -> tuple[list[int], float]:
    """Drop rows so large that no gradient explains them together with the others; return the rest and the scale.

    If l of the rows may be lies (the budget's (n - k) // 2, or s if that is more), k of the l + k smallest are honest,
    and those k fix the gradient: its norm is at most amplification * sqrt(k) times the largest of them, and no honest
    row is larger than that. What is dropped is thus certainly a lie; left in, it could drown small lies in the
    rounding of float64.

    The scale, the norm of the largest of those l + k, is at least that of the k-th smallest honest row (so it
    vanishes with the gradient only) and, if l + k rows are honest, at most that of the largest.
    """
    order = np.argsort(norms).tolist()
    while True:
        spare = len(order) - code.compression
        liars = max(spare // 2, min(spare, byzantine - (len(norms) - len(order))))
        scale = float(norms[order[liars + code.compression - 1]])
        limit = (1.01 + 2 * rtol) * code.amplification * math.sqrt(code.compression) * (scale + 2 * floor)
        absurd = min(liars, sum(float(norms[row]) > limit for row in order))
        if absurd == 0:
            return sorted(order), scale
        order = order[:-absurd]
