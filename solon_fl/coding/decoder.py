"""Decoding one group: from shares, of which some are lies and some are missing, to the exact gradient.

Steps (the numbers are those of docs/explanation/the-code.md): 1 validate, 2 compare, and if that is not enough
3 project, 4 screen the scale and check the syndromes, 5 locate, 6 solve and check all columns; 7 report. If that
fails, and the code is told to go on: docs/explanation/beyond-the-bound.md.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ._types import FloatArray
from .amplification import worst_amplification
from .beyond import can_try_all_sets, supporting_rows
from .exhaustive import ExhaustiveLocator
from .locating import LocatingProblem, Locator, Support
from .projection import UNDERESTIMATE, project_rows
from .solving import Interpolation, Solution, interpolate, least_squares
from .subspace import SubspaceLocator

if TYPE_CHECKING:
    from .code import LinearCode

__all__ = ["DecodeStatus", "Decoded", "decode_shares", "locate_rows", "worst_relative_error"]

NOISE_MARGIN = 3.0  # projected noise is larger than 3 times the noise with a probability of about 1e-8
LOUD = 100.0  # times the noise: lies that `_decode_fast` takes on; the value costs time only
MAX_GUESSES = 4  # of it
MAX_LOOKS = 4  # at the shares of one group, each closer than the one before
LARGEST_NORM = 1e150  # of a usable share; its square must not overflow
SMALLEST_NUMBER = 1e-150  # its square must not underflow


class DecodeStatus(enum.StrEnum):
    """How a decode ended."""

    CLEAN = "clean"  # all shares that arrived agree
    CORRECTED = "corrected"  # some shares were lies; without them the others agree
    BEYOND_BOUND = "beyond-bound"  # more lies than that; one gradient only is left that k + 1 or more shares agree with
    UNDECODABLE = "undecodable"  # no set of shares small enough explains the disagreement
    TOO_FEW_SHARES = "too-few-shares"  # fewer than k usable shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The outcome of decoding one group.

    Attributes
    ----------
    gradient : Tensor or None
        The group's gradient, (dim,), dtype and device of the shares; None if the decode failed.
    status : DecodeStatus
        `ok` is true for CLEAN, CORRECTED and BEYOND_BOUND.
    corrupt_slots : tuple of int
        Slots whose shares were located as lies, ascending.
    erased_slots : tuple of int
        Slots whose shares were missing or not finite, ascending.
    residual : float
        Norm of what the shares kept disagree with the gradient by, over all columns; inf if the decode failed.
    tolerance : float
        The residual up to which disagreement counts as noise; nan if the decode failed.
    error_bound : float
        Bound on the norm of gradient - truth, whatever the liars know and do, as long as honest shares are within
        rtol of the truth and either 2 * lies + erasures <= r - k, or at most s shares are lies and
        num_agreeing >= k + s (then however many are missing). If the status is BEYOND_BOUND: as long as k + 1 of the
        shares that are not erased are honest. inf if the decode failed.
    num_agreeing : int
        Shares that the gradient was solved from, and that agree with it; 0 if the decode failed.
    """

    gradient: Tensor | None = field(repr=False)
    status: DecodeStatus
    corrupt_slots: tuple[int, ...]
    erased_slots: tuple[int, ...]
    residual: float
    tolerance: float
    error_bound: float
    num_agreeing: int

    @property
    def ok(self) -> bool:
        """Whether there is a gradient."""
        return self.gradient is not None


def decode_shares(
    code: "LinearCode", rows: Mapping[int, Tensor], dim: int, generator: torch.Generator | None, *, last: bool = True
) -> Decoded:
    """Decode validated shares: `rows` maps slots to tensors of one length, dtype and device."""
    decoded = _decode_within_bound(code, rows, dim, generator)
    certain = decoded.num_agreeing >= code.compression + code.byzantine
    if code.beyond_bound == "reject" or certain or not last or len(rows) < code.compression:
        return decoded
    return _decode_beyond_bound(code, rows, dim, generator) or decoded


