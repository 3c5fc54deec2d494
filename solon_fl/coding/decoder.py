"""Decoding one group: from shares, of which some are lies and some are missing, to the exact gradient.

Steps (the numbers are those of docs/explanation/the-code.md): 1 validate, 2 project, 3 screen the scale and
check the syndromes, 4 locate and check again, 5 solve, 6 report.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ._types import FloatArray
from .exhaustive import ExhaustiveLocator
from .locating import LocatingProblem, Support
from .projection import BLOCK, project_rows, underestimate_factor

if TYPE_CHECKING:
    from .code import LinearCode

__all__ = ["DecodeStatus", "Decoded", "decode_shares", "worst_relative_error"]

# The projected residual of pure noise exceeds 3 times the noise's norm with a probability of 1.5e-8 at most.
NOISE_MARGIN = 3.0


class DecodeStatus(enum.StrEnum):
    """How a decode ended."""

    CLEAN = "clean"  # all shares that arrived agree
    CORRECTED = "corrected"  # some shares were lies; without them the others agree
    UNDECODABLE = "undecodable"  # no set of shares small enough explains the disagreement
    TOO_FEW_SHARES = "too-few-shares"  # fewer than k usable shares arrived


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
        Norm of what the shares kept disagree by (a random-projection estimate), in the gradient's unit.
    tolerance : float
        The residual up to which disagreement counts as noise.
    error_bound : float
        Bound on the norm of gradient - truth, as long as honest shares are within rtol of the truth and
        2 * lies + erasures <= r - k: it holds whatever the liars know and do, but for a probability of
        1e-9 over the server's own randomness. inf if the decode failed.
    """

    gradient: Tensor | None
    status: DecodeStatus
    corrupt_slots: tuple[int, ...]
    erased_slots: tuple[int, ...]
    residual: float
    tolerance: float
    error_bound: float

    @property
    def ok(self) -> bool:
        """Whether there is a gradient."""
        return self.gradient is not None


def decode_shares(
    code: "LinearCode", rows: Mapping[int, Tensor], dim: int, generator: torch.Generator | None
) -> Decoded:
    """Decode validated shares: `rows` maps slots to tensors of one length, dtype and device."""
    slots = sorted(rows)
    num_checks = code.group_size - code.compression  # r - k
    if len(slots) < code.compression:
        return _failed(code, DecodeStatus.TOO_FEW_SHARES, slots)
    projected = project_rows([rows[slot] for slot in slots], generator).numpy()
    finite = np.isfinite(projected).all(axis=1)
    slots = [slot for slot, usable in zip(slots, finite, strict=True) if usable]
    projected = projected[finite]
    if len(slots) < code.compression:
        return _failed(code, DecodeStatus.TOO_FEW_SHARES, slots)

    max_errors = (num_checks - (code.group_size - len(slots))) // 2
    screened = _absurd_rows(code, projected, max_errors)
    alive = [row for row in range(len(slots)) if row not in screened]
    norms = np.linalg.norm(projected[alive], axis=1)
    # At least t + k of the rows alive are honest, so this is at most the largest honest norm; and unlike
    # the median it cannot vanish while the gradient does not, since k honest rows are no larger.
    scale = float(np.sort(norms)[max_errors - len(screened) + code.compression - 1])
    noise = _noise_norm(code, scale, rows[slots[0]], len(alive))
    problem = LocatingProblem(
        generator=code.generator[[slots[row] for row in alive]],
        projected=projected[alive],
        points=code.points[[slots[row] for row in alive]],
        multipliers=code.multipliers[[slots[row] for row in alive]],
        max_errors=max_errors - len(screened),
        tolerance=NOISE_MARGIN * noise,
    )
    support = _locate(code, problem)
    if support is None:
        return _failed(code, DecodeStatus.UNDECODABLE, slots)

    located = [alive[row] for row in support]
    kept = [row for row in alive if row not in located]
    kept_slots = [slots[row] for row in kept]
    pseudo_inverse = np.linalg.pinv(code.generator[kept_slots])
    message = pseudo_inverse @ projected[kept]
    # Step 4's last word, taken from the rows kept themselves, whatever the locator computed.
    residual = float(np.linalg.norm(projected[kept] - code.generator[kept_slots] @ message))
    if not residual <= problem.tolerance:
        return _failed(code, DecodeStatus.UNDECODABLE, slots)
    corrupt = sorted(slots[row] for row in [*screened, *located])
    lies = projected[located] - code.generator[[slots[row] for row in located]] @ message
    return Decoded(
        gradient=_solve(pseudo_inverse, [rows[slot] for slot in kept_slots], dim),
        status=DecodeStatus.CORRECTED if corrupt else DecodeStatus.CLEAN,
        corrupt_slots=tuple(corrupt),
        erased_slots=tuple(sorted(set(range(code.group_size)) - set(slots))),
        residual=residual,
        tolerance=problem.tolerance,
        error_bound=_error_bound(code, residual, noise, lies, len(kept), problem.max_errors),
    )


