"""Parity checks of the exact code, applied to all shares column by column, without any tolerance."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from .code import ExactCode
from .field import combined, halves, reduced

__all__ = ["Checks"]

LARGEST_SUM = 2**22  # of the absolute integer weights of a check; times 2^31 it is exact in float64


class Checks:
    """n - k independent checks of n rows. A column passes all of them exactly if it is a codeword.

    Parameters
    ----------
    code : ExactCode
        The code.
    rows : list of n int
        Slots, ascending. There are more than k of them.
    block : int
        Largest number of columns in one call.
    device : torch.device
        Device of the shares.

    Notes
    -----
    The divided difference of k + 1 values of a polynomial of degree < k at integers vanishes. It is a sum with integer
    weights, which are small where the rows are close together (binomial coefficients for consecutive rows). In that
    case one product in float64 is exact. Otherwise the first k rows predict the others, and the two are compared.
    """

    def __init__(self, code: ExactCode, rows: list[int], block: int, device: torch.device) -> None:
        self._compression = code.compression
        weights = _whole_weights(tuple(rows), code.compression)
        self._weights = None if weights is None else _matrix(weights, device)
        if self._weights is None:
            known, others = rows[: code.compression], rows[code.compression :]
            self._matrix = halves(code.interpolation(known, others), device)
        self._buffer = torch.empty(2, len(rows) - code.compression, block, dtype=torch.float64, device=device)
        self._found = self._buffer[0]

    def passed_by(self, columns: Tensor) -> bool:
        """Return whether these columns, (n, width) float64 holding integers, pass all checks."""
        found, quotients = self._buffer[:, :, : columns.shape[1]]
        if self._weights is not None:
            torch.mm(self._weights, columns, out=found)
        else:
            known, others = columns[: self._compression], columns[self._compression :]
            torch.sub(combined(self._matrix, known), others, out=found)
        self._found = reduced(found, quotients)
        return not bool(torch.count_nonzero(found))

    @property
    def failing(self) -> Tensor:
        """Which columns of the last call fail a check, (width,) bool."""
        return self._found.any(dim=0)


@lru_cache(maxsize=64)
def _whole_weights(rows: tuple[int, ...], compression: int) -> list[list[int]] | None:
    """Return the k + 1 weights of each check, which covers k + 1 successive rows, or None if they are too large."""
    if 2**compression > LARGEST_SUM:  # the sum for consecutive slots; hardly any other slots have a smaller one
        return None
    checks = []
    for start in range(len(rows) - compression):
        window = rows[start : start + compression + 1]
        products = [math.prod(row - other for other in window if other != row) for row in window]
        multiple = math.lcm(*products)
        weights = [multiple // product for product in products]
        divisor = math.gcd(*weights)
        if sum(map(abs, weights)) > LARGEST_SUM * divisor:
            return None
        checks.append([weight // divisor for weight in weights])
    return checks


def _matrix(weights: list[list[int]], device: torch.device) -> Tensor:
    """Return the checks as a matrix, (n - k, n). The weights of each check begin one row after the previous one's."""
    number, width = len(weights), len(weights[0])
    matrix = torch.zeros(number, number + width - 1, dtype=torch.float64, device=device)
    checks = torch.arange(number, device=device)[:, None]
    places = checks + torch.arange(width, device=device)
    matrix[checks, places] = torch.tensor(weights, dtype=torch.float64, device=device)
    return matrix
