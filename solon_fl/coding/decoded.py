"""The result of a decode."""

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from ._types import FloatArray

__all__ = ["ClassOutcome", "DecodeStatus", "Decoded"]

NEGLIGIBLE = 1e-30  # error bounds up to here count as 0; a class in which nothing changed has only its noise floor


class DecodeStatus(enum.StrEnum):
    """How a decode ended."""

    CLEAN = "clean"  # all shares that arrived agree
    CORRECTED = "corrected"  # some shares were wrong; the others agree
    UNDECODABLE = "undecodable"  # no sufficiently small set of lies explains the disagreement
    TOO_FEW_SHARES = "too-few-shares"  # fewer usable shares than needed
    DIVERGED = "diverged"  # the shares agree on a gradient that holds NaN or inf, so no node lied


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassOutcome:
    """The outcome for one class of tensors: the gradient, or the change of the buffers.

    Attributes
    ----------
    name : str
        Name of the class.
    norm : float
        Norm of the decoded values.
    residual, tolerance, error_bound : float
        As in `Decoded`, over the columns of this class.
    """

    name: str
    norm: float
    residual: float
    tolerance: float
    error_bound: float

    @classmethod
    def of_arrays(cls, names: Iterable[str], *values: FloatArray) -> tuple["ClassOutcome", ...]:
        """Return one outcome per class; `values` are norm, residual, tolerance and error bound, (K,) each."""
        columns = zip(*(array.tolist() for array in values), strict=True)
        return tuple(
            cls(name=name, norm=norm, residual=residual, tolerance=tolerance, error_bound=bound)
            for name, (norm, residual, tolerance, bound) in zip(names, columns, strict=True)
        )

    @property
    def relative_error(self) -> float:
        """The error bound divided by the norm."""
        if self.error_bound <= NEGLIGIBLE:
            return 0.0
        return self.error_bound / self.norm if self.norm > 0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The outcome of decoding one group.

    Attributes
    ----------
    gradient : Tensor or None
        The group's gradient, (dim,), with the dtype and device of the shares; None if the decode failed.
    status : DecodeStatus
        `ok` is true for CLEAN and CORRECTED.
    corrupt_slots : tuple of int
        Slots whose shares are certainly lies, ascending. Every set of at most s lies that explains the disagreement
        contains them. Always () for an exact code.
    suspect_slots : tuple of int
        Other slots that the gradient was computed without, ascending. They may be honest, because other sets of lies
        explain the shares as well.
    different_slots : tuple of int
        For an exact code, slots whose shares differ from the gradient's shares by a bit or more, ascending. They belong
        to liars, or to honest nodes that compute other bits.
    erased_slots : tuple of int
        Slots whose shares were missing or malformed (for a real code, also not finite), ascending.
    residual : float
        Norm of the difference between the kept shares and the gradient's shares, over all columns of one class of
        tensors: the class whose residual is nearest to its tolerance. inf if the decode failed.
    tolerance : float
        The residual up to which disagreement counts as noise in that class; nan if the decode failed.
    error_bound : float
        Bound on the norm of gradient - truth. It holds whatever the liars know and do, as long as honest shares are
        within rtol of the truth and either 2 * lies + erasures <= r - k, or at most s shares are lies and
        num_agreeing >= k + s (with any number of missing shares). inf if the decode failed.
    num_agreeing : int
        Number of shares that the gradient was computed from and that agree with it; 0 if the decode failed.
    classes : tuple of ClassOutcome
        The outcome for each class of tensors; () if the decode failed or the code is exact.
    odd_tensors : tuple of int
        Numbers of tensors in which the kept shares disagree by more than the tensor's noise, but not by more than the
        noise of its class. Either this is only noise, or more nodes lie there than these shares reveal.
    failed_classes : tuple of str
        The classes of tensors in which the shares disagree, if the status is UNDECODABLE.
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
    different_slots: tuple[int, ...] = ()
    classes: tuple[ClassOutcome, ...] = ()
    odd_tensors: tuple[int, ...] = ()
    failed_classes: tuple[str, ...] = ()

    @property
    def relative_error(self) -> float:
        """The largest relative error of a class; inf if the decode failed."""
        exact = 0.0 if self.ok else math.inf
        return max((outcome.relative_error for outcome in self.classes), default=exact)

    @property
    def ok(self) -> bool:
        """Whether there is a gradient."""
        return self.gradient is not None

    @classmethod
    def of_classes(
        cls, classes: tuple[ClassOutcome, ...], *, gradient: Tensor, status: DecodeStatus, num_agreeing: int
    ) -> "Decoded":
        """Return a success without accused or missing slots."""
        worst = max(classes, key=lambda outcome: outcome.residual / outcome.tolerance)
        return cls(
            gradient=gradient,
            status=status,
            corrupt_slots=(),
            suspect_slots=(),
            erased_slots=(),
            residual=worst.residual,
            tolerance=worst.tolerance,
            error_bound=math.hypot(*(outcome.error_bound for outcome in classes)),
            num_agreeing=num_agreeing,
            classes=classes,
        )

    @classmethod
    def failed(
        cls, status: DecodeStatus, erased_slots: tuple[int, ...] = (), failed_classes: tuple[str, ...] = ()
    ) -> "Decoded":
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
            failed_classes=failed_classes,
        )
