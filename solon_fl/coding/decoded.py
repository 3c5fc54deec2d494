"""What a decode returns."""

import enum
import math
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["DecodeStatus", "Decoded"]


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
        Slots whose shares are certainly lies, ascending: there is no set of at most s lies without which the other
        shares agree and that leaves this one out. () if the status is BEYOND_BOUND.
    suspect_slots : tuple of int
        Slots that the gradient was made without, too, but that may be honest, ascending: other sets of lies explain
        the shares as well.
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
    suspect_slots: tuple[int, ...]
    erased_slots: tuple[int, ...]
    residual: float
    tolerance: float
    error_bound: float
    num_agreeing: int

    @property
    def ok(self) -> bool:
        """Whether there is a gradient."""
        return self.gradient is not None

    @classmethod
    def failed(cls, status: DecodeStatus, erased_slots: tuple[int, ...] = ()) -> "Decoded":
        """Return a failure."""
        return cls(
            gradient=None,
            status=status,
            corrupt_slots=(),
            suspect_slots=(),
            erased_slots=erased_slots,
            residual=math.inf,
            tolerance=math.nan,
            error_bound=math.inf,
            num_agreeing=0,
        )
