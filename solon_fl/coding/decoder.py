"""What every decoder is: from shares, of which some are lies and some are missing, to the group's exact gradient."""

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
        """Decode with which `needed` shares agree, with the fewest lies that explain the others.

        last : False if more shares may come, so that what can't succeed yet need not be tried.
        """


class Decoder(ABC):
    """Recovers a group's gradient from its shares, though s of them may be lies and e may be missing.

    Parameters
    ----------
    code : Code
        What the shares are encoded with; its group_size r must be at least 2 s + e + k.
    byzantine : int
        s, nodes of the group that may lie, >= 0.
    stragglers : int
        e, nodes of the group that may not answer, >= 0.
    detect_only : bool
        Whether s lies need only be noticed: then s + e + k nodes are enough. Fewer lies may be located all the same.

    Raises
    ------
    ConfigurationError
        If group_size < 2 s + e + k, or a number is out of its range.

    Notes
    -----
    Guarantee: as long as 2 * lies + erasures <= r - k, `decode` returns the honest gradient. Beyond that budget it
    reports a failure, unless the liars agree on the shares of another gradient, which nothing can detect. If more than
    e honest shares may be missing, trust results with which k + s shares agree (`Decoded.num_agreeing`), as
    `SolonStrategy` does: s liars can't bring those about.

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
        """Bound on a decode's relative error, whatever the liars know and do."""

    @abstractmethod
    def expected_error(self, num_shares: int) -> float:
        """Return about the largest `Decoded.error_bound`, by the gradient's norm, of so many shares that agree."""

    @abstractmethod
    def new_memory(self, generator: torch.Generator | None = None) -> object:
        """Return what `decode` takes as `memory`; for `generator` see there."""

    @abstractmethod
    def _decoding(self, rows: Mapping[int, Tensor], dim: int, sections: Sections, memory: object) -> Decoding:
        """Return the decode of shares of one length, dtype and device."""

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
        """Recover the group's gradient from its shares, naming the slots that lied.

        Parameters
        ----------
        shares : mapping from slot to (m,) Tensor, or (r, m) Tensor
            float32 or float64, one device. Slots not in the mapping are erasures, and so are shares of another
            length or dtype than most, and of a real code those that hold NaN, inf, or numbers beyond 1e150.
        dim : int, optional
            d, the gradient's length; shares of another length than ceil(d / k) are erasures. Default: k m, which
            is d or d padded with zeros.
        sections : Sections, optional
            The tensors that the columns belong to, and their classes, each of which is measured by itself. Default: one
            tensor.
        generator : torch.Generator, optional
            Draws the random numbers that help to find liars. Only for reproducible simulation: by default fresh entropy
            that no node can know is drawn after the shares have arrived.
        last : bool
            False if more shares may come, so that what can't succeed yet need not be tried.
        needed : int
            Shares that must agree with a result, or it is of no use, and is not looked for.
        memory : optional
            From `new_memory`, one for all decodes of one group in one round, whose shares stay: what one decode has
            found out the next need not do again. Its generator is used.

        Returns
        -------
        Decoded
            A failure is a status there, never an exception.

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
                f"sections must be of the shares' {share_dim} columns; got {sections.num_columns}; make them for the "
                "same code and model."
            )
        dim = share_dim * compression if dim is None else dim
        decoding = self._decoding(rows, dim, sections, memory or self.new_memory(generator))
        return decoding.decode(max(needed, compression), last)

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