def _decode_within_bound(
    code: "LinearCode", rows: Mapping[int, Tensor], dim: int, generator: torch.Generator | None
) -> Decoded:
    if len(rows) < code.compression:
        return _failed(code, DecodeStatus.TOO_FEW_SHARES, sorted(rows))
    if (decoded := _decode_fast(code, rows, dim, generator)) is not None:
        return decoded
    slots, projected, norms = _project(rows, generator)
    if len(slots) < code.compression:
        return _failed(code, DecodeStatus.TOO_FEW_SHARES, slots)
    screened = _screen(code, slots, norms, _smallest_noise(code, rows[slots[0]]))
    problem = _problem(code, screened, projected, NOISE_MARGIN)
    solution = _look(code.locator, problem, screened.noise, [rows[slot] for slot in screened.alive], dim)
    if solution is None or not solution.residual <= screened.tolerance:
        return _failed(code, DecodeStatus.UNDECODABLE, slots)
    return _decoded(code, screened, solution)


def _decode_fast(
    code: "LinearCode", rows: Mapping[int, Tensor], dim: int, generator: torch.Generator | None
) -> Decoded | None:
    """Step 2: decode in a pass or two if all shares agree, or if all lies are loud; None if that is in doubt.

    Whom to leave out is guessed from the first columns where the shares disagree. No guess is trusted: all columns
    of the others are then compared with each other, and rows count as lies only if without them the guess would
    have left a residual larger than 3 `noise`.
    """
    slots, accused, seen = sorted(rows), set[int](), math.inf
    for _ in range(MAX_GUESSES):
        if len(slots) - len(accused) < code.compression:
            return None
        support = tuple(row for row, slot in enumerate(slots) if slot in accused)
        found = interpolate(code.generator[slots], support, [rows[slot] for slot in slots], dim, LOUD * code.rtol)
        if not isinstance(found, slice):
            break
        finite, projected, norms = _project({slot: rows[slot][found] for slot in slots}, generator)
        if len(finite) < code.compression:
            return None
        screened = _screen(code, finite, norms, _smallest_noise(code, rows[slots[0]]))
        problem = _problem(code, screened, projected, LOUD)
        located = locate_rows(code.locator, problem)
        if located is None:
            return None
        loud = (set(finite) - set(screened.alive)) | {screened.alive[row] for row in located}
        if finite == slots and loud <= accused:
            return None
        slots, accused, seen = finite, (accused | loud) & set(finite), min(seen, problem.tolerance)
    if not isinstance(found, Interpolation):
        return None
    screened = _screen(code, slots, found.row_norms, _smallest_noise(code, rows[slots[0]]))
    small = [row for row, slot in enumerate(found.support) if slots[slot] in screened.alive]
    solution = replace(
        found,
        support=tuple(screened.alive.index(slots[found.support[row]]) for row in small),
        lies=found.lies[small],
        lies_rounding=found.lies_rounding[small],
    )
    certain = (
        len(small) <= screened.max_errors  # then no row is absurd that is not accused
        and (not accused or seen >= NOISE_MARGIN * screened.noise)
        and found.residual <= screened.noise < LARGEST_NORM * code.rtol
        and found.residual + found.residual_rounding <= screened.tolerance
    )
    return _decoded(code, screened, solution) if certain else None


