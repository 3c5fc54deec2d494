"""The base class of all decoders, which recover a group's gradient from shares with lies and erasures among them."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from solon_fl.checks import check_whole
from solon_fl.errors import ConfigurationError

from .code import Code
from .decoded import Decoded
from .sections import Sections

__all__ = ["Decoder", "Decoding", "smallest_group"]


class Decoding(Protocol):
    """One decode of a group's shares."""

    def decode(self, needed: int, last: bool) -> Decoded:
        """Return a gradient with which at least `needed` shares agree, with the fewest lies that explain the others.

        last : False if more shares may come, so that hopeless attempts may be skipped.
        """


class Decoder(ABC):
    """Recovers a group's gradient from its shares even if s of them are lies and e are missing.

    Parameters
    ----------
    code : Code
        The code of the shares. Its group_size r must be at least 2 s + e + k.
    byzantine : int
        s, the number of nodes of the group that may lie, >= 0.
    stragglers : int
        e, the number of nodes of the group that may not reply, >= 0.
    detect_only : bool
        Whether it is enough to detect s lies without locating them. Then s + e + k nodes suffice. Fewer than s lies may
        still be located.

    Raises
    ------
    ConfigurationError
        If group_size < 2 s + e + k (s + e + k with `detect_only`), or a number is out of range.

    Notes
    -----
    Guarantee: as long as 2 * lies + erasures <= r - k, `decode` returns the honest gradient. Beyond that budget it
    reports a failure, unless the liars agree on the shares of another gradient, which nothing can detect. If more than
    e honest shares may be missing, trust only results with which k + s shares agree (`Decoded.num_agreeing`), as
    `SolonStrategy` does. s liars can't forge such a result.

    References
    ----------
    Chen et al., "Solon", arXiv:2110.01595, for the scheme.
    """

    def __init__(self, code: Code, *, byzantine: int, stragglers: int = 0, detect_only: bool = False) -> None:
        smallest = smallest_group(byzantine=byzantine, compression=code.compression, stragglers=stragglers)
        smallest -= byzantine if detect_only else 0
        if code.group_size < smallest:
            formula = f"{'' if detect_only else '2*'}byzantine + stragglers + compression"
            raise ConfigurationError(
                f"group_size must be at least {formula}; "
                f"got group_size={code.group_size}, byzantine={byzantine}, stragglers={stragglers}, "
                f"compression={code.compression}; raise group_size to {smallest}, or lower one of the others."
            )
        self.code = code
        self.byzantine = byzantine
        self.stragglers = stragglers

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code!r}, byzantine={self.byzantine}, stragglers={self.stragglers})"

    @property
    @abstractmethod
    def certificate(self) -> float:
        """Bound on the relative error of a decode, whatever the liars know and do."""

    @abstractmethod
    def expected_error(self, num_shares: int) -> float:
        """Return an estimate of the largest `Decoded.error_bound` of `num_shares` agreeing shares.

        It is relative to the gradient's norm.
        """

    @abstractmethod
    def new_memory(self, generator: torch.Generator | None = None) -> object:
        """Return a new `memory` for `decode`, which also describes `generator`."""

    @abstractmethod
    def _decoding(self, rows: Mapping[int, Tensor], dim: int, sections: Sections, memory: object) -> Decoding:
        """Return the decode of these shares, which have one length, dtype and device."""

    def decode(
        self,
        shares: Mapping[int, Tensor] | Tensor,
        *,
        dim: int | None = None,
        sections: Sections | None = None,
        generator: torch.Generator | None = None,
        last: bool = True,
        needed: int = 0,
        memory: object = None,
    ) -> Decoded:
        """Recover the group's gradient from its shares and name the slots that lied.

        Parameters
        ----------
        shares : mapping from slot to (m,) Tensor, or (r, m) Tensor
            float32 or float64, on one device. Slots not in the mapping are erasures. So are shares whose length or
            dtype differs from the most common one and, for a real code, shares that hold NaN, inf, or numbers beyond
            1e150.
        dim : int, optional
            d, the gradient's length. Shares of another length than ceil(d / k) are erasures. Default: k m, which
            is d, or d after padding with zeros.
        sections : Sections, optional
            The tensors that the columns belong to, and their classes. Each class is measured by itself. Default: one
            tensor.
        generator : torch.Generator, optional
            Source of the random numbers that help to find liars. Pass one only for a reproducible simulation. The
            default draws fresh entropy, which no node can know, after the shares have arrived.
        last : bool
            False if more shares may come, so that hopeless attempts may be skipped.
        needed : int
            Minimum number of shares that must agree with the result. Results with fewer are not searched for.
        memory : optional
            The return value of `new_memory`. Pass the same one to all decodes of one group in one round, with the same
            shares and new ones, so that a decode need not repeat the work of earlier ones. Its generator is used.

        Returns
        -------
        Decoded
            The outcome. A failure is a status, never an exception.

        Raises
        ------
        ConfigurationError
            If `shares` names slots that do not exist, or dim < 1.
        """
        compression = self.code.compression
        rows = _alike(self._by_slot(shares), None if dim is None else self.code.share_dim(dim))
        share_dim = next((share.numel() for share in rows.values()), 0)
        sections = sections or Sections.whole(share_dim)
        if rows and sections.num_columns != share_dim:
            raise ConfigurationError(
                f"sections must cover the shares' {share_dim} columns; got {sections.num_columns}; build them for the "
                "same code and model."
            )
        dim = share_dim * compression if dim is None else dim
        decoding = self._decoding(rows, dim, sections, memory or self.new_memory(generator))
        return decoding.decode(max(needed, compression), last)

    def _by_slot(self, shares: Mapping[int, Tensor] | Tensor) -> Mapping[int, Tensor]:
        """Check the type of the shares and return them by slot."""
        group_size = self.code.group_size
        if not isinstance(shares, Tensor | Mapping):
            raise ConfigurationError(
                "shares must be a mapping from slot to share, or one (r, m) tensor; "
                f"got {type(shares).__name__}; pass a dict of the slots that arrived."
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


def smallest_group(*, byzantine: int, compression: int, stragglers: int = 0) -> int:
    """Return 2 s + e + k, the smallest group that locates s liars while e nodes are missing; check the arguments."""
    check_whole("byzantine", byzantine, 0)
    check_whole("compression", compression, 1)
    check_whole("stragglers", stragglers, 0)
    return 2 * byzantine + stragglers + compression


def _alike(shares: Mapping[int, Tensor], share_dim: int | None) -> dict[int, Tensor]:
    """Return the shares of the most common length, dtype and device.

    These include the honest shares, which outnumber the lies by at least k.
    """
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
