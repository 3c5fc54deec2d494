"""The problem that every locator solves, and the residuals by which supports are compared."""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np

from solon_fl.coding._types import ComplexArray, FloatArray, IntArray

__all__ = ["LocatingProblem", "Locator", "Support", "can_try_all", "explaining_supports", "parity_of"]

Support = tuple[int, ...]
CHUNK = 4096  # supports evaluated at once
MAX_NUMBERS = 2_000_000
ROUNDING = 1e-13  # rounding error of a residual, relative to the norm of its inputs


@dataclass(frozen=True)
class LocatingProblem:
    """The n projected rows of a group, of which at most t are lies that are to be found.

    Rows are numbered 0..n-1. Erased slots have been removed.

    Attributes
    ----------
    generator : (n, k) float64
        The generator's rows of these slots.
    projected : (n, q) float64
        Their projected shares B.
    points, multipliers : (n,) float64 or complex128
        multipliers[j] * (generator[j] @ X) is a polynomial of degree < k at points[j].
    max_errors : int
        t, with n - k >= 2 t.
    tolerance : float
        Residuals up to here are noise.
    """

    generator: FloatArray
    projected: FloatArray
    points: ComplexArray
    multipliers: ComplexArray
    max_errors: int
    tolerance: float

    @cached_property
    def parity(self) -> FloatArray:
        """H for these rows, (n - k, n), with orthonormal rows and H @ generator = 0."""
        return parity_of(self.generator)

    @property
    def num_supports(self) -> int:
        """The number of supports of t rows among n."""
        return math.comb(len(self.generator), self.max_errors)

    def residuals(self, supports: IntArray) -> FloatArray:
        """Return, for (N, a) supports, the (N,) norms of the disagreement among the rows outside of each.

        That is the distance of H B from the column space of H[:, support]. The product leaves out the rows of the
        support, so that their rounding errors can't hide a disagreement of the others, however large these rows are.
        """
        if supports.shape[1] == 0:
            return np.full(len(supports), np.linalg.norm(self.parity @ self.projected))
        return np.concatenate(
            [
                _residuals(self.parity, self.projected, part)
                for part in np.array_split(supports, 1 + len(supports) // CHUNK)
            ]
        )

    def deviations(self, support: Support) -> FloatArray:
        """Return the norm of each support row's deviation from the solution of the other rows."""
        kept = np.delete(np.arange(len(self.generator)), support)
        solution = np.linalg.pinv(self.generator[kept]) @ self.projected[kept]
        return np.asarray(
            np.linalg.norm(self.projected[list(support)] - self.generator[list(support)] @ solution, axis=1)
        )

    def residual(self, support: Support) -> float:
        """Return the norm of the disagreement among the rows outside of the support."""
        return float(self.residuals(np.array([support], dtype=np.int64))[0])


class Locator(Protocol):
    """Names the rows that lie. The decoder checks the remaining rows in any case."""

    def locate(self, problem: LocatingProblem) -> Support:
        """Return the rows that seem to be lies, at most `problem.max_errors`, in ascending order."""


def can_try_all(num_rows: int, num_checks: int, size: int) -> bool:
    """Return whether `explaining_supports` may be called: it keeps C(n, a) (n - k) (n - k - a) numbers for each H."""
    return math.comb(num_rows, size) * num_checks * (num_checks - size) <= MAX_NUMBERS


def explaining_supports(
    parity: FloatArray, rows: FloatArray, size: int, threshold: float
) -> tuple[IntArray, FloatArray]:
    """Return all supports of this size without which the rows disagree by no more than the threshold.

    Parameters
    ----------
    parity : (n - k, n) float64
        H for the rows, with orthonormal rows.
    rows : (n, any) float64
        The rows, or a square root of their Gram matrix.

    Returns
    -------
    supports, residuals : (N, size) int64, (N,) float64
        The supports in the order of `itertools.combinations`, and their residuals.

    Notes
    -----
    Cost: n - k multiply-adds for each of the numbers that `can_try_all` counts, and some 20 ns per number for a new H.
    The last eight H are cached, at most 16 MB each. At r = 20, s = 5, k = 10 there are 775,200 numbers, which take 5
    ms, and 15 ms for a new H.
    """
    supports, complements = _all_supports(parity.tobytes(), parity.shape[1], size)
    syndromes = parity @ rows
    if syndromes.shape[1] > syndromes.shape[0]:  # rotate from the right, which preserves every residual
        syndromes = np.linalg.qr(syndromes.T).R.T
    residuals = _norms(complements @ syndromes)
    rounding = ROUNDING * float(np.linalg.norm(syndromes))
    explain = np.flatnonzero(residuals <= threshold + rounding)
    if rounding < threshold / 100:
        explain = explain[residuals[explain] <= threshold]
        return supports[explain], residuals[explain]
    exact = np.concatenate(
        [
            _norms(_without(complements[part], parity, supports[part]) @ rows)
            for part in np.array_split(explain, 1 + len(explain) // CHUNK)
        ]
    )
    return supports[explain[exact <= threshold]], exact[exact <= threshold]


def parity_of(generator: FloatArray) -> FloatArray:
    """Return H, (n - k, n), with orthonormal rows and H @ generator = 0."""
    complete = np.linalg.qr(generator, mode="complete").Q
    return np.ascontiguousarray(complete[:, generator.shape[1] :].T)


def _residuals(parity: FloatArray, rows: FloatArray, supports: IntArray) -> FloatArray:
    """Return, for (N, a) supports, a >= 1, the (N,) norms of the disagreement among the rows outside of each."""
    columns = parity.T[supports].transpose(0, 2, 1)
    complements = np.linalg.qr(columns, mode="complete").Q[:, :, supports.shape[1] :].transpose(0, 2, 1)
    return _norms(_without(complements, parity, supports) @ rows)


def _without(complements: FloatArray, parity: FloatArray, supports: IntArray) -> FloatArray:
    """Return C H for each C, with exact zeros for the rows of its support, so that they can't add rounding errors."""
    checks: FloatArray = complements @ parity
    np.put_along_axis(checks, supports[:, None, :], 0, axis=2)
    return checks


def _norms(vectors: FloatArray) -> FloatArray:
    """Return the norms of N matrices. Norms are never subtracted."""
    squares: FloatArray = np.einsum("ijk,ijk->i", vectors, vectors)
    return np.sqrt(squares)


@lru_cache(maxsize=8)
def _all_supports(parity: bytes, num_rows: int, size: int) -> tuple[IntArray, FloatArray]:
    """Return every support of this size, (N, a), and orthonormal rows that span the complement of each H[:, support].

    The supports grow by one column at a time, those with a common beginning together. A Householder reflection maps
    the new column to the first coordinate, and the other coordinates remain.
    """
    columns = np.frombuffer(parity, dtype=np.float64).reshape(-1, num_rows).T
    supports = np.zeros((1, 0), dtype=np.int64)
    complements = np.eye(columns.shape[1])[None]
    for length in range(1, size + 1):
        first = supports[:, -1] + 1 if length > 1 else np.zeros(1, dtype=np.int64)
        counts = num_rows - (size - length) - first
        parents = np.repeat(np.arange(len(supports)), counts)
        rows = np.arange(len(parents)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        mirror = (complements[parents] @ columns[rows][:, :, None])[:, :, 0]
        mirror[:, 0] += np.copysign(np.linalg.norm(mirror, axis=1), mirror[:, 0])
        mirror /= np.linalg.norm(mirror, axis=1, keepdims=True)
        reflected = mirror[:, None, :] @ complements[parents]
        complements = complements[parents, 1:] - 2 * mirror[:, 1:, None] * reflected
        supports = np.concatenate([supports[parents], rows[:, None]], axis=1)
    return supports, complements
