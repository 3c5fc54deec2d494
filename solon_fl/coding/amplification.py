"""How much a code can enlarge what it was not told: the constant behind every error bound.

If honest shares are off by delta, a gradient recovered from the rows S of them is off by at most
delta / sigma_min(G[S]). The worst S decides what a code can promise.
"""

import math
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch

from ._types import ComplexArray, FloatArray

__all__ = ["lagrange_bound", "worst_amplification"]

MAX_SUBSETS = 120_000  # enumerated exactly up to here (a fraction of a second), bounded from above beyond


@lru_cache(maxsize=256)
def worst_amplification(generator: bytes, group_size: int, num_rows: int, cyclic: bool) -> float:
    """Return max over S, |S| = num_rows, of 1 / sigma_min(G[S]); inf where S are too many to look at all.

    Parameters
    ----------
    generator : bytes
        The (r, k) float64 generator, row by row (as bytes, so that the answer can be cached).
    group_size : int
        r.
    num_rows : int
        Rows that are left, from k to r.
    cyclic : bool
        Whether rotating the slots leaves every singular value as it is (true of the Fourier code): then
        only the sets that hold slot 0 need be looked at.
    """
    rows = np.frombuffer(generator, dtype=np.float64).reshape(group_size, -1)
    first = [0] if cyclic else []
    if math.comb(group_size - len(first), num_rows - len(first)) > MAX_SUBSETS:
        return math.inf
    rest = combinations(range(len(first), group_size), num_rows - len(first))
    subsets = np.array([first + list(other) for other in rest])
    parts = np.array_split(subsets, max(1, len(subsets) // 20_000))
    # |pinv|_F / sqrt(k) <= 1 / sigma_min <= |pinv|_F: the cheap Frobenius norm leaves few for the SVD.
    frobenius = np.concatenate([_pinv_frobenius(rows[part]) for part in parts])
    threshold = 0.5 * np.nanmax(frobenius) / math.sqrt(rows.shape[1])
    candidates = subsets[~(frobenius < threshold)]  # written so that a NaN stays in
    smallest = float(np.linalg.svd(rows[candidates], compute_uv=False)[:, -1].min())
    return 1 / smallest if smallest > 0 else math.inf


def _pinv_frobenius(matrices: FloatArray) -> FloatArray:
    """Return the Frobenius norms of the pseudo-inverses of (N, a, k) matrices, a >= k."""
    batch = torch.from_numpy(matrices)
    if batch.shape[1] == batch.shape[2]:
        inverse = torch.linalg.inv_ex(batch).inverse
        return np.asarray(torch.linalg.matrix_norm(inverse).numpy(), dtype=np.float64)
    gram_inverse = torch.linalg.inv_ex(batch.mT @ batch).inverse
    trace = gram_inverse.diagonal(dim1=-2, dim2=-1).sum(-1)
    return np.asarray(trace.abs().sqrt().numpy(), dtype=np.float64)


def lagrange_bound(points: ComplexArray, multipliers: ComplexArray, num_rows: int) -> float:
    """Return an upper bound on 1 / sigma_min(G[S]) that holds for every S of at least k = num_rows rows.

    Row j of the code times multipliers[j] evaluates a polynomial of k coefficients, of the same norm as
    the message, at points[j]. The inverse of k such rows holds the coefficients of Lagrange's
    polynomials, whose sum of moduli is at most prod_i (1 + |x_i|) / |x_j - x_i| (Gautschi 1962); taking for
    every j the k - 1 largest factors covers every S at once.
    """
    distance = np.abs(points[:, None] - points[None, :])
    np.fill_diagonal(distance, np.inf)
    factors = np.sort((1 + np.abs(points))[None, :] / distance, axis=1)[:, ::-1]
    row_bounds = np.abs(multipliers) * factors[:, : num_rows - 1].prod(axis=1)
    return float(np.sqrt(np.sort(row_bounds**2)[-num_rows:].sum()))
