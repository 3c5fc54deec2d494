"""Reference implementations, slow and simple, that share no code with the package."""

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
    """Return the chunks, and the smallest set of rows without which the others agree up to `tolerance`."""
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
    """Return the k chunks of the polynomial that fits all but `max_lies` shares, and the shares that it does not fit.

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
    """Return c such that |V| > c |V F| with at most this probability, for every matrix V.

    Given F's block, every column of V F is Gaussian, with a covariance of trace w |V|^2, where E w = 1. So
    E exp(-u |V F|^2) = prod_i (1 + 2 u l_i / q)^(-q/2) over the eigenvalues l_i, at most (1 + 2 u w |V|^2 / q)^(-q/2).
    The same holds for w, a quadratic form of the block. So by Chernoff's bound no V is worse than one of rank one, for
    which |V F|^2 is |V|^2 times two independent chi-square(q) / q.
    """
    q = num_projections
    u = np.linspace(-12, 3, 3001)
    w = np.exp(u)  # chi-square(q) / q
    density = q * w * stats.chi2.pdf(q * w, q)  # density of u

    def log_chernoff(log_rate: float, log_square: float) -> float:
        rate = math.exp(log_rate)
        mean = integrate.trapezoid(density * (1 + 2 * rate * w / q) ** (-q / 2), u)  # E exp(-rate w chi-square(q) / q)
        return rate * math.exp(log_square) + math.log(mean)

    def excess(log_square: float) -> float:
        best = optimize.minimize_scalar(lambda u: log_chernoff(u, log_square), bounds=(-6, 25), method="bounded")
        return float(best.fun) - math.log(failure_probability)

    return math.exp(-float(optimize.brentq(excess, -12, -0.1)) / 2)


PRIME = 2**32 - 5  # the order of the exact code's field


def value_in_field(points: Sequence[int], values: Sequence[int], place: int) -> int:
    """Return the value at `place`, mod `PRIME`, of the polynomial of least degree through these values (Lagrange)."""
    total = 0
    for j, (point, value) in enumerate(zip(points, values, strict=True)):
        others = [other for i, other in enumerate(points) if i != j]
        numerator = math.prod(place - other for other in others)
        denominator = math.prod(point - other for other in others)
        total += value * numerator * pow(denominator, -1, PRIME)
    return total % PRIME


def lies_in_field(points: Sequence[int], word: Sequence[int], compression: int) -> tuple[int, ...] | None:
    """Return where a word differs from the codeword within (n - k) // 2 positions of it; None if there is none.

    The Berlekamp-Welch algorithm: a polynomial E, 0 at the lies, and Q = E f of degree < k + e solve Q(x) = y E(x).
    Every solution except 0 has Q / E = f, if there is such an f.
    """
    most = (len(word) - compression) // 2
    rows = [
        [pow(x, i, PRIME) for i in range(compression + most)] + [-y * pow(x, i, PRIME) % PRIME for i in range(most + 1)]
        for x, y in zip(points, word, strict=True)
    ]
    solution = null_vector(rows)
    if solution is None:
        return None
    quotient, locator = solution[: compression + most], solution[compression + most :]
    fine = [row for row, x in enumerate(points) if evaluate(locator, x)][:compression]
    values = [evaluate(quotient, points[row]) * pow(evaluate(locator, points[row]), -1, PRIME) for row in fine]
    known = [points[row] for row in fine]
    lies = tuple(row for row, x in enumerate(points) if value_in_field(known, values, x) != word[row])
    return lies if len(lies) <= most else None


def lies_by_subsets(points: Sequence[int], word: Sequence[int], compression: int) -> tuple[int, ...] | None:
    """Return the result of `lies_in_field` by trying all sets of lies, small ones first."""
    for count in range((len(word) - compression) // 2 + 1):
        for lies in combinations(range(len(word)), count):
            kept = [row for row in range(len(word)) if row not in lies]
            first, others = kept[:compression], kept[compression:]
            known, values = [points[row] for row in first], [word[row] for row in first]
            if all(value_in_field(known, values, points[row]) == word[row] for row in others):
                return lies
    return None


def evaluate(coefficients: Sequence[int], place: int) -> int:
    """Return the value of a polynomial modulo `PRIME`, by Horner's rule."""
    result = 0
    for coefficient in reversed(coefficients):
        result = (result * place + coefficient) % PRIME
    return result


def null_vector(matrix: list[list[int]]) -> list[int] | None:
    """Return a vector other than 0 that the matrix maps to 0 modulo `PRIME`, or None, by Gauss-Jordan elimination."""
    rows, width = [list(row) for row in matrix], len(matrix[0])
    pivots: list[int] = []  # in column pivots[i], row i is 1 and all other rows are 0
    for column in range(width):
        place = len(pivots)
        pivot = next((row for row in range(place, len(rows)) if rows[row][column]), None)
        if pivot is None:
            solution = [0] * width
            solution[column] = 1
            for row, earlier in enumerate(pivots):
                solution[earlier] = -rows[row][column] % PRIME
            return solution
        rows[place], rows[pivot] = rows[pivot], rows[place]
        scale = pow(rows[place][column], -1, PRIME)
        rows[place] = [entry * scale % PRIME for entry in rows[place]]
        for row, factor in enumerate([row[column] for row in rows]):
            if factor and row != place:
                rows[row] = [(a - factor * b) % PRIME for a, b in zip(rows[row], rows[place], strict=True)]
        pivots.append(column)
    return None
