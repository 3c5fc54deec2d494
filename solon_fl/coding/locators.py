"""The locators: exhaustive search, subspace locating and the paper's rational interpolation.

By default the decoder takes `ExhaustiveLocator` while it can try all supports, else `SubspaceLocator`.
"""

import numpy as np

from ._types import ComplexArray
from .locating import LocatingProblem, Locator, Support

__all__ = ["ExhaustiveLocator", "RationalLocator", "SubspaceLocator", "locate_rows", "power_syndromes"]

MAX_SWEEPS = 50
WORTHWHILE = 0.7  # a swap must lower the residual to this part of it: less is fitting noise


def locate_rows(locator: Locator | None, problem: LocatingProblem) -> Support | None:
    """Return rows without which the others agree, none of them needless, or None if t rows are not enough."""
    if problem.residual(()) <= problem.tolerance:
        return ()
    if problem.max_errors == 0:
        return None
    if locator is None:
        exhaustive = ExhaustiveLocator()
        locator = exhaustive if exhaustive.can_try_all(problem) else SubspaceLocator()
    support = tuple(sorted(set(locator.locate(problem))))
    if len(support) > problem.max_errors or not problem.residual(support) <= problem.tolerance:
        return None
    return _without_needless_rows(problem, support)


def _without_needless_rows(problem: LocatingProblem, support: Support) -> Support:
    """Acquit, one by one, rows whose return leaves the residual within the tolerance."""
    while support:
        smaller = np.array([[row for row in support if row != out] for out in support], dtype=np.int64)
        residuals = problem.residuals(smaller)
        if residuals.min() > problem.tolerance:
            break
        support = tuple(smaller[residuals.argmin()].tolist())
    return support


class ExhaustiveLocator:
    """Finds the t rows without which the others agree best, by trying all of them.

    Parameters
    ----------
    max_numbers : int
        Float64 numbers that may be kept for the next call: C(n, t) (n - k) (n - k - t). Two million, 16 MB, take a
        tenth of a second to compute and some milliseconds to use; r = 20, s = 5, k = 10 needs 775,200.

    Notes
    -----
    Guarantee: the least residual over all C(n, t) supports; it is the oracle for the other locators. Beyond
    `max_numbers` it names nobody (the decoder then reports a failed group, never a guess).
    Cost: max(q, n - k) multiply-adds for each of those numbers.
    """

    def __init__(self, max_numbers: int = 2_000_000) -> None:
        self.max_numbers = max_numbers

    def can_try_all(self, problem: LocatingProblem) -> bool:
        """Return whether the supports are few enough."""
        num_checks = len(problem.parity)
        return problem.num_supports * num_checks * (num_checks - problem.max_errors) <= self.max_numbers

    def locate(self, problem: LocatingProblem) -> Support:
        """Return the support of t rows with the least residual."""
        if not self.can_try_all(problem):
            return ()
        supports, residuals = problem.all_residuals()
        return tuple(supports[residuals.argmin()].tolist())


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


class RationalLocator:
    """Finds the lies as the roots of the denominator of a rational interpolant (Berlekamp-Welch).

    Of one projection b: least squares for P of degree < k + t and a monic Q of degree t with
    P(x_j) = Q(x_j) v_j b_j at all rows j; the t rows where |Q(x_j)| is smallest are the lies.

    Notes
    -----
    Guarantee: none of its own; the decoder checks the rows that remain.
    Cost: one least-squares problem of n equations and k + 2 t unknowns.
    Differs from the paper: nothing known (it is re-derived from the paper's abstract and the theory of
    Reed-Solomon codes). Beyond about (s, k) = (5, 10) on real nodes it fails often: see the table in
    docs/reference/decoding-accuracy.md.

    References
    ----------
    Chen et al., arXiv:2110.01595; Welch & Berlekamp 1986 (US patent 4,633,470).
    """

    def locate(self, problem: LocatingProblem) -> Support:
        """Return the t rows where the denominator is smallest."""
        size = problem.max_errors
        values = problem.multipliers * problem.projected[:, 0]
        values = values / np.abs(values).max()
        powers = problem.points[:, None] ** np.arange(problem.generator.shape[1] + size)
        system = np.concatenate([powers, -values[:, None] * powers[:, :size]], axis=1)
        solution = np.linalg.lstsq(system, values * problem.points**size, rcond=None)[0]
        denominator = powers[:, :size] @ solution[powers.shape[1] :] + problem.points**size
        return tuple(sorted(np.argsort(np.abs(denominator))[:size].tolist()))
