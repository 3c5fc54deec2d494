"""Beyond (n - k) / 2 lies: which rows support a gradient that k + 1 rows agree with.

See docs/explanation/beyond-the-bound.md for what can be concluded if there is one such gradient only.
"""

import math
from dataclasses import replace

import numpy as np
from torch import Tensor

from solon_fl.coding._types import ComplexArray, FloatArray, IntArray
from solon_fl.coding.decoded import ClassOutcome, Decoded, DecodeStatus
from solon_fl.coding.sections import Sections
from solon_fl.coding.subsets import MAX_SETS, blocks_of_sets

from .amplification import worst_amplification
from .code import RealCode
from .projection import NOISE_MARGIN
from .solving import least_squares

__all__ = ["can_try_all_sets", "only_supported_gradient", "supporting_rows"]


def only_supported_gradient(
    code: RealCode,
    slots: list[int],
    projected: FloatArray,
    noise: FloatArray,
    rows: list[Tensor],
    dim: int,
    sections: Sections,
) -> Decoded | None:
    """Return the only gradient that k + 1 or more rows agree with.

    None if there is none, more than one, or none that leaves a row out; or if there are too many sets to try.

    Parameters
    ----------
    slots : list of n int
        Of the rows, which are finite.
    projected : (K, n, q) float64
        The projected rows, by class.
    noise : (K, n) float64
        What an honest row of each row's norm may be off by.
    rows : list of n Tensors, (m,)
        The shares.
    dim : int
        d.
    sections : Sections
        The tensors.
    """
    compression = code.compression
    if not can_try_all_sets(len(slots), compression):
        return None
    # Honest noise is relative to the k-th smallest norm: of k + 1 rows, the second largest.
    limits = NOISE_MARGIN * math.sqrt(compression + 1) * noise
    supporting = supporting_rows(code.points[slots], code.multipliers[slots], projected, compression, limits)
    if not supporting or len(supporting) == len(slots):
        return None
    tolerance = math.sqrt(len(supporting)) * np.sort(noise[:, supporting], axis=1)[:, -2]
    support = tuple(row for row in range(len(slots)) if row not in supporting)
    solution = least_squares(code.generator[slots], support, rows, dim, sections)
    if not solution.fits(tolerance):  # not one gradient but several
        return None
    kept = [slots[row] for row in supporting]
    amplification = worst_amplification(code.generator[kept].tobytes(), len(kept), compression + 1, False)
    if not amplification < math.inf:
        amplification = code.worst_amplification(compression + 1)
    by_class = sections.norms_by_class
    residual = by_class(solution.residual)
    bound = amplification * (residual + tolerance) + by_class(solution.rounding)
    decoded = Decoded.of_classes(
        ClassOutcome.of_arrays(sections.names, by_class(solution.norms), residual, tolerance, bound),
        gradient=solution.gradient,
        status=DecodeStatus.BEYOND_BOUND,
        num_agreeing=len(kept),
    )
    return replace(decoded, suspect_slots=tuple(slots[row] for row in support))


def can_try_all_sets(num_rows: int, compression: int) -> bool:
    """Whether the sets of k + 1 rows are few enough to look at all of them."""
    return math.comb(num_rows, compression + 1) <= MAX_SETS


def supporting_rows(
    points: ComplexArray, multipliers: ComplexArray, projected: FloatArray, compression: int, tolerances: FloatArray
) -> list[int]:
    """Return the rows that are in any set of k + 1 rows that agree with each other, ascending.

    Parameters
    ----------
    points, multipliers : (n,) float64 or complex128
        multipliers[j] * (row j of the generator @ X) is a polynomial of degree < k at points[j].
    projected : (K, n, q) float64
        The projected shares, by class.
    compression : int
        k < n.
    tolerances : (K, n) float64
        What a set may disagree by in which row j has the second largest of these.

    Notes
    -----
    Cost: n (n + q) multiply-adds for each of the C(n, k + 1) sets. Sets are looked at by themselves, so that
    however large a lie is, the sets without it are judged as if it was not there.
    """
    supporting = np.zeros(len(points), dtype=bool)
    for sets in blocks_of_sets(len(points), compression + 1):
        checks = _checks(points, multipliers, sets)
        agree = np.ones(len(sets), dtype=bool)
        for of_class, tolerance in zip(projected, tolerances, strict=True):
            limit = np.partition(tolerance[sets], -2, axis=1)[:, -2]
            agree &= np.linalg.norm(checks @ of_class, axis=1) <= limit
        supporting[sets[agree]] = True
    return [int(row) for row in np.flatnonzero(supporting)]


def _checks(points: ComplexArray, multipliers: ComplexArray, sets: IntArray) -> FloatArray:
    """Return, for (N, k + 1) sets of rows, the unit vectors c, (N, n), zero outside the set, with c @ generator = 0.

    The k-th divided difference of a polynomial of degree < k vanishes: sum_j p(x_j) / prod_i (x_j - x_i) = 0, i != j
    in the set. The sum has one phase, as the generator is real.
    """
    members = np.zeros((len(sets), len(points)))
    np.put_along_axis(members, sets, 1.0, axis=1)
    differences = points[:, None] - points[None, :]
    np.fill_diagonal(differences, 1)
    logs = np.log(differences.astype(np.complex128))
    sizes = np.take_along_axis(np.log(np.abs(multipliers)) - members @ logs.real.T, sets, axis=1)
    phases = np.take_along_axis(np.angle(multipliers) - members @ logs.imag.T, sets, axis=1)
    weights = np.exp(sizes - sizes.max(axis=1, keepdims=True)) * np.sign(np.cos(phases - phases[:, :1]))
    checks: FloatArray = np.zeros_like(members)
    np.put_along_axis(checks, sets, weights / np.linalg.norm(weights, axis=1, keepdims=True), axis=1)
    return checks
