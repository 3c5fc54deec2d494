"""How much a code can amplify undetected errors: the constant behind every error bound.

If honest shares are off by delta, the gradient recovered from the rows S is off by at most delta / sigma_min(G[S]). The
worst S determines what a code can guarantee.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations, islice

import numpy as np
import torch

from solon_fl.coding._types import ComplexArray, FloatArray, IntArray

from .locating import parity_of

__all__ = ["lagrange_bound", "worst_amplification"]

MAX_COST = 1e9  # multiply-adds of an exact search, some 0.5 s; costlier cases get an upper bound instead
COST_OF_A_SET = 2000  # fixed cost of one set, in multiply-adds, whatever the size of its matrix
BLOCK_BYTES = 2**21  # bytes of the matrices processed at once
RELIABLE = 1e6  # bounds up to here have 4 correct digits, although they come from a Gram matrix


@lru_cache(maxsize=256)
def worst_amplification(generator: bytes, group_size: int, num_rows: int, cyclic: bool) -> float:
    """Return the largest 1 / sigma_min(G[S]) over all S of num_rows rows; inf if the search would exceed MAX_COST.

    Parameters
    ----------
    generator : bytes
        The (r, k) float64 generator, row by row (as bytes, so that the result can be cached).
    group_size : int
        r, the number of rows of the generator.
    num_rows : int
        Number of rows that are left, from k to r.
    cyclic : bool
        Whether rotating the slots preserves all singular values, as in the Fourier code. Then only the sets that
        contain slot 0 need to be searched.

    Notes
    -----
    If G has orthogonal columns of equal norm g (as in the Fourier code), [G / g, H^T] is an orthogonal matrix. By its
    CS decomposition, sigma_min(G[S]) = g sigma_min(H[:, T]), where T are the r - num_rows rows left out. For k near r
    that matrix has a few rows instead of k. The smaller of the two matrices is used.

    Cost: one inverse of such a matrix per set, at most MAX_COST in all. Memory: some 10 times BLOCK_BYTES.
    """
    rows = np.frombuffer(generator, dtype=np.float64).reshape(group_size, -1)
    compression = rows.shape[1]
    norm = _common_norm(rows)
    if norm and num_rows == group_size:
        return 1 / norm
    if _search_cost(group_size, compression, num_rows, orthogonal=norm > 0, cyclic=cyclic) > MAX_COST:
        return math.inf
    by_rest = norm > 0 and _takes_rest(group_size, compression, num_rows)
    vectors, scale = (np.ascontiguousarray(parity_of(rows).T), norm) if by_rest else (rows, 1.0)
    worst = 0.0
    for sets in _blocks_of_sets(group_size, group_size - num_rows if by_rest else num_rows, vectors.shape[1], cyclic):
        matrices = vectors[sets]
        bounds = _inverse_bounds(matrices if matrices.shape[1] >= matrices.shape[2] else matrices.transpose(0, 2, 1))
        # Start with the largest bound: few other bounds exceed its true value. NaN counts as exceeding it.
        worst = max(worst, _inverse_norm(matrices[np.nan_to_num(bounds, nan=math.inf).argmax()][None]))
        threshold = np.where(bounds < RELIABLE, 0.99, 0.5) * worst
        candidates = matrices[~(bounds < threshold)]
        if len(candidates):
            worst = max(worst, _inverse_norm(candidates))
    return worst / scale


def _search_cost(group_size: int, compression: int, num_rows: int, *, orthogonal: bool, cyclic: bool) -> float:
    """Estimate the multiply-adds of an exact search: one inverse per set."""
    rest = group_size - num_rows
    by_rest = orthogonal and _takes_rest(group_size, compression, num_rows)
    long, short = (group_size - compression, rest) if by_rest else (num_rows, compression)
    fixed = int(cyclic and rest > 0)
    num_sets = math.comb(group_size - fixed, min(num_rows, rest) - fixed)
    return num_sets * (COST_OF_A_SET + float(long + 2 * short) * short**2)


def _takes_rest(group_size: int, compression: int, num_rows: int) -> bool:
    """Return whether the matrices of the rows left out are smaller than those of the rows kept."""
    return (group_size - compression) * (group_size - num_rows) ** 2 < num_rows * compression**2


def _common_norm(rows: FloatArray) -> float:
    """Return the common norm of the columns, or 0 if they are not orthogonal and of equal norm."""
    gram = rows.T @ rows
    square = float(gram[0, 0])
    return math.sqrt(square) if np.abs(gram - square * np.eye(len(gram))).max() <= 1e-12 * square else 0.0


def _blocks_of_sets(group_size: int, size: int, width: int, cyclic: bool) -> Iterator[IntArray]:
    """Yield all sets of slots in blocks, (N, size); if `cyclic`, at least one of all rotations of each set.

    The smaller of a set and its complement is enumerated. If `cyclic`, it always contains slot 0, so there are fewer.
    """
    least = min(size, group_size - size)
    fixed = [0] if cyclic and least else []
    rest = combinations(range(len(fixed), group_size), least - len(fixed))
    length = max(1, BLOCK_BYTES // (8 * max(size * width, group_size)))
    while block := list(islice(rest, length)):
        sets = np.zeros((len(block), least), dtype=np.int64)
        sets[:, len(fixed) :] = np.array(block, dtype=np.int64).reshape(len(block), -1)
        if least < size:
            outside = np.ones((len(sets), group_size), dtype=bool)
            np.put_along_axis(outside, sets, False, axis=1)
            sets = np.nonzero(outside)[1].reshape(len(sets), size)
        yield sets


def _inverse_norm(matrices: FloatArray) -> float:
    """Return the largest 1 / sigma_min of (N, a, b) matrices."""
    smallest = float(np.linalg.svd(matrices, compute_uv=False)[:, -1].min())
    return 1 / smallest if smallest > 0 else math.inf


def _inverse_bounds(matrices: FloatArray) -> FloatArray:
    """Return an upper bound on 1 / sigma_min of (N, a, k) matrices, a >= k, too large by at most a factor k^(1/4).

    The bound is the 4-norm of the singular values of the pseudo-inverse, which equals ``|(A^T A)^-1|_F^(1/2)``.
    """
    batch = torch.from_numpy(matrices)
    if batch.shape[1] == batch.shape[2]:
        inverse = torch.linalg.inv_ex(batch).inverse
        gram_inverse = inverse @ inverse.mT
    else:
        gram_inverse = torch.linalg.inv_ex(batch.mT @ batch).inverse
    return np.asarray(torch.linalg.matrix_norm(gram_inverse).sqrt().numpy(), dtype=np.float64)


def lagrange_bound(points: ComplexArray, multipliers: ComplexArray, num_rows: int) -> float:
    """Return an upper bound on 1 / sigma_min(G[S]) that holds for every S of at least k = num_rows rows.

    Row j of the code times multipliers[j] evaluates, at points[j], a polynomial of k coefficients that have the same
    norm as the message. The inverse of k such rows holds the coefficients of the Lagrange polynomials. The sum of their
    moduli is at most ``prod_i (1 + |x_i|) / |x_j - x_i|`` (Gautschi 1962). Taking the k - 1 largest factors for every j
    covers every S at once.
    """
    distance = np.abs(points[:, None] - points[None, :])
    np.fill_diagonal(distance, np.inf)
    factors = np.sort((1 + np.abs(points))[None, :] / distance, axis=1)[:, ::-1]
    row_bounds = np.abs(multipliers) * factors[:, : num_rows - 1].prod(axis=1)
    return float(np.sqrt(np.sort(row_bounds**2)[-num_rows:].sum()))
