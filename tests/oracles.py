"""Slow, plain decoders and brute force that share no code with the package."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import integrate, optimize, stats

FloatArray = npt.NDArray[np.float64]


def decode_by_subsets(
    generator: FloatArray, shares: FloatArray, max_lies: int, tolerance: float
) -> tuple[FloatArray, tuple[int, ...]] | None:
    """Return the chunks and the fewest rows to leave out so that the others agree up to `tolerance`."""
    rows = range(len(generator))
    for count in range(max_lies + 1):
        best: tuple[float, FloatArray, tuple[int, ...]] = (math.inf, shares, ())
        for lies in combinations(rows, count):
            kept = [row for row in rows if row not in lies]
            chunks = np.asarray(np.linalg.lstsq(generator[kept], shares[kept], rcond=None)[0], dtype=np.float64)
            residual = float(np.linalg.norm(shares[kept] - generator[kept] @ chunks))
            best = min(best, (residual, chunks, lies), key=lambda candidate: candidate[0])
        if best[0] <= tolerance:
            return best[1], best[2]
    return None


def solve_exactly(matrix: list[list[Fraction]], right: list[Fraction]) -> list[Fraction]:
    """Solve a regular square system by Gauss-Jordan elimination."""
    size = len(matrix)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = next(row for row in range(column, size) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [entry / rows[column][column] for entry in rows[column]]
        for row in range(size):
            if row != column:
                factor = rows[row][column]
                rows[row] = [a - factor * b for a, b in zip(rows[row], rows[column], strict=True)]
    return [row[-1] for row in rows]


def decode_exactly(
    nodes: Sequence[Fraction], shares: Sequence[Sequence[Fraction]], compression: int, max_lies: int
) -> tuple[list[list[Fraction]], tuple[int, ...]]:
    """Return the k chunks of the polynomial that all but `max_lies` shares lie on, and the shares that do not.

    Share j is sum_l nodes[j]^l chunk_l, without rounding.
    """
    powers = [[node**power for power in range(compression)] for node in nodes]
    for subset in combinations(range(len(nodes)), compression):
        columns = zip(*(shares[row] for row in subset), strict=True)
        by_column = [solve_exactly([powers[row] for row in subset], list(column)) for column in columns]
        chunks = [list(chunk) for chunk in zip(*by_column, strict=True)]
        lies = tuple(row for row in range(len(nodes)) if encode_exactly(powers[row], chunks) != list(shares[row]))
        if len(lies) <= max_lies:
            return chunks, lies
    raise ValueError(f"no polynomial explains all but {max_lies} shares")


def encode_exactly(weights: Sequence[Fraction], chunks: Sequence[Sequence[Fraction]]) -> list[Fraction]:
    """Return sum_l weights[l] chunk_l."""
    return [
        sum((w * x for w, x in zip(weights, column, strict=True)), Fraction(0)) for column in zip(*chunks, strict=True)
    ]


def largest_amplification(generator: FloatArray, num_rows: int) -> float:
    """Return the largest 1 / sigma_min over all sets of rows, one SVD each."""
    sets = combinations(range(len(generator)), num_rows)
    return max(1 / float(np.linalg.svd(generator[list(rows)])[1][-1]) for rows in sets)


def chernoff_underestimate(num_projections: int, failure_probability: float) -> float:
    """Return c such that |V| > c |V F| with that probability at most, for every matrix V.

    Given F's block, every column of V F is Gaussian, with a covariance of trace w |V|^2, E w = 1; given that,
    E exp(-u |V F|^2) = prod_i (1 + 2 u l_i / q)^(-q/2) over the eigenvalues l_i, at most (1 + 2 u w |V|^2 / q)^(-q/2).
    The same holds for w, a quadratic form of the block. So by Chernoff's bound no V is worse than one of rank
    one, where |V F|^2 is |V|^2 times two independent chi-square(q) / q.
    """
    q = num_projections

    def log_chernoff(log_rate: float, log_square: float) -> float:
        rate = math.exp(log_rate)

        def density(u: float) -> float:  # of w = e^u = chi-square(q) / q, times E exp(-rate w chi-square(q) / q)
            w = math.exp(u)
            return float(q * w * stats.chi2.pdf(q * w, q) * (1 + 2 * rate * w / q) ** (-q / 2))

        mean = integrate.quad(density, -12, 3, limit=500)[0]
        return rate * math.exp(log_square) + math.log(mean)

    def excess(log_square: float) -> float:
        best = optimize.minimize_scalar(lambda u: log_chernoff(u, log_square), bounds=(-6, 25), method="bounded")
        return float(best.fun) - math.log(failure_probability)

    return math.exp(-float(optimize.brentq(excess, -12, -0.1)) / 2)
