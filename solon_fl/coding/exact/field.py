"""Arithmetic in GF(p), p = 2^32 - 5. The bits of one float32 are one element of this field.

The bits of a float32, read as an int32, are the representative between -2^31 and 2^31 - 6 of a field element. Only five
NaN patterns lie outside that range. Small arrays are computed in uint64, which holds every product of two elements.
Large ones are computed in float64, where integers up to 2^53 are exact, and so are matrix products by BLAS and on GPUs.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "LARGEST",
    "P",
    "FieldArray",
    "canonical",
    "combined",
    "dual_multipliers",
    "float_bits",
    "halves",
    "inverse",
    "lagrange",
    "reduced",
]

FieldArray: TypeAlias = npt.NDArray[np.uint64]  # numbers from 0 to p - 1

P = 2**32 - 5
LARGEST = 2**31 - 6  # largest int32 that represents a field element; the smallest is -2^31
HALF = 2**16
TERMS = 24  # products of a half and an element, each at most 2^46, that are summed before a reduction
NAN = torch.tensor(float("nan"), dtype=torch.float32, device="cpu").view(torch.int32).item()


def inverse(values: FieldArray) -> FieldArray:
    """Return 1 / values mod p, and 0 for 0. Cost: some 60 array products (Fermat's little theorem)."""
    result, power, exponent = np.ones_like(values), values, P - 2
    while exponent:
        if exponent & 1:
            result = result * power % P
        power, exponent = power * power % P, exponent >> 1
    return result


def lagrange(points: FieldArray, others: FieldArray) -> FieldArray:
    """Return the matrix, (a, k), that maps the values of a polynomial of degree < k at k points to those at others."""
    weights = dual_multipliers(points)
    differences = (others[:, None] + (P - points)[None, :]) % P
    rows = _products(differences, skip_diagonal=False)[:, None] * inverse(differences) % P * weights % P
    for row, column in zip(*np.nonzero(differences == 0), strict=True):  # points in both
        rows[row] = np.arange(len(points)) == column
    return np.asarray(rows, dtype=np.uint64)


def dual_multipliers(points: FieldArray) -> FieldArray:
    """Return u_j = 1 / prod_{i != j} (x_j - x_i). Then sum_j u_j x_j^i f(x_j) = 0 if f x^i has degree < n - 1."""
    return inverse(_products(points[:, None] + (P - points)[None, :], skip_diagonal=True))


def _products(matrix: FieldArray, *, skip_diagonal: bool) -> FieldArray:
    """Return the product of each row, with 1 in place of the diagonal if `skip_diagonal`."""
    factors = matrix % P
    if skip_diagonal:
        np.fill_diagonal(factors, 1)
    result = np.ones(len(factors), dtype=np.uint64)
    for column in factors.T:
        result = result * column % P
    return result


def float_bits(values: Tensor) -> Tensor:
    """Return the bits of a float32 tensor as int32 field elements, in the same memory unless there is a NaN.

    All NaNs become the same NaN, because honest nodes may compute different NaN patterns.
    """
    bits = values.view(torch.int32)
    if bool(values.sum().isnan()):
        return bits.masked_fill(values.isnan(), NAN)
    return bits


def halves(matrix: FieldArray, device: torch.device) -> Tensor:
    """Return the high halves of a matrix, (a, k), stacked on the low ones, (2 a, k) float64: 2^16 high + low mod p.

    All are integers of absolute value at most 2^15.
    """
    balanced = (matrix.astype(np.int64) + P // 2) % P - P // 2
    high = (balanced + HALF // 2) // HALF
    both = np.concatenate([high, balanced - HALF * high]).astype(np.float64)
    return torch.from_numpy(both).to(device)


def combined(matrix: Tensor, columns: Tensor) -> Tensor:
    """Return matrix @ columns mod p, (a, n) float64, as integers of either sign and absolute value below 2^51.

    Parameters
    ----------
    matrix : (2 a, k) float64 Tensor
        See `halves`.
    columns : (k, n) float64 Tensor
        Integers of absolute value at most 2^31.
    """
    total = None
    for start in range(0, len(columns), TERMS):
        high, low = (matrix[:, start : start + TERMS] @ columns[start : start + TERMS]).chunk(2)
        low.add_(reduced(high), alpha=HALF)  # at most slightly more than (24 + 2) 2^46
        total = low if total is None else reduced(total).add_(low)
    assert total is not None
    return total


def reduced(values: Tensor, quotients: Tensor | None = None) -> Tensor:
    """Reduce integers of at most 2^53 mod p, in place, to at most about p / 2 in absolute value; multiples of p to 0.

    quotients : scratch memory of the same shape, optional; allocation is slow.
    """
    return values.sub_(torch.mul(values, 1 / P, out=quotients).round_(), alpha=P)


def canonical(values: Tensor) -> Tensor:
    """Return the int32 representatives, from -2^31 to 2^31 - 6 (-3 in the middle), of integers below 2^51.

    The rounding is right because p is odd: no quotient is closer than 1 / (2 p) to the midpoint of two integers, and
    the rounding errors are smaller than that.
    """
    return values.sub_(torch.add(values, 3.0).mul_(1 / P).round_(), alpha=P).to(torch.int32)
