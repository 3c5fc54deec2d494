"""What every locator is given, and the residual by which any support is judged."""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from typing import Protocol

import numpy as np

from ._types import ComplexArray, FloatArray, IntArray

__all__ = ["LocatingProblem", "Locator", "Support", "explaining_supports", "parity_of"]

Support = tuple[int, ...]
CHUNK = 4096  # supports judged at once


@dataclass(frozen=True)
class LocatingProblem:
    """The n rows of a group that arrived, projected; find the at most t of them that are lies.

    Rows are numbered 0..n-1 here; slots that are erased have been taken out.

    Attributes
    ----------
    generator : (n, k) float64
        The generator's rows of those slots.
    projected : (n, q) float64
        Their projected shares B.
    points, multipliers : (n,) float64 or complex128
        multipliers[j] * (generator[j] @ X) is a polynomial of degree < k at points[j].
    max_errors : int
        t, with n - k >= 2 t.
    tolerance : float
        A residual up to here is noise.
    """

    generator: FloatArray
    projected: FloatArray
    points: ComplexArray
    multipliers: ComplexArray
    max_errors: int
    tolerance: float

    @cached_property
    def parity(self) -> FloatArray:
        """H of these rows: (n - k, n), orthonormal rows, H @ generator = 0."""
        return parity_of(self.generator)

    @cached_property
    def syndromes(self) -> FloatArray:
        """S = H B, (n - k, min(q, n - k)): rotated on the right, which leaves every residual as it is."""
        syndromes = self.parity @ self.projected
        if syndromes.shape[1] > syndromes.shape[0]:
            syndromes = np.linalg.qr(syndromes.T).R.T
        return syndromes

    @property
    def num_supports(self) -> int:
        """Supports of t rows among n."""
        return math.comb(len(self.generator), self.max_errors)

    def residuals(self, supports: IntArray) -> FloatArray:
        """Return, for (N, a) supports, the (N,) norms of what the rows outside each disagree by.

        That is the distance of S from the column space of H[:, support]. Norms are never subtracted.
        """
        if supports.shape[1] == 0:
            return np.full(len(supports), np.linalg.norm(self.syndromes))
        return np.concatenate(
            [
                _distances(_complements(self.parity.T[part]), self.syndromes)
                for part in np.array_split(supports, 1 + len(supports) // CHUNK)
            ]
        )

    def residual(self, support: Support) -> float:
        """Return the norm of what the rows outside the support disagree by."""
        return float(self.residuals(np.array([support], dtype=np.int64))[0])

    def all_residuals(self) -> tuple[IntArray, FloatArray]:
        """Return every support of t rows, (N, t), and their residuals, (N,)."""
        supports, complements = _all_supports(self.parity.tobytes(), self.parity.shape[1], self.max_errors)
        return supports, _distances(complements, self.syndromes)


class Locator(Protocol):
    """Names the rows that lie; whatever it says, the decoder checks the rows that remain."""

    def locate(self, problem: LocatingProblem) -> Support:
        """Return the rows held to be lies, at most problem.max_errors, in ascending order."""


def explaining_supports(parity: FloatArray, syndromes: FloatArray, size: int, threshold: float) -> IntArray:
    """Return the supports, (N, size), without which the rows disagree by no more than the threshold.

    Parameters
    ----------
    parity : (n - k, n) float64
        H of the rows, orthonormal.
    syndromes : (n - k, any) float64
        H times the rows, or a square root of its Gram matrix.
    """
    supports, complements = _all_supports(parity.tobytes(), parity.shape[1], size)
    return supports[_distances(complements, syndromes) <= threshold]


def parity_of(generator: FloatArray) -> FloatArray:
    """Return H, (n - k, n), with orthonormal rows and H @ generator = 0."""
    complete = np.linalg.qr(generator, mode="complete").Q
    return np.ascontiguousarray(complete[:, generator.shape[1] :].T)


def _distances(complements: FloatArray, syndromes: FloatArray) -> FloatArray:
    """Return |C S| for each C of (N, n - k - a, n - k)."""
    outside = complements @ syndromes
    squares: FloatArray = np.einsum("ijk,ijk->i", outside, outside)
    return np.sqrt(squares)


def _complements(columns: FloatArray) -> FloatArray:
    """Return, for (N, a, n - k) sets of columns of H, orthonormal rows that span all they do not."""
    complete = np.linalg.qr(columns.transpose(0, 2, 1), mode="complete").Q
    return np.ascontiguousarray(complete[:, :, columns.shape[1] :].transpose(0, 2, 1))


@lru_cache(maxsize=16)
def _all_supports(parity: bytes, num_rows: int, size: int) -> tuple[IntArray, FloatArray]:
    """Return every support of that size, (N, a), and the complement of H[:, support] for each."""
    columns = np.frombuffer(parity, dtype=np.float64).reshape(-1, num_rows).T
    supports = np.array(list(combinations(range(num_rows), size)), dtype=np.int64)
    chunks = [supports[i : i + CHUNK] for i in range(0, len(supports), CHUNK)]
    return supports, np.concatenate([_complements(columns[chunk]) for chunk in chunks])