def _decode_beyond_bound(
    code: "LinearCode", rows: Mapping[int, Tensor], dim: int, generator: torch.Generator | None
) -> Decoded | None:
    """Return the only gradient that k + 1 or more shares agree with; None if there is none, or more than one.

    Right if k + 1 shares are honest, for these agree with the truth. So that s liars can't make anything up,
    k + s + 1 shares must be there.
    """
    slots, projected, norms = _project(rows, generator)
    compression = code.compression
    if len(slots) <= compression + max(code.byzantine, 1) or not can_try_all_sets(len(slots), compression):
        return None
    order = np.argsort(norms)  # honest noise is relative to the k-th smallest norm: of k + 1 rows, the second largest
    noise_of_row = code.rtol * norms[order] + _smallest_noise(code, rows[slots[0]])
    supporting = supporting_rows(
        code.points[slots][order],
        code.multipliers[slots][order],
        projected[order],
        compression,
        NOISE_MARGIN * math.sqrt(compression + 1) * noise_of_row,
    )
    if not supporting or len(supporting) == len(slots):
        return None
    kept = sorted(int(row) for row in order[supporting])
    noise = math.sqrt(len(kept)) * float(noise_of_row[supporting[-2]])
    support = tuple(row for row in range(len(slots)) if row not in kept)
    solution = least_squares(code.generator[slots], support, [rows[slot] for slot in slots], dim)
    if not solution.residual <= noise:  # not one gradient but several
        return None
    kept_slots = [slots[row] for row in kept]
    amplification = worst_amplification(code.generator[kept_slots].tobytes(), len(kept), compression + 1, False)
    if not amplification < math.inf:
        amplification = code.worst_amplification(compression + 1)
    return Decoded(
        gradient=solution.gradient,
        status=DecodeStatus.BEYOND_BOUND,
        corrupt_slots=tuple(slots[row] for row in support),
        erased_slots=_absent(code, slots),
        residual=solution.residual,
        tolerance=noise,
        error_bound=amplification * (solution.residual + noise) + solution.rounding,
        num_agreeing=len(kept),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Screened:
    """The shares left after step 4.

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


def _project(rows: Mapping[int, Tensor], generator: torch.Generator | None) -> tuple[list[int], FloatArray, FloatArray]:
    """Return the slots of finite shares, their projections and their norms."""
    slots = sorted(rows)
    projected, norms = project_rows([rows[slot] for slot in slots], generator)
    usable = norms < LARGEST_NORM  # false for NaN
    return [slot for slot, use in zip(slots, usable, strict=True) if use], projected[usable], norms[usable]


def _screen(code: "LinearCode", slots: list[int], norms: FloatArray, floor: float) -> _Screened:
    alive, scale = _without_absurd_rows(code, norms, floor)
    max_errors = (len(alive) - code.compression) // 2  # 2 * lies + erasures <= r - k, dropped rows being erasures
    return _Screened(
        slots=slots,
        alive=[slots[row] for row in alive],
        noise=math.sqrt(len(alive)) * (code.rtol * scale + floor),
        max_errors=max_errors,
        liars=max(max_errors, code.byzantine - (len(slots) - len(alive))),
    )


def _problem(code: "LinearCode", screened: _Screened, projected: FloatArray, margin: float) -> LocatingProblem:
    """Return the problem of locating lies of more than `margin` times the noise."""
    return LocatingProblem(
        generator=code.generator[screened.alive],
        projected=projected[[screened.slots.index(slot) for slot in screened.alive]],
        points=code.points[screened.alive],
        multipliers=code.multipliers[screened.alive],
        max_errors=screened.max_errors,
        tolerance=margin * screened.noise,
    )


def _decoded(code: "LinearCode", screened: _Screened, solution: Solution) -> Decoded:
    kept = {slot for row, slot in enumerate(screened.alive) if row not in solution.support}
    corrupt = tuple(slot for slot in screened.slots if slot not in kept)
    return Decoded(
        gradient=solution.gradient,
        status=DecodeStatus.CORRECTED if corrupt else DecodeStatus.CLEAN,
        corrupt_slots=corrupt,
        erased_slots=_absent(code, screened.slots),
        residual=solution.residual,
        tolerance=screened.tolerance,
        error_bound=_error_bound(code, screened, solution),
        num_agreeing=len(kept),
    )


def worst_relative_error(code: "LinearCode") -> float:
    """Return the error bound of the worst undetected attack, relative to the gradient's norm.

    All s liars collude just below the tolerance and every honest share is off by rtol; the gradient's chunks are
    taken to be of equal norm and uncorrelated, as those of real gradients nearly are.
    """
    share_norms = float(np.linalg.norm(code.generator)) / math.sqrt(code.compression)  # of all r, by |gradient|
    return code.amplification * (UNDERESTIMATE * NOISE_MARGIN + 1) * code.rtol * share_norms


def _failed(code: "LinearCode", status: DecodeStatus, slots: list[int]) -> Decoded:
    return Decoded(
        gradient=None,
        status=status,
        corrupt_slots=(),
        erased_slots=_absent(code, slots),
        residual=math.inf,
        tolerance=math.nan,
        error_bound=math.inf,
        num_agreeing=0,
    )


def _absent(code: "LinearCode", slots: list[int]) -> tuple[int, ...]:
    return tuple(sorted(set(range(code.group_size)) - set(slots)))


def _smallest_noise(code: "LinearCode", share: Tensor) -> float:
    """Return what k roundings next to zero can change a share by: rtol means nothing there."""
    limits = torch.finfo(share.dtype)
    step = max(limits.smallest_normal * limits.eps, SMALLEST_NUMBER)
    return code.compression * step * math.sqrt(share.numel())


def _without_absurd_rows(code: "LinearCode", norms: FloatArray, floor: float) -> tuple[list[int], float]:
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
        liars = max(spare // 2, min(spare, code.byzantine - (len(norms) - len(order))))
        scale = float(norms[order[liars + code.compression - 1]])
        limit = (1.01 + 2 * code.rtol) * code.amplification * math.sqrt(code.compression) * (scale + 2 * floor)
        absurd = min(liars, sum(float(norms[row]) > limit for row in order))
        if absurd == 0:
            return sorted(order), scale
        order = order[:-absurd]


def _look(
    locator: Locator | None, problem: LocatingProblem, noise: float, rows: list[Tensor], dim: int
) -> Solution | None:
    """Locate and solve; look closer as long as the rows kept disagree by more than noise, for then one is a lie."""
    solution = None
    for _ in range(MAX_LOOKS):
        support = locate_rows(locator, problem)
        if support is None:
            break
        solution = least_squares(problem.generator, support, rows, dim)
        if solution.residual <= noise:
            break
        problem = replace(problem, tolerance=problem.residual(support) / 2)
    return solution


def locate_rows(locator: Locator | None, problem: LocatingProblem) -> Support | None:
    """Return rows without which the others agree, none of them needless, or None if t rows are not enough."""
    if problem.residual(()) <= problem.tolerance:
        return ()
    if problem.max_errors == 0:
        return None
    if locator is None:
        exhaustive = ExhaustiveLocator()
        locator = exhaustive if exhaustive.can_try_all(problem) else SubspaceLocator()
    support = tuple(sorted(set(locator.locate(problem))))
    if len(support) > problem.max_errors or not problem.residual(support) <= problem.tolerance:
        return None
    return _without_needless_rows(problem, support)


def _without_needless_rows(problem: LocatingProblem, support: Support) -> Support:
    """Acquit, one by one, rows whose return leaves the residual within the tolerance."""
    while support:
        smaller = np.array([[row for row in support if row != out] for out in support], dtype=np.int64)
        residuals = problem.residuals(smaller)
        if residuals.min() > problem.tolerance:
            break
        support = tuple(smaller[residuals.argmin()].tolist())
    return support


def _error_bound(code: "LinearCode", screened: _Screened, solution: Solution) -> float:
    """Bound |gradient - truth| given what was seen; see docs/explanation/the-code.md for the proof.

    All but `liars` of the rows kept are honest and agree with the result up to `delta`: the first bound. A
    row that is accused but honest deviates from the result by no more than `threshold`; so those that deviate by
    more are lies, and if the others (doubtful) are added to the rows kept, the lies are fewer: the second.
    """
    num_rows, compression = len(screened.alive), code.compression
    delta = solution.residual + solution.residual_rounding + screened.noise
    honest_kept = max(num_rows - len(solution.lies) - screened.liars, compression)
    honest = max(num_rows - screened.liars, compression)
    bound = code.worst_amplification(honest_kept) * delta
    smallest, largest = solution.lies - solution.lies_rounding, solution.lies + solution.lies_rounding
    doubtful = largest[smallest <= bound + screened.noise]
    second = code.worst_amplification(honest) * (delta + float(np.linalg.norm(doubtful)))
    return min(bound, second) + solution.rounding
