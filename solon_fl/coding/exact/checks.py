"""What shares of the exact code must satisfy: checks of all of them, column by column, without any tolerance."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from .code import ExactCode
from .field import combined, halves, reduced

__all__ = ["Checks"]

LARGEST_SUM = 2**22  # of a check's whole weights: times 2^31, exact in float64


class Checks:
    """n - k independent checks of n rows, which codewords pass, and nothing else does.

    Parameters
    ----------
    code : ExactCode
        The code.
    rows : list of n int
        Slots, ascending, more than k.
    block : int
        Columns that are looked at together, at most.
    device : torch.device
        Of the shares.

    Notes
    -----
    k + 1 values of a polynomial of degree < k at whole numbers have a vanishing divided difference: a sum with whole
    weights, which are small where the rows are near each other (binomial coefficients, if they are neighbours). Then
    one product in float64 is exact. Else the rows beyond the first k are compared with what those make of them.
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
        """Return whether these columns, (n, width) float64 of whole numbers, pass all checks."""
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
        """Which of the columns looked at last fail some check, (width,) bool."""
        return self._found.any(dim=0)


@lru_cache(maxsize=64)
def _whole_weights(rows: tuple[int, ...], compression: int) -> list[list[int]] | None:
    """Return the k + 1 weights of each check, which is of that many rows in a row, or None if they are too large."""
    if 2**compression > LARGEST_SUM:  # what those of neighbours amount to; hardly any others amount to less
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
    """Return the checks, (n - k, n), of each of which the weights begin one row later."""
    number, width = len(weights), len(weights[0])
    matrix = torch.zeros(number, number + width - 1, dtype=torch.float64, device=device)
    checks = torch.arange(number, device=device)[:, None]
    places = checks + torch.arange(width, device=device)
    matrix[checks, places] = torch.tensor(weights, dtype=torch.float64, device=device)
    return matrix
