"""Decoding one group: from shares, of which some are lies and some are missing, to the exact gradient.

Steps (the numbers are those of docs/explanation/the-code.md): 1 validate, here; then, in `Decoding`, 2 compare, and if
that is not enough 3 project, 4 screen the scale and check the syndromes, 5 locate, 6 solve and check all columns,
7 check each tensor; 8 report. If that fails, and the decoder is told to go on: docs/explanation/beyond-the-bound.md.
"""

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from solon_fl.checks import check_between, check_one_of, check_whole
from solon_fl.errors import ConfigurationError

from .code import Code
from .decoded import Decoded, DecodeStatus
from .decoding import Decoding
from .locating import Locator
from .locators import SubspaceLocator, default_locator
from .projection import NOISE_MARGIN, UNDERESTIMATE, Memory
from .sections import Sections

__all__ = [
    "BeyondBound",
    "CertificateWarning",
    "DecodeStatus",
    "Decoded",
    "Decoder",
    "locates_every_lie",
    "smallest_group",
    "worst_relative_error",
]

BeyondBound = Literal["reject", "accept"]


class CertificateWarning(UserWarning):
    """Few liars could do harm: ruin the gradient from just below rtol, or, in large groups, make rounds fail."""


class Decoder:
    """Recovers a group's gradient from its shares, though s of them may be lies and e may be missing.

    Parameters
    ----------
    code : Code
        What the shares are encoded with; its group_size r must be at least 2 s + e + k.
    byzantine : int
        s, nodes of the group that may lie, >= 0.
    stragglers : int
        e, nodes of the group that may not answer, >= 0.
    rtol : float
        Largest distance of an honest share from G[j] X, relative to the k-th smallest norm of the honest shares:
        float noise. 1e-6 suits float32 shares of nodes with the same hardware and software.
    locator : Locator, optional
        Used alone, whatever it misses. Default: in each decode `ExhaustiveLocator` where it can try all supports
        (up to r = 23 at s = 5, r = 88 at s = 3), else `InformationSetLocator`, or `SubspaceLocator` where that can't
        draw often enough (from about r = 36 on).
    beyond_bound : "reject" or "accept"
        What becomes of more lies than the guarantee covers, where otherwise the decode would fail or fewer than k + s
        shares agree with its result. "accept" takes a gradient if it is the only one that k + 1 or more shares agree
        with: right if k + 1 of those that arrived are honest, that is, for up to n - k - 1 lies among n shares. The
        status is then BEYOND_BOUND. Needs k + s + 1 shares, and at most 3 million sets of k + 1 of them.

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
    does so with a probability of 1e-8). Beyond that budget it reports a failure, unless the liars agree on the
    shares of another gradient, which nothing can detect. If more than e honest shares may be missing, trust results
    with which k + s shares agree (`Decoded.num_agreeing`), as `SolonStrategy` does: s liars can't bring those about.

    Examples
    --------
    Two of seven nodes lie; each share is a third of the gradient.

    >>> import torch
    >>> from solon_fl import Decoder, FourierCode
    >>> code = FourierCode(group_size=7, compression=3)
    >>> decoder = Decoder(code, byzantine=2)
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

    def __init__(
        self,
        code: Code,
        *,
        byzantine: int,
        stragglers: int = 0,
        rtol: float = 1e-6,
        locator: Locator | None = None,
        beyond_bound: BeyondBound = "reject",
    ) -> None:
        smallest = smallest_group(byzantine=byzantine, compression=code.compression, stragglers=stragglers)
        if code.group_size < smallest:
            raise ConfigurationError(
                "group_size must be at least 2*byzantine + stragglers + compression; "
                f"got group_size={code.group_size}, byzantine={byzantine}, stragglers={stragglers}, "
                f"compression={code.compression}; raise group_size to {smallest}, or lower one of the others."
            )
        check_between("rtol", rtol, 0, 1, "1e-6 suits float32 shares")
        check_one_of("beyond_bound", beyond_bound, get_args(BeyondBound))
        self.code = code
        self.byzantine = byzantine
        self.stragglers = stragglers
        self.rtol = rtol
        self.locator = locator
        self.beyond_bound = beyond_bound
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

    def decode(
        self,
        shares: Mapping[int, Tensor] | Tensor,
        *,
        dim: int | None = None,
        sections: Sections | None = None,
        generator: torch.Generator | None = None,
        last: bool = True,
        needed: int = 0,
        memory: Memory | None = None,
    ) -> Decoded:
        """Recover the group's gradient from its shares, naming the slots that lied.

        Parameters
        ----------
        shares : mapping from slot to (m,) Tensor, or (r, m) Tensor
            float32 or float64, one device. Slots not in the mapping are erasures, and so are shares that hold
            NaN or inf (or numbers beyond 1e150), and shares of another length or dtype than most.
        dim : int, optional
            d, the gradient's length; shares of another length than ceil(d / k) are erasures. Default: k m, which
            is d or d padded with zeros.
        sections : Sections, optional
            The tensors that the columns belong to, and their classes, each of which is measured by itself. Default: one
            tensor.
        generator : torch.Generator, optional
            Draws the projection. Only for reproducible simulation: by default fresh entropy that no node
            can know is drawn after the shares have arrived.
        last : bool
            False if more shares may come: `beyond_bound` then counts as "reject".
        needed : int
            Shares that must agree with a result, or it is of no use, and is not looked for.
        memory : Memory, optional
            One for all decodes of one group in one round, whose shares stay: none is then projected twice. Its
            generator is used.

        Returns
        -------
        Decoded
            A failure is a status there, never an exception.

        Raises
        ------
        ConfigurationError
            If `shares` names slots that do not exist, or dim < 1.

        Notes
        -----
        Guarantee: see the class. Cost, if all lies are loud: (r - k) k m multiply-adds in the shares' dtype, at most
        three times. Else r m (q + 1) in float64 to project and r m r to solve and to check. Beside the result, a few MB
        for any m. Each tensor costs some microseconds, or half a millisecond if liars are quiet in it (s = 5, k = 10).
        Locating looks at an r x q matrix only. benchmarks/attacked_round.py measures what liars can make of that.

        References
        ----------
        Chen et al., "Solon", arXiv:2110.01595, for the scheme.
        """
        compression = self.code.compression
        rows = _alike(self._by_slot(shares), None if dim is None else self.code.share_dim(dim))
        share_dim = next((share.numel() for share in rows.values()), 0)
        sections = sections or Sections.whole(share_dim)
        if rows and sections.num_columns != share_dim:
            raise ConfigurationError(
                f"sections must be of the shares' {share_dim} columns; got {sections.num_columns}; make them for the "
                "same code and model."
            )
        decoding = Decoding(
            code=self.code,
            byzantine=self.byzantine,
            rtol=self.rtol,
            locator=self.locator,
            amplification=self.amplification,
            rows=rows,
            dim=share_dim * compression if dim is None else dim,
            sections=sections,
            memory=memory or Memory(generator),
        )
        decoded = decoding.within_bound(max(needed, compression))
        certain = decoded.num_agreeing >= compression + self.byzantine
        if self.beyond_bound == "reject" or certain or not last or len(rows) < compression:
            return decoded
        return decoding.beyond_bound() or decoded

    def _by_slot(self, shares: Mapping[int, Tensor] | Tensor) -> Mapping[int, Tensor]:
        """Check the form in which the shares are given, and return them by slot."""
        group_size = self.code.group_size
        if not isinstance(shares, Tensor | Mapping):
            raise ConfigurationError(
                "shares must be a mapping from slot to share, or one (r, m) tensor; "
                f"got {type(shares).__name__}; make a dict of the slots that arrived."
            )
        if isinstance(shares, Tensor):
            if shares.dim() != 2 or shares.shape[0] != group_size:
                raise ConfigurationError(
                    f"shares must be ({group_size}, m) for group_size={group_size}; "
                    f"got shape={tuple(shares.shape)}; pass a mapping from slot to share if some are missing."
                )
            return dict(enumerate(shares))
        unknown = sorted(slot for slot in shares if not 0 <= slot < group_size)
        if unknown:
            raise ConfigurationError(
                f"slots must be in 0..{group_size - 1} (group_size={group_size}); got slots={unknown}."
            )
        return shares

    def amplification(self, num_rows: int) -> float:
        """Return the largest error per unit of what so many honest rows may be off by, or an upper bound on it."""
        if num_rows not in self._amplifications:
            worst = self.code.worst_amplification(num_rows)  # a bound where the search would take too long
            self._amplifications[num_rows] = min(worst, self.code.amplification)
        return self._amplifications[num_rows]


def worst_relative_error(code: Code, rtol: float, residual: float = UNDERESTIMATE * NOISE_MARGIN) -> float:
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


def smallest_group(*, byzantine: int, compression: int, stragglers: int = 0) -> int:
    """Return 2 s + e + k, the smallest group in which s liars are found without e nodes; check the three numbers."""
    check_whole("byzantine", byzantine, 0)
    check_whole("compression", compression, 1)
    check_whole("stragglers", stragglers, 0)
    return 2 * byzantine + stragglers + compression


def _alike(shares: Mapping[int, Tensor], share_dim: int | None) -> dict[int, Tensor]:
    """Return the shares of the commonest length, dtype and device: the honest ones, being k more than the liars."""
    kinds = {
        slot: (share.shape, share.dtype, share.device)
        for slot, share in shares.items()
        if share.dim() == 1 and share.numel() == (share_dim or share.numel()) > 0
        if share.dtype in (torch.float32, torch.float64)
    }
    if not kinds:
        return {}
    commonest, _ = Counter(kinds.values()).most_common(1)[0]
    return {slot: shares[slot].detach() for slot, kind in kinds.items() if kind == commonest}
