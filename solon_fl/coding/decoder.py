"""Decoding one group: from shares, of which some are lies and some are missing, to the exact gradient.

Steps (the numbers are those of docs/explanation/the-code.md): 1 validate, 2 project, 3 screen the scale and
check the syndromes, 4 locate, 5 solve and check all columns, 6 report.
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
from .exhaustive import ExhaustiveLocator
from .locating import LocatingProblem, Locator, Support, parity_of
from .projection import BLOCK, UNDERESTIMATE, project_rows
from .subspace import SubspaceLocator

if TYPE_CHECKING:
    from .code import LinearCode

__all__ = ["DecodeStatus", "Decoded", "decode_shares", "locate_rows", "worst_relative_error"]

NOISE_MARGIN = 3.0  # projected noise is larger than 3 times the noise with a probability of about 1e-8
MAX_LOOKS = 4  # at the shares of one group, each closer than the one before
LARGEST_NORM = 1e150  # of a usable share; its square must not overflow
SMALLEST_NUMBER = 1e-150  # its square must not underflow


class DecodeStatus(enum.StrEnum):
    """How a decode ended."""

    CLEAN = "clean"  # all shares that arrived agree
    CORRECTED = "corrected"  # some shares were lies; without them the others agree
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
        `ok` is true for CLEAN and CORRECTED.
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
        num_agreeing >= k + s (then however many are missing). inf if the decode failed.
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
    code: "LinearCode", rows: Mapping[int, Tensor], dim: int, generator: torch.Generator | None
) -> Decoded:
    """Decode validated shares: `rows` maps slots to tensors of one length, dtype and device."""
    arrived = sorted(rows)
    if len(arrived) < code.compression:
        return _failed(code, DecodeStatus.TOO_FEW_SHARES, arrived)
    projected, norms = project_rows([rows[slot] for slot in arrived], generator)
    usable = norms < LARGEST_NORM  # false for NaN
    slots = [slot for slot, use in zip(arrived, usable, strict=True) if use]
    if len(slots) < code.compression:
        return _failed(code, DecodeStatus.TOO_FEW_SHARES, slots)

    floor = _smallest_noise(code, rows[slots[0]])
    alive, scale = _without_absurd_rows(code, norms[usable], floor)
    noise = math.sqrt(len(alive)) * (code.rtol * scale + floor)
    alive_slots = [slots[row] for row in alive]
    max_errors = (len(alive) - code.compression) // 2  # 2 * lies + erasures <= r - k, dropped rows being erasures
    liars = code.byzantine - (len(slots) - len(alive))  # of s, that may be left
    problem = LocatingProblem(
        generator=code.generator[alive_slots],
        projected=projected[usable][alive],
        points=code.points[alive_slots],
        multipliers=code.multipliers[alive_slots],
        max_errors=max_errors,
        tolerance=NOISE_MARGIN * noise,
    )
    solution = _look(code.locator, problem, noise, [rows[slot] for slot in alive_slots], dim)
    tolerance = UNDERESTIMATE * problem.tolerance
    if solution is None or not solution.residual <= tolerance:
        return _failed(code, DecodeStatus.UNDECODABLE, slots)
    kept = {slot for row, slot in enumerate(alive_slots) if row not in solution.support}
    corrupt = tuple(slot for slot in slots if slot not in kept)
    rounding = torch.finfo(solution.gradient.dtype).eps * solution.norm
    return Decoded(
        gradient=solution.gradient,
        status=DecodeStatus.CORRECTED if corrupt else DecodeStatus.CLEAN,
        corrupt_slots=corrupt,
        erased_slots=_absent(code, slots),
        residual=solution.residual,
        tolerance=tolerance,
        error_bound=_error_bound(code, solution, noise, len(alive), max(max_errors, liars)) + rounding,
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


@dataclass(frozen=True, slots=True)
class _Solution:
    """A gradient without the rows of the support, and norms over all columns."""

    support: Support
    gradient: Tensor
    norm: float  # of the gradient
    residual: float  # of the rows kept
    lies: FloatArray  # of what each row of the support deviates by


def _look(
    locator: Locator | None, problem: LocatingProblem, noise: float, rows: list[Tensor], dim: int
) -> _Solution | None:
    """Locate and solve; look closer as long as the rows kept disagree by more than noise, for then one is a lie."""
    solution = None
    for _ in range(MAX_LOOKS):
        support = locate_rows(locator, problem)
        if support is None:
            break
        solution = _solve(problem.generator, support, rows, dim)
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


def _solve(generator: FloatArray, support: Support, rows: list[Tensor], dim: int) -> _Solution:
    """Return the least-squares gradient over the rows not in the support: X = pinv(G[kept]) Z[kept], cut to dim.

    The residual Z[kept] - G[kept] X has the norm of H Z[kept], H the orthonormal parity of these rows; lie j is
    Z[j] - G[j] X. In float64, because matrix products of a smaller dtype may silently be of a still smaller one
    (TF32).
    """
    num_rows, compression = generator.shape
    accused = list(support)
    kept = np.delete(np.arange(num_rows), accused)
    weights = np.zeros((num_rows, num_rows))
    solver, checks, lies = np.split(weights, [compression, len(kept)])
    solver[:, kept] = np.linalg.pinv(generator[kept])
    checks[:, kept] = parity_of(generator[kept])
    lies[:] = np.eye(num_rows)[accused] - generator[accused] @ solver
    share_dim, device = rows[0].numel(), rows[0].device
    factor = torch.from_numpy(weights).to(device)
    chunks = torch.empty(compression, share_dim, dtype=rows[0].dtype, device=device)
    squares = torch.zeros(num_rows, dtype=torch.float64, device=device)
    for start in range(0, share_dim, BLOCK):
        product = factor @ torch.stack([row[start : start + BLOCK] for row in rows]).to(torch.float64)
        chunks[:, start : start + BLOCK] = product[:compression]
        squares += torch.linalg.vector_norm(product, dim=1).square()
    norms = np.split(squares.sqrt().cpu().numpy(), [compression, len(kept)])
    return _Solution(
        support=support,
        gradient=chunks.view(-1)[:dim],
        norm=float(np.linalg.norm(norms[0])),
        residual=float(np.linalg.norm(norms[1])),
        lies=norms[2],
    )


def _error_bound(code: "LinearCode", solution: _Solution, noise: float, num_rows: int, liars: int) -> float:
    """Bound |gradient - truth| given what was seen; see docs/explanation/the-code.md for the proof.

    All but `liars` of the rows kept are honest and agree with the result up to `delta`: the first bound. A
    row that is accused but honest deviates from the result by no more than `threshold`; so those that deviate by
    more are lies, and if the others (doubtful) are added to the rows kept, the lies are fewer: the second.
    """
    delta = solution.residual + noise
    honest_kept = max(num_rows - len(solution.lies) - liars, code.compression)
    honest = max(num_rows - liars, code.compression)
    bound = code.worst_amplification(honest_kept) * delta
    doubtful = solution.lies[solution.lies <= bound + noise]
    return min(bound, code.worst_amplification(honest) * (delta + float(np.linalg.norm(doubtful))))
