"""What every code is: a generator matrix, and how a gradient is encoded with it. A code knows nothing of liars."""

import math
from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from solon_fl.checks import check_whole
from solon_fl.errors import ConfigurationError

from ._types import ComplexArray, FloatArray
from .amplification import lagrange_bound, worst_amplification
from .locating import parity_of

__all__ = ["Code"]


class Code(ABC):
    """A real (r, k) code: k consecutive entries of the group's gradient at a time become one entry of r shares.

    Parameters
    ----------
    group_size : int
        r, nodes of the group, >= k.
    compression : int
        k, a share has 1/k of the gradient's length, >= 1.

    Raises
    ------
    ConfigurationError
        If a number is out of its range.

    Notes
    -----
    How many lies and missing shares a group of this code bears is the `Decoder`'s affair.
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
        """v, (r,): see `points`. If `unstretched` takes the place of G, the coefficients have the norm of X."""

    _cyclic = False  # whether rotating the slots leaves the singular values of `unstretched` as they are

    @property
    def unstretched(self) -> FloatArray:
        """B, (r, k), of the same column space as G and better understood; B Y = G X with |Y| <= `stretch` |X|."""
        return self.generator

    @property
    def stretch(self) -> float:
        """See `unstretched`."""
        return 1.0

    @cached_property
    def largest_row(self) -> float:
        """The largest norm of a row of G: no share has more than that times the gradient's norm."""
        return float(np.linalg.norm(self.generator, axis=1).max())

    @cached_property
    def parity(self) -> FloatArray:
        """H, (r - k, r) float64, orthonormal rows, H G = 0."""
        return parity_of(self.generator)

    @cached_property
    def amplification(self) -> float:
        """Largest error of a decoded gradient per unit of undetected error: 1 / sigma_min of the worst k rows.

        Exact where the subsets are few enough to look at all of them and `stretch` is 1, an upper bound elsewhere.
        """
        return self.worst_amplification(self.compression)

    def worst_amplification(self, num_rows: int) -> float:
        """Return the largest 1 / sigma_min over all sets of that many rows, or an upper bound on it."""
        exact = worst_amplification(self.unstretched.tobytes(), self.group_size, num_rows, self._cyclic)
        if exact < math.inf:
            return self.stretch * exact
        return self.stretch * lagrange_bound(self.points, self.multipliers, self.compression)

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
            Read in place, never padded or copied. Column c of X holds the entries c k to c k + k - 1, zeros beyond d.
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
        row = torch.from_numpy(self.generator[slot]).to(gradient.device, dtype)
        gradient = gradient.detach().to(dtype)
        whole, rest = divmod(gradient.numel(), self.compression)
        share = gradient.new_empty(self.share_dim(gradient.numel()))
        torch.mv(gradient[: whole * self.compression].view(whole, self.compression), row, out=share[:whole])
        if rest:
            torch.dot(gradient[whole * self.compression :], row[:rest], out=share[whole])
        return share
