"""The real Fourier code, the default."""

import math
from functools import cached_property

import numpy as np

from solon_fl.coding._types import ComplexArray, FloatArray

from .code import RealCode

__all__ = ["FourierCode", "trigonometric_columns"]


class FourierCode(RealCode):
    """Shares are samples of a trigonometric polynomial at r angles spread evenly over the circle.

    The coefficients are the k chunks of the gradient. With t_j = 2 pi j / r, G has the columns 1, cos(l t), sin(l t)
    for l = 1..(k-1)/2 if k is odd, and cos(w t), sin(w t) for w = 1/2, 3/2, ..(k-1)/2 if k is even. Shares are real. A
    change of basis then makes the code systematic: slots 0, r/k, 2r/k, .. (rounded down) send entries of the gradient
    unchanged. The decoder verifies these entries but need not solve for them.

    See `Code` for parameters and errors, and `Decoder` for the guarantees.

    Notes
    -----
    Up to a phase, row j evaluates a polynomial of degree < k at exp(i t_j), which makes this a Reed-Solomon code at the
    roots of unity. Differs from the paper, which uses a Vandermonde matrix on real nodes (`VandermondeCode`). At s = 5,
    k = 10 the Fourier code recovers the gradient every time, the Vandermonde code does not.

    Examples
    --------
    Six nodes send a third of the gradient each. Nodes 0, 2 and 4 send every third entry unchanged.

    >>> import torch
    >>> from solon_fl import FourierCode
    >>> code = FourierCode(group_size=6, compression=3)
    >>> code.encode(torch.arange(9.0), slot=2)
    tensor([1., 4., 7.])

    References
    ----------
    Chen et al., arXiv:2110.01595, for the scheme; Marshall 1984 and Redinbo 2000 for real Fourier (DFT) codes.
    """

    _cyclic = True

    @cached_property
    def generator(self) -> FloatArray:
        """G, (r, k) float64: unit rows at k of the slots; the other rows have norms from 1 to sqrt(k / s)."""
        rows = self.unstretched @ np.linalg.inv(self.unstretched[self._unit_slots])
        rows[self._unit_slots] = np.eye(self.compression)  # removes the rounding errors
        return rows

    @cached_property
    def unstretched(self) -> FloatArray:
        """Samples of the sines, (r, k) float64: rows of norm 1, orthogonal columns of norm sqrt(r / k)."""
        return math.sqrt(self.group_size / self.compression) * trigonometric_columns(self.group_size, self.compression)

    @cached_property
    def stretch(self) -> float:
        """The largest singular value of the rows of `unstretched` at the systematic slots; 1 if k divides r."""
        if self.group_size % self.compression == 0:
            return 1.0
        return float(np.linalg.norm(self.unstretched[self._unit_slots], ord=2))

    @property
    def _unit_slots(self) -> list[int]:
        return [chunk * self.group_size // self.compression for chunk in range(self.compression)]

    @cached_property
    def points(self) -> ComplexArray:
        """x_j = exp(i t_j), the r-th roots of unity."""
        return np.asarray(np.exp(1j * self._angles))

    @cached_property
    def multipliers(self) -> ComplexArray:
        """v_j = sqrt(k) exp(i f0 t_j), f0 = (k - 1) / 2, which shifts the lowest frequency to zero."""
        return np.asarray(math.sqrt(self.compression) * np.exp(0.5j * (self.compression - 1) * self._angles))

    @property
    def _angles(self) -> FloatArray:
        return _angles(self.group_size)


def trigonometric_columns(size: int, num_columns: int) -> FloatArray:
    """Return k orthonormal columns, (r, k): the lowest (half-)integer frequencies at r angles."""
    angles = _angles(size)
    columns = [np.full(size, 1 / np.sqrt(size))] if num_columns % 2 else []
    for frequency in np.arange(1 - 0.5 * (num_columns % 2 == 0), num_columns / 2):
        columns += [np.sqrt(2 / size) * np.cos(frequency * angles), np.sqrt(2 / size) * np.sin(frequency * angles)]
    return np.stack(columns, axis=1)


def _angles(size: int) -> FloatArray:
    return 2 * np.pi * np.arange(size, dtype=np.float64) / size
