"""The base class of all codes, which turn a gradient into r shares. Finding lies is the decoder's task."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from solon_fl.checks import check_whole
from solon_fl.errors import ConfigurationError

from .sections import Sections

__all__ = ["Code"]


class Code(ABC):
    """A linear (r, k) code: each of the r shares holds one linear combination of every k entries of the gradient.

    Parameters
    ----------
    group_size : int
        r, the number of nodes in the group, >= k.
    compression : int
        k, the factor by which a share is shorter than the gradient, >= 1.

    Raises
    ------
    ConfigurationError
        If a number is out of range.

    Notes
    -----
    Any k shares determine the gradient. The `Decoder` sets how many lies and missing shares a group tolerates.
    """

    def __init__(self, *, group_size: int, compression: int) -> None:
        check_whole("compression", compression, 1)
        check_whole("group_size", group_size, 1)
        if group_size < compression:
            raise ConfigurationError(
                f"group_size must be at least compression; got group_size={group_size}, compression={compression}; "
                f"raise group_size to {compression}, or lower compression."
            )
        self.group_size = group_size
        self.compression = compression

    def __repr__(self) -> str:
        return f"{type(self).__name__}(group_size={self.group_size}, compression={self.compression})"

    @property
    @abstractmethod
    def multiple(self) -> int:
        """Each tensor of a coded vector is padded with zeros to a multiple of this number of entries."""

    @abstractmethod
    def sections(self, tensors: Iterable[tuple[int, str]]) -> Sections:
        """Return the position of each tensor in a share, given sizes and classes as in `Sections.of`."""

    def check_dtype(self, dtype: torch.dtype) -> None:  # noqa: B027  # most codes accept every dtype
        """Raise ConfigurationError if the code can't encode gradients of this float dtype."""

    def share_dim(self, dim: int) -> int:
        """Return m = ceil(d / k), the length of a share of a gradient of length d = dim."""
        if dim < 1:
            raise ConfigurationError(f"a gradient must have at least one entry; got dim={dim}; check the model.")
        return -(-dim // self.compression)

    def encode(self, gradient: Tensor, slot: int) -> Tensor:
        """Return the share of one slot.

        Parameters
        ----------
        gradient : Tensor, (d,), any float dtype, any device
            The gradient. It is read in place, never padded or copied as a whole. Entries beyond d count as zeros.
        slot : int
            0 <= slot < r.

        Returns
        -------
        Tensor, (m,), on the gradient's device
            float64 for a float64 gradient, else float32.

        Raises
        ------
        ConfigurationError
            If the gradient is not a 1-D float tensor with at least one entry, if the code does not accept its dtype, or
            if the slot does not exist.
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
        self.check_dtype(gradient.dtype)
        self.share_dim(gradient.numel())
        return self._encode(gradient.detach(), slot)

    @abstractmethod
    def _encode(self, gradient: Tensor, slot: int) -> Tensor:
        """See `encode`."""
