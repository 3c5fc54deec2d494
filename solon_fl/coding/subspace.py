"""Subspace locating: the default where there are too many supports to try them all."""

import numpy as np

from ._types import ComplexArray
from .locating import LocatingProblem, Support

__all__ = ["SubspaceLocator", "power_syndromes"]

MAX_SWEEPS = 50
WORTHWHILE = 0.7  # a swap must lower the residual to this part of it: less is fitting noise


class SubspaceLocator:
    """Finds the lies from the null space of the stacked Hankel matrices of the syndromes.

    For t assumed lies the syndromes S_p = sum_j u_j x_j^p b_j of every projection obey one recurrence,
    whose coefficients are the locator polynomial: the right singular vector of the smallest singular value
    of all Hankel matrices stacked. The t rows at whose points it is smallest are proposed. Then rows are
    exchanged one by one as long as that lowers the residual of the others, which mends what noise did
    to the roots.

    Notes
    -----
    Guarantee: none of its own; the decoder checks the rows that remain.
    Cost: t SVDs of (q (n - k - t), t + 1) matrices, then a few sweeps over t (n - t) supports.
    Differs from the paper: that uses rational interpolation on real nodes (`RationalLocator`).

    References
    ----------
    Peterson 1960 and Schmidt & Sidorenko 2006 for the stacked key equation, over the complex field.
    """

    def locate(self, problem: LocatingProblem) -> Support:
        """Return the best t rows found."""
        syndromes = power_syndromes(problem)
        best: Support = ()
        best_residual = np.inf
        # The full t first: with fewer lies its null space is larger, and any vector of it will do.
        for size in range(problem.max_errors, 0, -1):
            proposed = _fill_up(problem, _hankel_support(problem, syndromes, size))
            support, residual = _exchange(problem, proposed)
            if residual < best_residual:
                best, best_residual = support, residual
            if best_residual <= problem.tolerance:
                break
        return best


def power_syndromes(problem: LocatingProblem) -> ComplexArray:
    """Return S_p = sum_j u_j x_j^p b_j, (n - k, q): zero for honest rows, because the dual code is of
    the same kind, with u_j = v_j / prod_{i != j} (x_j - x_i).
    """
    points = problem.points
    difference = points[:, None] - points[None, :]
    np.fill_diagonal(difference, 1)
    dual_multipliers = problem.multipliers / difference.prod(axis=1)
    powers = points[None, :] ** np.arange(len(points) - problem.generator.shape[1])[:, None]
    result: ComplexArray = (powers * dual_multipliers) @ problem.projected
    return result


def _hankel_support(problem: LocatingProblem, syndromes: ComplexArray, size: int) -> Support:
    num_syndromes = len(syndromes)
    index = np.arange(num_syndromes - size)[:, None] + np.arange(size + 1)[None, :]
    hankel = syndromes[index].transpose(0, 2, 1).reshape(-1, size + 1)
    coefficients = np.linalg.svd(hankel, full_matrices=False)[2][-1].conj()  # of the locator polynomial, lowest first
    values = np.abs(problem.points[:, None] ** np.arange(size + 1) @ coefficients)
    return tuple(sorted(np.argsort(values)[:size].tolist()))


def _fill_up(problem: LocatingProblem, support: Support) -> Support:
    """Add the row whose removal helps most until there are t."""
    while len(support) < problem.max_errors:
        others = [row for row in range(len(problem.points)) if row not in support]
        larger = np.array([sorted((*support, row)) for row in others], dtype=np.int64)
        support = tuple(larger[problem.residuals(larger).argmin()].tolist())
    return support


def _exchange(problem: LocatingProblem, support: Support) -> tuple[Support, float]:
    """Swap one row in for one out, the best pair first, until no swap lowers the residual."""
    residual = problem.residual(support)
    for _ in range(MAX_SWEEPS):
        others = [row for row in range(len(problem.points)) if row not in support]
        swaps = [sorted({*support, row} - {out}) for out in support for row in others]
        if not swaps:
            break
        neighbours = np.array(swaps, dtype=np.int64)
        residuals = problem.residuals(neighbours)
        if residuals.min() > WORTHWHILE * residual:
            break
        residual = float(residuals.min())
        support = tuple(neighbours[residuals.argmin()].tolist())
    return support, residual
