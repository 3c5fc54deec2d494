"""Arithmetic in GF(p), p = 2^32 - 5, the field in which the bits of one float32 are one number.

Read as an int32, a float32 is the remainder that lies from -2^31 to 2^31 - 6; only five patterns of NaN lie beyond.
Few numbers are worked on as uint64, whose products hold all there is; many as float64, in which whole numbers up to
2^53 are exact, so that matrix products of BLAS and of GPUs are.
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

FieldArray: TypeAlias = npt.NDArray[np.uint64]  # of numbers from 0 to p - 1

P = 2**32 - 5
LARGEST = 2**31 - 6  # int32 that stands for a number of the field; the smallest is -2^31
HALF = 2**16
TERMS = 24  # products of a half and a number, at most 2^46, that are added up before they are reduced
NAN = torch.tensor(float("nan"), dtype=torch.float32, device="cpu").view(torch.int32).item()


def inverse(values: FieldArray) -> FieldArray:
    """Return 1 / values mod p; of 0, 0. Cost: some 60 products of arrays (Fermat)."""
    result, power, exponent = np.ones_like(values), values, P - 2
    while exponent:
        if exponent & 1:
            result = result * power % P
        power, exponent = power * power % P, exponent >> 1
    return result


def lagrange(points: FieldArray, others: FieldArray) -> FieldArray:
    """Return the matrix, (a, k), that takes a polynomial of degree < k from its values at k points to a other ones."""
    weights = dual_multipliers(points)
    differences = (others[:, None] + (P - points)[None, :]) % P
    rows = _products(differences, skip_diagonal=False)[:, None] * inverse(differences) % P * weights % P
    for row, column in zip(*np.nonzero(differences == 0), strict=True):  # a point of both
        rows[row] = np.arange(len(points)) == column
    return np.asarray(rows, dtype=np.uint64)


def dual_multipliers(points: FieldArray) -> FieldArray:
    """Return u_j = 1 / prod_{i != j} (x_j - x_i): sum_j u_j x_j^i f(x_j) = 0 if f x^i has a degree below n - 1."""
    return inverse(_products(points[:, None] + (P - points)[None, :], skip_diagonal=True))


def _products(matrix: FieldArray, *, skip_diagonal: bool) -> FieldArray:
    """Return the product of each row, with 1 in place of the diagonal if that is to be skipped."""
    factors = matrix % P
    if skip_diagonal:
        np.fill_diagonal(factors, 1)
    result = np.ones(len(factors), dtype=np.uint64)
    for column in factors.T:
        result = result * column % P
    return result


def float_bits(values: Tensor) -> Tensor:
    """Return the bits of a float32 tensor as int32 numbers of the field, in the same memory unless there is a NaN.

    Every NaN becomes one and the same: which of its many patterns arises is chance.
    """
    bits = values.view(torch.int32)
    if bool(values.sum().isnan()):
        return bits.masked_fill(values.isnan(), NAN)
    return bits


def halves(matrix: FieldArray, device: torch.device) -> Tensor:
    """Return the high halves of a matrix, (a, k), above the low ones, (2 a, k) float64: 2^16 high + low mod p.

    All are whole numbers of at most 2^15.
    """
    balanced = (matrix.astype(np.int64) + P // 2) % P - P // 2
    high = (balanced + HALF // 2) // HALF
    both = np.concatenate([high, balanced - HALF * high]).astype(np.float64)
    return torch.from_numpy(both).to(device)


def combined(matrix: Tensor, columns: Tensor) -> Tensor:
    """Return matrix @ columns mod p, (a, n) float64, as whole numbers below 2^51, of either sign.

    Parameters
    ----------
    matrix : (2 a, k) float64 Tensor
        See `halves`.
    columns : (k, n) float64 Tensor
        Whole numbers of 2^31 at most.
    """
    total = None
    for start in range(0, len(columns), TERMS):
        high, low = (matrix[:, start : start + TERMS] @ columns[start : start + TERMS]).chunk(2)
        low.add_(reduced(high), alpha=HALF)  # at most (24 + 2) 2^46, and a little
        total = low if total is None else reduced(total).add_(low)
    assert total is not None
    return total


def reduced(values: Tensor, quotients: Tensor | None = None) -> Tensor:
    """Bring whole numbers of at most 2^53 to about p / 2 at most, of either sign, in place; 0 if they are 0 mod p.

    quotients : memory of the same shape to work in, if there is some: new memory is slow.
    """
    return values.sub_(torch.mul(values, 1 / P, out=quotients).round_(), alpha=P)


def canonical(values: Tensor) -> Tensor:
    """Return whole numbers below 2^51 as the int32 that stand for them: from -2^31 to 2^31 - 6, -3 in the middle.

    As p is odd, no quotient is nearer than 1 / (2 p) to the middle between two whole numbers; rounding is less.
    """
    return values.sub_(torch.add(values, 3.0).mul_(1 / P).round_(), alpha=P).to(torch.int32)
