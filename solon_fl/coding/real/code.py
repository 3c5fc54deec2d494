"""The base class of all real codes: a generator matrix of real numbers, and how much it may amplify an error."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from solon_fl.coding._types import ComplexArray, FloatArray
from solon_fl.coding.code import Code
from solon_fl.coding.sections import Sections

from .amplification import lagrange_bound, worst_amplification
from .locating import parity_of

__all__ = ["RealCode"]


class RealCode(Code):
    """A code over the real numbers: share j is G[j] X, computed in floating point and therefore rounded.

    See `Code` for parameters and errors.

    Notes
    -----
    The nodes may have hardware and software of different kinds. Column c of X holds the entries c k to c k + k - 1 of
    the gradient. Share j is z_j = sum_l G[j, l] X[l]. The share of a half-precision gradient is float32, because
    rounding it to half precision would add an error of 1e-3 times the amplification.

    Cost: d multiply-adds per share.
    """

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
        """v, (r,): see `points`. With `unstretched` in place of G, the coefficients have the same norm as X."""

    _cyclic = False  # whether rotating the slots preserves the singular values of `unstretched`

    @property
    def unstretched(self) -> FloatArray:
        """B, (r, k), with the column space of G and simpler to analyse: B Y = G X with ``|Y| <= stretch |X|``."""
        return self.generator

    @property
    def stretch(self) -> float:
        """See `unstretched`."""
        return 1.0

    @cached_property
    def largest_row(self) -> float:
        """The largest norm of a row of G. No share has a norm above this value times the gradient's norm."""
        return float(np.linalg.norm(self.generator, axis=1).max())

    @cached_property
    def parity(self) -> FloatArray:
        """H, (r - k, r) float64, orthonormal rows, H G = 0."""
        return parity_of(self.generator)

    @cached_property
    def amplification(self) -> float:
        """Largest error of a decoded gradient per unit of undetected error: 1 / sigma_min of the worst k rows.

        It is exact if the subsets are few enough to search them all and `stretch` is 1. Else it is an upper bound.
        """
        return self.worst_amplification(self.compression)

    def worst_amplification(self, num_rows: int) -> float:
        """Return the largest 1 / sigma_min over all sets of `num_rows` rows, or an upper bound on it."""
        exact = worst_amplification(self.unstretched.tobytes(), self.group_size, num_rows, self._cyclic)
        if exact < math.inf:
            return self.stretch * exact
        return self.stretch * lagrange_bound(self.points, self.multipliers, self.compression)

    @property
    def multiple(self) -> int:
        """k, so that no column of X mixes entries of two tensors."""
        return self.compression

    def sections(self, tensors: Iterable[tuple[int, str]]) -> Sections:
        """See `Code.sections`. Each tensor has its own columns."""
        return Sections.of(tensors, compression=self.compression)

    def _encode(self, gradient: Tensor, slot: int) -> Tensor:
        dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        row = torch.from_numpy(self.generator[slot]).to(gradient.device, dtype)
        gradient = gradient.to(dtype)
        whole, rest = divmod(gradient.numel(), self.compression)
        share = gradient.new_empty(self.share_dim(gradient.numel()))
        torch.mv(gradient[: whole * self.compression].view(whole, self.compression), row, out=share[:whole])
        if rest:
            torch.dot(gradient[whole * self.compression :], row[:rest], out=share[whole])
        return share
