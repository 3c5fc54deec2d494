"""The real Fourier code: the default."""

import math
from functools import cached_property

import numpy as np

from solon_fl.coding._types import ComplexArray, FloatArray

from .code import RealCode

__all__ = ["FourierCode", "trigonometric_columns"]


class FourierCode(RealCode):
    """Shares are samples, at r angles spread evenly over the circle, of a trigonometric polynomial.

    Its coefficients are the k chunks of the gradient: with t_j = 2 pi j / r, G has the columns
    1, cos(l t), sin(l t) for l = 1..(k-1)/2 if k is odd, and cos(w t), sin(w t) for w = 1/2, 3/2, ..(k-1)/2
    if k is even. Shares are real. The coefficients are then exchanged for the values at k slots spread evenly
    (a systematic code): slots 0, r/k, 2r/k, .. (rounded down) send entries of the gradient as they are, and what they
    send is not solved for, only verified.

    See `Code` for parameters and errors, and `Decoder` for what is guaranteed.

    Notes
    -----
    Times a phase, row j evaluates a polynomial of degree < k at exp(i t_j): a Reed-Solomon code at the roots
    of unity. Differs from the paper, which uses a Vandermonde matrix on real nodes
    (`VandermondeCode`): at s = 5, k = 10 this one recovers every time, the other does not.

    Examples
    --------
    Six nodes send a third of the gradient each; nodes 0, 2 and 4 send every third entry as it is.

    >>> import torch
    >>> from solon_fl import FourierCode
    >>> code = FourierCode(group_size=6, compression=3)
    >>> code.encode(torch.arange(9.0), slot=2)
    tensor([1., 4., 7.])

    References
    ----------
    Chen et al., arXiv:2110.01595 (scheme); Marshall 1984 and Redinbo 2000 for real Fourier (DFT) codes.
    """

    _cyclic = True

    @cached_property
    def generator(self) -> FloatArray:
        """G, (r, k) float64: unit rows at k of the slots; the others have norms from 1 to sqrt(k / s)."""
        rows = self.unstretched @ np.linalg.inv(self.unstretched[self._unit_slots])
        rows[self._unit_slots] = np.eye(self.compression)  # which they are but for rounding
        return rows

    @cached_property
    def unstretched(self) -> FloatArray:
        """Samples of the sines, (r, k) float64: rows of norm 1, orthogonal columns of norm sqrt(r / k)."""
        return math.sqrt(self.group_size / self.compression) * trigonometric_columns(self.group_size, self.compression)

    @cached_property
    def stretch(self) -> float:
        """The largest singular value of the rows at the slots that send entries as they are; 1 where k divides r."""
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
        """v_j = sqrt(k) exp(i f0 t_j), f0 = (k - 1) / 2: shifts the lowest frequency to zero."""
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
