"""The decoder of real codes, which recovers a group's gradient from shares with lies and erasures among them.

The steps are numbered as in docs/explanation/the-code.md. `Decoder` does step 1, validate. `RealDecoding` does step 2,
compare, and step 8, report. If the comparison is not enough, it does the steps between: 3 project, 4 screen the scale
and check the syndromes, 5 locate, 6 solve and check all columns, 7 check each tensor.
"""

import math
import warnings
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from solon_fl.checks import check_between
from solon_fl.coding.decoder import Decoder
from solon_fl.coding.sections import Sections

from .code import RealCode
from .decoding import RealDecoding
from .locating import Locator
from .locators import SubspaceLocator, default_locator
from .projection import NOISE_MARGIN, UNDERESTIMATE, Memory

__all__ = ["CertificateWarning", "RealDecoder", "locates_every_lie", "worst_relative_error"]


class CertificateWarning(UserWarning):
    """At most s liars could do harm: corrupt the gradient with lies just below rtol, or fail rounds in large groups."""


class RealDecoder(Decoder):
    """Recovers a group's gradient from shares of a real code, up to the float noise between honest nodes.

    Parameters
    ----------
    code, byzantine, stragglers, detect_only
        See `Decoder`; `code` is a `RealCode`.
    rtol : float
        Float noise: the largest distance of an honest share from G[j] X, relative to the k-th smallest norm of the
        honest shares. 1e-6 suits float32 shares of nodes with the same hardware and software.
    locator : Locator, optional
        The only locator to use, even if it misses lies. The default chooses in each decode: `ExhaustiveLocator` if it
        can try all supports (up to r = 23 at s = 5, r = 88 at s = 3), else `InformationSetLocator`, or
        `SubspaceLocator` where that can't draw often enough (from about r = 36 on).

    Raises
    ------
    ConfigurationError
        If group_size < 2 s + e + k (s + e + k with `detect_only`), or a number is out of range.

    Warns
    -----
    CertificateWarning
        If `certificate` is 1 or more, or if the group is too large to be certain of locating every lie.

    Notes
    -----
    Guarantee: as long as 2 * lies + erasures <= r - k and honest shares are within rtol of the truth, `decode`
    returns a gradient within its own `error_bound`. It fails only if the locator misses the liars, which an exhaustive
    locator does with a probability of 1e-8. For more lies and erasures see `Decoder`.

    Cost of a decode if all lies are loud: (r - k) k m multiply-adds in the shares' dtype, at most three times. Else
    r m (q + 1) in float64 to project, and r m r to solve and check. Besides the result it needs a few MB for any m.
    Each tensor costs some microseconds, or half a millisecond if liars are quiet in it (s = 5, k = 10). The locator
    sees only an r x q matrix. benchmarks/attacked_round.py measures how much liars can slow a decode down.

    Examples
    --------
    Two of seven nodes lie; each share is a third of the gradient.

    >>> import torch
    >>> from solon_fl import FourierCode, RealDecoder
    >>> code = FourierCode(group_size=7, compression=3)
    >>> decoder = RealDecoder(code, byzantine=2)
    >>> gradient = torch.linspace(-1, 1, 9)
    >>> shares = {slot: code.encode(gradient, slot) for slot in range(7)}
    >>> shares[1] = -100 * shares[1]
    >>> shares[4] = torch.full((3,), 7.0)
    >>> decoded = decoder.decode(shares)
    >>> decoded.corrupt_slots
    (1, 4)
    >>> torch.allclose(decoded.gradient, gradient, atol=1e-6)
    True
    """

    code: RealCode

    def __init__(
        self,
        code: RealCode,
        *,
        byzantine: int,
        stragglers: int = 0,
        detect_only: bool = False,
        rtol: float = 1e-6,
        locator: Locator | None = None,
    ) -> None:
        super().__init__(code, byzantine=byzantine, stragglers=stragglers, detect_only=detect_only)
        check_between("rtol", rtol, 0, 1, "1e-6 suits float32 shares")
        self.rtol = rtol
        self.locator = locator
        self._amplifications: dict[int, float] = {}  # by number of rows; needed in every decode
        doubt = self._doubt()
        if doubt:
            warnings.warn(f"{doubt} lower byzantine or compression.", CertificateWarning, stacklevel=2)

    def _doubt(self) -> str:
        """Describe the harm that at most s liars may be able to do; "" if there is none."""
        if self.certificate >= 1:
            return (
                f"the certificate of {self!r} is {self.certificate:.1e}, but should be below 1: "
                f"liars just below rtol={self.rtol:g} could change the gradient by more than its own size; "
                "raise group_size, send float64 shares with a smaller rtol, or"
            )
        if self.locator is None and not locates_every_lie(self.code.group_size, self.code.compression):
            return (
                f"{self!r} is too large to locate every lie for certain: adaptive liars could make rounds fail, though "
                "they could not make a gradient wrong;"
            )
        return ""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.code!r}, byzantine={self.byzantine}, stragglers={self.stragglers}, "
            f"rtol={self.rtol:g})"
        )

    @cached_property
    def certificate(self) -> float:
        """Bound on the relative error of a decode in the worst case that passes the tolerance.

        In this case all s liars collude just below the tolerance, the worst rows are left, and every honest share is
        off by rtol. The gradient's chunks are assumed to be uncorrelated and of equal norm, which is nearly true of
        real gradients. The bound for a single decode, `Decoded.error_bound`, is usually far smaller.
        """
        return worst_relative_error(self.code, self.rtol)

    def expected_error(self, num_shares: int) -> float:
        """Return an estimate of the largest `Decoded.error_bound` of `num_shares` agreeing shares.

        It is relative to the gradient's norm. There are at least k + s shares, which disagree by as much as noise may.
        """
        honest = max(num_shares - self.byzantine, self.code.compression)
        of_fewest = worst_relative_error(self.code, self.rtol, NOISE_MARGIN)
        return of_fewest * self.amplification(honest) / self.code.amplification

    def new_memory(self, generator: torch.Generator | None = None) -> Memory:
        """See `Decoder.new_memory`. With it, no share is projected twice."""
        return Memory(generator)

    def _decoding(self, rows: Mapping[int, Tensor], dim: int, sections: Sections, memory: object) -> RealDecoding:
        assert isinstance(memory, Memory)
        return RealDecoding(
            code=self.code,
            byzantine=self.byzantine,
            rtol=self.rtol,
            locator=self.locator,
            amplification=self.amplification,
            rows=rows,
            dim=dim,
            sections=sections,
            memory=memory,
        )

    def amplification(self, num_rows: int) -> float:
        """Return the largest error per unit of error in `num_rows` honest rows, or an upper bound on it."""
        if num_rows not in self._amplifications:
            worst = self.code.worst_amplification(num_rows)  # an upper bound if the search would take too long
            self._amplifications[num_rows] = min(worst, self.code.amplification)
        return self._amplifications[num_rows]


def worst_relative_error(code: RealCode, rtol: float, residual: float = UNDERESTIMATE * NOISE_MARGIN) -> float:
    """Return `Decoder.certificate`, which depends only on the code and rtol.

    `residual` is the largest disagreement of the kept rows, in multiples of the noise. The default, for the
    certificate, bounds every disagreement that passes for noise, except with a probability of 1e-9. NOISE_MARGIN
    bounds most of them.
    """
    share_norms = float(np.linalg.norm(code.generator)) / math.sqrt(code.compression)  # of all r, by |gradient|
    return code.amplification * (residual + 1) * rtol * share_norms


def locates_every_lie(group_size: int, compression: int) -> bool:
    """Return whether no lies are known that the default locator misses; see `default_locator`."""
    locator = default_locator(group_size, compression, (group_size - compression) // 2)
    return not isinstance(locator, SubspaceLocator)
