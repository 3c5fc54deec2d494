"""Locating lies in one word of a Reed-Solomon code, by the Berlekamp-Massey algorithm."""

import numpy as np

from .field import FieldArray, P, dual_multipliers, inverse

__all__ = ["lying_places"]


def lying_places(word: FieldArray, points: FieldArray, compression: int) -> list[int] | None:
    """Return the positions where a word differs from the codeword within (n - k) // 2 positions of it.

    Parameters
    ----------
    word : (n,) uint64
        Values of a polynomial of degree < k over the field, apart from errors.
    points : (n,) uint64
        The points at which the polynomial is evaluated: distinct and not 0.
    compression : int
        k, the number of coefficients of the polynomial.

    Returns
    -------
    list of int, ascending, or None
        None if there is no such codeword.

    Notes
    -----
    Cost: (n - k) (2 n - k) products. Guarantee: with at most (n - k) // 2 errors the answer is right. With more it is
    None, or the positions where the word differs from another codeword that is that close.
    """
    syndromes = _syndromes(word, points, len(word) - compression)
    locator = _shortest_recurrence(syndromes)
    degree = len(locator) - 1
    if degree > len(syndromes) // 2:
        return None
    values = np.zeros_like(points)
    reciprocals = inverse(points)
    for coefficient in locator[::-1]:
        values = (values * reciprocals + coefficient) % P
    places = np.flatnonzero(values == 0).tolist()
    return places if len(places) == degree else None


def _syndromes(word: FieldArray, points: FieldArray, count: int) -> FieldArray:
    """Return sum_j u_j x_j^i y_j for i < n - k. All are 0 for a codeword."""
    terms = dual_multipliers(points) * word % P
    found = np.zeros(count, dtype=np.uint64)
    for number in range(count):
        found[number] = terms.sum() % P  # no overflow: n numbers below 2^32
        terms = terms * points % P
    return found


def _shortest_recurrence(sequence: FieldArray) -> FieldArray:
    """Return the shortest c with c[0] = 1 and sum_i c[i] sequence[n - i] = 0 for all n >= len(c) - 1."""
    size = len(sequence) + 2
    current, previous = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    current[0] = previous[0] = 1
    length, gap, last = 0, 1, 1
    for number in range(len(sequence)):
        window = sequence[number - length : number + 1][::-1]
        discrepancy = int((current[: length + 1] * window % P).sum() % P)
        if discrepancy == 0:
            gap += 1
            continue
        factor = np.uint64(P - discrepancy * pow(last, -1, P) % P)
        shifted = np.zeros(size, np.uint64)
        shifted[gap:] = previous[: size - gap]
        better = (current + factor * shifted) % P
        if 2 * length <= number:
            length, previous, last, gap = number + 1 - length, current, discrepancy, 1
        else:
            gap += 1
        current = better
    return current[: length + 1]
