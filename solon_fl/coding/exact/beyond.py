"""Beyond (n - k) / 2 wrong shares: which shares support a gradient that k + 1 of them agree with."""

from collections.abc import Sequence
from math import comb

import numpy as np
from torch import Tensor

from solon_fl.coding.subsets import MAX_SETS, blocks_of_sets

from .code import ExactCode
from .field import FieldArray, P, inverse

__all__ = ["only_supporting_rows"]

MAX_PRODUCTS = 800_000_000  # in all sets: tried in some seconds
BLOCK = 2**14  # columns that are combined at once
NUM_WORDS = 2  # random combinations of the columns: a lie is 0 in both with probability 2^-63


def only_supporting_rows(
    code: ExactCode, slots: list[int], rows: Sequence[Tensor], random: np.random.Generator
) -> set[int] | None:
    """Return the slots in any set of k + 1 shares that agree with each other.

    None if there is none, or if there are too many sets to try. Whether they all agree, so that there is one such
    gradient only, has to be checked still.

    Parameters
    ----------
    slots : list of n int
        Ascending.
    rows : sequence of n Tensors, (m,) int32
        The shares' bits, all of them numbers of the field.
    random : np.random.Generator
        Draws what the columns are combined with.

    Notes
    -----
    Cost: 2 n m products, and (k + 1)^2 for each of the C(n, k + 1) sets.
    """
    size = code.compression + 1
    number = comb(len(slots), size)
    if not 0 < number <= min(MAX_SETS, MAX_PRODUCTS // size**2):
        return None
    words, inverses = _combinations(rows, random), _inverse_differences(code.points[slots])
    supporting: set[int] = set()
    for sets in blocks_of_sets(len(slots), size):
        weights = _check_weights(sets, inverses)
        agree = np.ones(len(sets), dtype=bool)
        for word in words:
            agree &= (weights * word[sets] % P).sum(axis=1) % P == 0
        supporting.update(np.unique(sets[agree]).tolist())
    return {slots[row] for row in supporting} or None


def _combinations(rows: Sequence[Tensor], random: np.random.Generator) -> FieldArray:
    """Return random combinations of the columns over the field, (2, n)."""
    words = np.zeros((NUM_WORDS, len(rows)), dtype=np.uint64)
    for start in range(0, rows[0].numel(), BLOCK):
        width = min(BLOCK, rows[0].numel() - start)
        factors = random.integers(P, size=(NUM_WORDS, width), dtype=np.uint64)
        for number, row in enumerate(rows):
            bits = row[start : start + width].cpu().numpy().astype(np.int64) % P
            words[:, number] += (factors * bits.astype(np.uint64) % P).sum(axis=1) % P
    return words % P


def _inverse_differences(points: FieldArray) -> FieldArray:
    """Return 1 / (x_i - x_j), (n, n), with 1 in place of the diagonal."""
    differences = (points[:, None] + (P - points)[None, :]) % P
    np.fill_diagonal(differences, 1)
    return inverse(differences)


def _check_weights(sets: np.ndarray, inverses: FieldArray) -> FieldArray:
    """Return, for (N, k + 1) rows, the weights of their divided difference."""
    weights = np.ones(sets.shape, dtype=np.uint64)
    for place in range(sets.shape[1]):
        weights = weights * inverses[sets, sets[:, place : place + 1]] % P
    return weights