def worst_relative_error(code: "LinearCode") -> float:
    """Return the error bound of the worst undetected attack, relative to the gradient's norm.

    All budgeted liars collude just below the tolerance and every honest share is off by rtol; shares are
    taken to be of equal norm, |gradient| / sqrt(r), as those of real gradients nearly are.
    """
    return underestimate_factor() * code.amplification * (NOISE_MARGIN + 1) * code.rtol


def _failed(code: "LinearCode", status: DecodeStatus, slots: list[int]) -> Decoded:
    return Decoded(
        gradient=None,
        status=status,
        corrupt_slots=(),
        erased_slots=tuple(sorted(set(range(code.group_size)) - set(slots))),
        residual=math.inf,
        tolerance=math.nan,
        error_bound=math.inf,
    )


def _absurd_rows(code: "LinearCode", projected: FloatArray, max_errors: int) -> list[int]:
    """Return rows so large that no gradient explains them together with the others: certainly lies.

    Among the t + k smallest rows at least k are honest, and those k fix the gradient: its norm is at most
    amplification * sqrt(k) times the largest of them, and no honest row is larger than that. Taken out
    first, they cannot drown small lies in the rounding of float64.
    """
    norms = np.linalg.norm(projected, axis=1)
    absurd: list[int] = []
    while len(absurd) < max_errors:
        alive = [row for row in range(len(norms)) if row not in absurd]
        smallest = np.sort(norms[alive])[: max_errors - len(absurd) + code.compression]
        limit = 1.01 * code.amplification * math.sqrt(code.compression) * smallest[-1]
        found = sorted((row for row in alive if norms[row] > limit), key=lambda row: -norms[row])
        if not found:
            break
        absurd += found[: max_errors - len(absurd)]
    return absurd


def _noise_norm(code: "LinearCode", scale: float, share: Tensor, num_rows: int) -> float:
    """Return the norm of all honest noise: rtol per share, plus the spacing of numbers next to zero."""
    limits = torch.finfo(share.dtype)
    smallest_step = limits.smallest_normal * limits.eps * math.sqrt(share.numel() * code.compression)
    return math.sqrt(num_rows) * (code.rtol * scale + smallest_step)


def _locate(code: "LinearCode", problem: LocatingProblem) -> Support | None:
    """Return the fewest rows without which the others agree, or None if t rows are not enough."""
    if problem.residual(()) <= problem.tolerance:
        return ()
    if problem.max_errors == 0:
        return None
    support = code.locator.locate(problem)
    if not problem.residual(support) <= problem.tolerance:
        support = ExhaustiveLocator().locate(problem)
        if not problem.residual(support) <= problem.tolerance:
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


def _error_bound(
    code: "LinearCode", residual: float, noise: float, lies: FloatArray, num_kept: int, max_errors: int
) -> float:
    """Bound |gradient - truth| given what was seen; see docs/explanation/the-code.md for the proof.

    All but t of the rows kept are honest and agree with the result up to `delta`: the first bound. A
    row that is accused but honest differs from the result by no more than `threshold`; so lies larger than
    that are certain, and if the smaller (doubtful) ones count as noise, all but t of ALL rows agree: the second.
    """
    inflation = underestimate_factor()
    delta = inflation * (residual + noise)
    after_removal = code.worst_amplification(num_kept - max_errors)
    before_removal = code.worst_amplification(num_kept + len(lies) - max_errors)
    sizes = inflation * np.linalg.norm(lies, axis=1)
    threshold = after_removal * delta + inflation * noise
    doubtful = sizes[sizes <= inflation**2 * threshold]
    return float(min(after_removal * delta, before_removal * (delta + np.linalg.norm(doubtful))))


def _solve(pseudo_inverse: FloatArray, rows: list[Tensor], dim: int) -> Tensor:
    """Return the least-squares gradient X = pinv(G) Z over all rows kept, flattened and cut to dim."""
    share_dim = rows[0].numel()
    weights = torch.from_numpy(pseudo_inverse).to(rows[0].device, rows[0].dtype)
    chunks = torch.empty(len(weights), share_dim, dtype=rows[0].dtype, device=rows[0].device)
    for start in range(0, share_dim, BLOCK):
        columns = torch.stack([row[start : start + BLOCK] for row in rows])
        torch.mm(weights, columns, out=chunks[:, start : start + BLOCK])
    return chunks.view(-1)[:dim]
