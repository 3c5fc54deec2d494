"""Decoding one group of a real code: from shares, of which some are lies and some are missing, to the gradient.

Steps (the numbers are those of docs/explanation/the-code.md): 1 validate, in `Decoder`; then, in `RealDecoding`,
2 compare, and if that is not enough 3 project, 4 screen the scale and check the syndromes, 5 locate, 6 solve and check
all columns, 7 check each tensor; 8 report.
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
    """Few liars could do harm: ruin the gradient from just below rtol, or, in large groups, make rounds fail."""


class RealDecoder(Decoder):
    """Recovers a group's gradient from shares of a real code, up to the float noise between honest nodes.

    Parameters
    ----------
    code, byzantine, stragglers, detect_only
        See `Decoder`; `code` is a `RealCode`.
    rtol : float
        Largest distance of an honest share from G[j] X, relative to the k-th smallest norm of the honest shares:
        float noise. 1e-6 suits float32 shares of nodes with the same hardware and software.
    locator : Locator, optional
        Used alone, whatever it misses. Default: in each decode `ExhaustiveLocator` where it can try all supports
        (up to r = 23 at s = 5, r = 88 at s = 3), else `InformationSetLocator`, or `SubspaceLocator` where that can't
        draw often enough (from about r = 36 on).

    Raises
    ------
    ConfigurationError
        If group_size < 2 s + e + k, or a number is out of its range.

    Warns
    -----
    CertificateWarning
        If `certificate` is 1 or more, or the group is too large to locate every lie for certain.

    Notes
    -----
    Guarantee: as long as 2 * lies + erasures <= r - k and honest shares are within rtol of the truth, `decode`
    returns a gradient within its own `error_bound`; it fails only if the locator misses the liars (an exhaustive one
    does so with a probability of 1e-8). Beyond that budget see `Decoder`.
    Cost of a decode, if all lies are loud: (r - k) k m multiply-adds in the shares' dtype, at most three times. Else
    r m (q + 1) in float64 to project and r m r to solve and to check. Beside the result, a few MB for any m. Each
    tensor costs some microseconds, or half a millisecond if liars are quiet in it (s = 5, k = 10). Locating looks at an
    r x q matrix only. benchmarks/attacked_round.py measures what liars can make of that.

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
        self._amplifications: dict[int, float] = {}  # by number of rows; asked for in every decode
        doubt = self._doubt()
        if doubt:
            warnings.warn(f"{doubt}; lower byzantine or compression.", CertificateWarning, stacklevel=2)

    def _doubt(self) -> str:
        """Return what liars may be able to do although they are few enough; "" if they can't."""
        if self.certificate >= 1:
            return (
                f"the certificate of {self!r} is {self.certificate:.1e}, but should be below 1: "
                f"liars just below rtol={self.rtol:g} could change the gradient by more than its own size; "
                "raise group_size, send float64 shares with a smaller rtol"
            )
        if self.locator is None and not locates_every_lie(self.code.group_size, self.code.compression):
            return (
                f"{self!r} is too large to locate every lie for certain: adaptive liars could make rounds fail, though "
                "they could not make a gradient wrong"
            )
        return ""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.code!r}, byzantine={self.byzantine}, stragglers={self.stragglers}, "
            f"rtol={self.rtol:g})"
        )

    @cached_property
    def certificate(self) -> float:
        """Bound on a decode's relative error in the worst case that the tolerance lets through.

        All s liars collude just below the tolerance, the worst rows are left, and every honest share is off by rtol;
        the gradient's chunks are taken to be of equal norm and uncorrelated, as those of real gradients nearly are.
        What a single decode can vouch for, `Decoded.error_bound`, is mostly far smaller.
        """
        return worst_relative_error(self.code, self.rtol)

    def expected_error(self, num_shares: int) -> float:
        """Return about the largest `Decoded.error_bound`, by the gradient's norm, of so many shares that agree.

        They are k + s at least, and disagree by as much as passes for noise.
        """
        honest = max(num_shares - self.byzantine, self.code.compression)
        of_fewest = worst_relative_error(self.code, self.rtol, NOISE_MARGIN)
        return of_fewest * self.amplification(honest) / self.code.amplification

    def new_memory(self, generator: torch.Generator | None = None) -> Memory:
        """See `Decoder.new_memory`: no share is projected twice."""
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
        """Return the largest error per unit of what so many honest rows may be off by, or an upper bound on it."""
        if num_rows not in self._amplifications:
            worst = self.code.worst_amplification(num_rows)  # a bound where the search would take too long
            self._amplifications[num_rows] = min(worst, self.code.amplification)
        return self._amplifications[num_rows]


def worst_relative_error(code: RealCode, rtol: float, residual: float = UNDERESTIMATE * NOISE_MARGIN) -> float:
    """Return `Decoder.certificate`, which depends on nothing but the code and rtol.

    `residual` is what the rows kept may disagree by, in multiples of the noise: for the certificate, what passes for
    noise but for a probability of 1e-9; NOISE_MARGIN is what mostly does.
    """
    share_norms = float(np.linalg.norm(code.generator)) / math.sqrt(code.compression)  # of all r, by |gradient|
    return code.amplification * (residual + 1) * rtol * share_norms


def locates_every_lie(group_size: int, compression: int) -> bool:
    """Whether liars can't bring the default locator to find nobody, as far as is known; see `default_locator`."""
    locator = default_locator(group_size, compression, (group_size - compression) // 2)
    return not isinstance(locator, SubspaceLocator)
