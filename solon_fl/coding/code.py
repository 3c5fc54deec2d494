"""The protocol that every code obeys: parameters, encode, decode, certificate."""

import math
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from solon_fl.errors import ConfigurationError

from ._types import ComplexArray, FloatArray
from .amplification import lagrange_bound, worst_amplification
from .decoder import Decoded, decode_shares, worst_relative_error
from .locating import Locator, parity_of

__all__ = ["BeyondBound", "CertificateWarning", "LinearCode", "check_parameters"]

BeyondBound = Literal["reject", "accept"]


class CertificateWarning(UserWarning):
    """The worst case of this code exceeds the gradient itself: liars just below rtol could ruin it."""


class LinearCode(ABC):
    """A real (r, k) code: the group's gradient, cut into k chunks, becomes r shares of 1/k of its length.

    Parameters
    ----------
    byzantine : int
        s, nodes of the group that may lie, >= 0.
    compression : int
        k, a share has 1/k of the gradient's length, >= 1.
    stragglers : int
        e, nodes of the group that may not answer, >= 0.
    group_size : int, optional
        r, nodes of the group. Default: the smallest that the theorem allows, 2 s + e + k.
    rtol : float
        Largest distance of an honest share from G[j] X, relative to the k-th smallest norm of the honest shares:
        float noise. 1e-6 suits float32 shares of nodes with the same hardware and software.
    locator : Locator, optional
        Used alone, whatever it misses. Default: in each decode `ExhaustiveLocator` where it can try all supports
        (up to about r = 20 at s = 5, r = 66 at s = 3), else `SubspaceLocator`.
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
        If `certificate` is 1 or more.

    Notes
    -----
    Guarantee: as long as 2 * lies + erasures <= r - k and honest shares are within rtol of the truth, `decode`
    returns a gradient within its own `error_bound`; it fails only if the locator misses the liars (an exhaustive one
    does so with a probability of 1e-8). Beyond that budget it reports a failure, unless the liars agree on the
    shares of another gradient, which nothing can detect. If more than e honest shares may be missing, trust results
    with which k + s shares agree (`Decoded.num_agreeing`), as `SolonStrategy` does: s liars can't bring those about.
    """

    def __init__(
        self,
        *,
        byzantine: int,
        compression: int,
        stragglers: int = 0,
        group_size: int | None = None,
        rtol: float = 1e-6,
        locator: Locator | None = None,
        beyond_bound: BeyondBound = "reject",
    ) -> None:
        smallest = check_parameters(byzantine, compression, stragglers, group_size, rtol)
        if beyond_bound not in get_args(BeyondBound):
            raise ConfigurationError(
                f"beyond_bound must be one of {', '.join(get_args(BeyondBound))}; got beyond_bound={beyond_bound!r}."
            )
        self.byzantine = byzantine
        self.compression = compression
        self.stragglers = stragglers
        self.group_size = smallest if group_size is None else group_size
        self.rtol = rtol
        self.locator = locator
        self.beyond_bound = beyond_bound
        if self.certificate >= 1:
            warnings.warn(
                f"the certificate of {self!r} is {self.certificate:.1e}, but should be below 1: "
                f"liars just below rtol={rtol:g} could change the gradient by more than its own size; lower "
                "byzantine or compression, raise group_size, or send float64 shares with a smaller rtol.",
                CertificateWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(byzantine={self.byzantine}, compression={self.compression}, "
            f"stragglers={self.stragglers}, group_size={self.group_size}, rtol={self.rtol:g})"
        )

    @cached_property
    @abstractmethod
    def generator(self) -> FloatArray:
        """G, (r, k) float64: share j is G[j] X. Any k rows are independent."""

    @cached_property
    @abstractmethod
    def points(self) -> ComplexArray:
        """x, (r,): multipliers[j] * (G[j] @ X) is a polynomial of degree < k at points[j]."""

    @cached_property
    @abstractmethod
    def multipliers(self) -> ComplexArray:
        """v, (r,); the polynomial's coefficients have the norm of X."""

    locator: Locator | None
    beyond_bound: BeyondBound
    _cyclic = False  # whether rotating the slots leaves the singular values as they are

    @cached_property
    def parity(self) -> FloatArray:
        """H, (r - k, r) float64, orthonormal rows, H G = 0."""
        return parity_of(self.generator)

    @cached_property
    def amplification(self) -> float:
        """Largest error of a decoded gradient per unit of undetected error: 1 / sigma_min of the worst k rows.

        Exact where the subsets are few enough to look at all of them, an upper bound elsewhere.
        """
        return self.worst_amplification(self.compression)

    @cached_property
    def certificate(self) -> float:
        """Bound on a decode's relative error in the worst case that the tolerance lets through.

        All lies just below the tolerance, the worst rows left, every honest share off by rtol, shares of
        equal norm. What a single decode can vouch for, `Decoded.error_bound`, is mostly far smaller.
        """
        return worst_relative_error(self)

    def worst_amplification(self, num_rows: int) -> float:
        """Return the largest 1 / sigma_min over all sets of that many rows, or an upper bound on it."""
        exact = worst_amplification(self.generator.tobytes(), self.group_size, num_rows, self._cyclic)
        if exact < math.inf:
            return exact
        return lagrange_bound(self.points, self.multipliers, self.compression)

    def share_dim(self, dim: int) -> int:
        """Return m = ceil(d / k), the length of a share of a gradient of length d = dim."""
        if dim < 1:
            raise ConfigurationError(f"a gradient has at least one entry; got dim={dim}; check the model.")
        return -(-dim // self.compression)

    def encode(self, gradient: Tensor, slot: int) -> Tensor:
        """Return the share of one slot, G[slot] X.

        Parameters
        ----------
        gradient : Tensor, (d,), any float dtype, any device
            Read in place, never padded or copied. Chunk l of X is gradient[l m : (l + 1) m], zeros beyond d.
        slot : int
            0 <= slot < r.

        Returns
        -------
        Tensor, (m,), on the gradient's device
            float64 for a float64 gradient, else float32: rounding a share to half precision would cost
            1e-3 times the amplification.

        Raises
        ------
        ConfigurationError
            If the gradient is not a 1-D float tensor with at least one entry, or there is no such slot.

        Notes
        -----
        Cost: d multiply-adds. Equation: z_j = sum_l G[j, l] X[l].
        """
        if gradient.dim() != 1 or not gradient.is_floating_point():
            raise ConfigurationError(
                "encode takes a 1-D floating-point tensor; "
                f"got shape={tuple(gradient.shape)}, dtype={gradient.dtype}; flatten it with gradient.reshape(-1)."
            )
        if not 0 <= slot < self.group_size:
            raise ConfigurationError(
                f"slot must be in 0..{self.group_size - 1} (group_size={self.group_size}); got slot={slot}."
            )
        dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        dim = gradient.numel()
        share_dim = self.share_dim(dim)
        row = torch.from_numpy(self.generator[slot]).to(gradient.device, dtype)
        whole, rest = divmod(dim, share_dim)
        gradient = gradient.detach()
        share = row[:whole] @ gradient[: whole * share_dim].view(whole, share_dim).to(dtype)
        if rest:
            share[:rest].add_(gradient[whole * share_dim :].to(dtype), alpha=float(self.generator[slot, whole]))
        return share

    def decode(
        self,
        shares: Mapping[int, Tensor] | Tensor,
        *,
        dim: int | None = None,
        generator: torch.Generator | None = None,
        last: bool = True,
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
        generator : torch.Generator, optional
            Draws the projection. Only for reproducible simulation: by default fresh entropy that no node
            can know is drawn after the shares have arrived.
        last : bool
            False if more shares may come: `beyond_bound` then counts as "reject".

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
        Guarantee: see the class. Cost, if all lies are loud: (r - k) k m multiply-adds in the shares' dtype, twice as
        many unless k divides r. Else r m (q + 1) in float64 to project and r m r to solve and to check. Beside the
        result, a few MB for any m. Locating looks at an r x q matrix only.

        References
        ----------
        Chen et al., "Solon", arXiv:2110.01595, for the scheme.
        """
        if not isinstance(shares, Tensor | Mapping):
            raise ConfigurationError(
                "shares must be a mapping from slot to share, or one (r, m) tensor; "
                f"got {type(shares).__name__}; make a dict of the slots that arrived."
            )
        if isinstance(shares, Tensor):
            if shares.dim() != 2 or shares.shape[0] != self.group_size:
                raise ConfigurationError(
                    f"shares must be ({self.group_size}, m) for group_size={self.group_size}; "
                    f"got shape={tuple(shares.shape)}; pass a mapping from slot to share if some are missing."
                )
            shares = dict(enumerate(shares))
        unknown = sorted(slot for slot in shares if not 0 <= slot < self.group_size)
        if unknown:
            raise ConfigurationError(
                f"slots must be in 0..{self.group_size - 1} (group_size={self.group_size}); got slots={unknown}."
            )
        rows = _alike(shares, None if dim is None else self.share_dim(dim))
        if dim is None:
            dim = self.compression * next((share.numel() for share in rows.values()), 0)
        return decode_shares(self, rows, dim, generator, last=last)


def check_parameters(byzantine: int, compression: int, stragglers: int, group_size: int | None, rtol: float) -> int:
    """Check s, k, e, r and rtol; return 2 s + e + k."""
    for name, value, least in (
        ("byzantine", byzantine, 0),
        ("compression", compression, 1),
        ("stragglers", stragglers, 0),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(f"{name} must be a whole number >= {least}; got {name}={value!r}.")
    smallest = 2 * byzantine + stragglers + compression
    if group_size is not None and (not isinstance(group_size, int) or group_size < smallest):
        raise ConfigurationError(
            "group_size must be at least 2*byzantine + stragglers + compression; "
            f"got group_size={group_size!r}, byzantine={byzantine}, stragglers={stragglers}, "
            f"compression={compression}; raise group_size to {smallest}, or lower one of the others."
        )
    if not 0 < rtol < 1:
        raise ConfigurationError(f"rtol must be between 0 and 1; got rtol={rtol!r}; 1e-6 suits float32 shares.")
    return smallest


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
