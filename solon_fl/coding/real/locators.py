"""The locators: exhaustive search, random trials, subspace locating and the paper's rational interpolation.

`default_locator` says which of them the decoder uses.
"""

import math

import numpy as np

from solon_fl.coding._types import ComplexArray, FloatArray, IntArray

from .locating import LocatingProblem, Locator, Support, can_try_all, explaining_supports

__all__ = [
    "ExhaustiveLocator",
    "InformationSetLocator",
    "RationalLocator",
    "SubspaceLocator",
    "locate_rows",
    "power_syndromes",
]

MAX_SWEEPS = 50
DRAWS = 256  # draws processed at once
NUM_TELLING = 4  # columns used to compare the draws
NUM_EXCHANGED = 8  # number of the best supports of these draws that are improved by exchanging rows
WORTHWHILE = 0.7  # a swap must lower the residual by at least this factor; anything less fits noise


def default_locator(num_rows: int, compression: int, max_errors: int) -> Locator:
    """Return `ExhaustiveLocator` if it can try all supports, else `InformationSetLocator` if it can draw often enough.

    Otherwise return `SubspaceLocator`, which adaptive liars can evade.
    """
    if can_try_all(num_rows, num_rows - compression, max_errors):
        return ExhaustiveLocator()
    drawing = InformationSetLocator()
    return (
        drawing if drawing.draws_needed(num_rows, compression, max_errors) <= drawing.max_draws else SubspaceLocator()
    )


def locate_rows(locator: Locator | None, problem: LocatingProblem, noise: float = math.inf) -> Support | None:
    """Return rows without which the others agree, none of them superfluous, or None if t rows are not enough.

    A row is certainly not superfluous if the others disagree by less than `noise` without it and by more with it.
    """
    if problem.residual(()) <= min(noise, problem.tolerance):
        return ()
    if problem.max_errors == 0:
        return () if problem.residual(()) <= problem.tolerance else None
    if locator is None:
        num_rows, compression = problem.generator.shape
        locator = default_locator(num_rows, compression, problem.max_errors)
    support = tuple(sorted(set(locator.locate(problem))))
    residual = problem.residual(support)
    if len(support) > problem.max_errors or not residual <= problem.tolerance:
        return () if problem.residual(()) <= problem.tolerance else None
    return _without_needless_rows(
        problem, support, noise if residual <= noise < problem.tolerance else problem.tolerance
    )


def _without_needless_rows(problem: LocatingProblem, support: Support, tolerance: float) -> Support:
    """Remove rows from the support, one by one, as long as the residual stays within the tolerance."""
    while support:
        smaller = np.array([[row for row in support if row != out] for out in support], dtype=np.int64)
        residuals = problem.residuals(smaller)
        if residuals.min() > tolerance:
            break
        support = tuple(smaller[residuals.argmin()].tolist())
    return support


class ExhaustiveLocator:
    """Finds the t rows without which the others agree best, by trying all sets of t rows.

    Notes
    -----
    Guarantee: the support with the least residual among all C(n, t), if that residual is within the tolerance. It
    serves as the reference for the other locators. If no support is within the tolerance, or there are too many
    (`can_try_all`), it returns (). The decoder then reports a failed group, never a guess.

    Cost: see `explaining_supports`.
    """

    def can_try_all(self, problem: LocatingProblem) -> bool:
        """Return whether the supports are few enough to try all of them."""
        num_checks, num_rows = problem.parity.shape
        return can_try_all(num_rows, num_checks, problem.max_errors)

    def locate(self, problem: LocatingProblem) -> Support:
        """Return the support of t rows with the least residual."""
        if not self.can_try_all(problem):
            return ()
        supports, residuals = explaining_supports(
            problem.parity, problem.projected, problem.max_errors, problem.tolerance
        )
        return tuple(supports[residuals.argmin()].tolist()) if len(supports) else ()


class InformationSetLocator:
    """Finds t rows without which the others agree, by trusting k rows drawn at random, again and again.

    If the k rows are honest, they determine every other row. Rows that deviate by more than the tolerance are lies, and
    doubts about the rest are settled by exchanging single rows. Whatever the liars do, a fraction C(n - t, k) / C(n, k)
    of all draws consists of k honest rows.

    Parameters
    ----------
    max_draws : int
        The number of draws after which it gives up.

    Notes
    -----
    Guarantee: none in theory, because k honest rows may be badly conditioned. With `draws_needed` draws, k honest rows
    are drawn 20 times on average, and at least once except with a probability of 2e-9. No lies are known that evade the
    locator (benchmarks/starvation.py). From about r = 36 on, it would need more than `max_draws`, and finds nothing in
    more and more decodes, whatever the lies are.

    Cost: n k (k + 4) multiply-adds per draw. At s = 8, k = 8 some 60 draws, a few ms.

    References
    ----------
    Prange 1962, "The use of information sets in decoding cyclic codes", here over the real numbers.
    """

    def __init__(self, max_draws: int = 20_000) -> None:
        self.max_draws = max_draws

    def draws_needed(self, num_rows: int, compression: int, max_errors: int) -> int:
        """Return the number of draws after which k honest rows have almost certainly been drawn."""
        return math.ceil(20 * math.comb(num_rows, compression) / math.comb(num_rows - max_errors, compression))

    def locate(self, problem: LocatingProblem) -> Support:
        """Return the best t rows found."""
        num_rows, compression = problem.generator.shape
        rng = np.random.default_rng()  # so that no node knows the draws
        telling = problem.projected @ np.linalg.svd(problem.projected, full_matrices=False)[2][:NUM_TELLING].T
        draws = min(self.draws_needed(num_rows, compression, problem.max_errors), self.max_draws)
        best: Support = ()
        best_residual = np.inf
        for start in range(0, draws, DRAWS):
            shape = (min(DRAWS, draws - start), num_rows)
            believed = np.sort(np.argpartition(rng.random(shape), compression - 1)[:, :compression])
            supports = _contradicting(problem, telling, believed)
            if not len(supports):
                continue
            residuals = problem.residuals(supports)
            for number in np.argsort(residuals)[:NUM_EXCHANGED]:
                support, residual = _exchange(problem, tuple(supports[number].tolist()))
                if residual < best_residual:
                    best, best_residual = support, residual
                if best_residual <= problem.tolerance:
                    return best
        return best


def _contradicting(problem: LocatingProblem, telling: FloatArray, believed: IntArray) -> IntArray:
    """Return, for (N, k) sets of rows, the t rows that contradict each set most, unless more than t certainly do.

    If k + 1 rows are honest, they disagree by no more than all honest rows do.
    """
    weights = problem.generator @ np.linalg.inv(problem.generator[believed])  # (N, n, k)
    deviations = telling - weights @ telling[believed]
    norms = np.linalg.norm(deviations, axis=2) / np.sqrt(1 + np.einsum("ijk,ijk->ij", weights, weights))
    np.put_along_axis(norms, believed, 0, axis=1)
    possible = (norms > problem.tolerance).sum(axis=1) <= problem.max_errors
    supports = np.sort(np.argsort(norms[possible], axis=1)[:, -problem.max_errors :], axis=1)
    return np.unique(supports, axis=0)


class SubspaceLocator:
    """Finds the lies from the null space of the stacked Hankel matrices of the syndromes.

    For t assumed lies, the syndromes S_p = sum_j u_j x_j^p b_j of every projection obey the same recurrence. Its
    coefficients are the locator polynomial, which is the right singular vector of the smallest singular value of all
    stacked Hankel matrices. The t rows at whose points the polynomial is smallest are proposed. Then rows are exchanged
    one by one as long as this lowers the residual of the others, which corrects the effect of noise on the roots.

    Notes
    -----
    Guarantee: none of its own; the decoder checks the remaining rows.

    Cost: t SVDs of (q (n - k - t), t + 1) matrices, then a few sweeps over t (n - t) supports.

    Differs from the paper, which uses rational interpolation on real nodes (`RationalLocator`).

    References
    ----------
    Peterson 1960 and Schmidt & Sidorenko 2006 for the stacked key equation, over the complex field.
    """

    def locate(self, problem: LocatingProblem) -> Support:
        """Return the best t rows found."""
        syndromes = power_syndromes(problem)
        best: Support = ()
        best_residual = np.inf
        # Start with the full t: with fewer lies its null space is larger, and any vector in it works.
        for size in range(problem.max_errors, 0, -1):
            proposed = _fill_up(problem, _hankel_support(problem, syndromes, size))
            support, residual = _exchange(problem, proposed)
            if residual < best_residual:
                best, best_residual = support, residual
            if best_residual <= problem.tolerance:
                break
        return best


def power_syndromes(problem: LocatingProblem) -> ComplexArray:
    """Return the syndromes S_p = sum_j u_j x_j^p b_j, (n - k, q).

    They are zero for honest rows, because the dual code is of the same kind, with u_j = v_j / prod_{i != j} (x_j -
    x_i).
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
    """Add rows to the support until it has t, each time the row whose removal lowers the residual most."""
    while len(support) < problem.max_errors:
        others = [row for row in range(len(problem.points)) if row not in support]
        larger = np.array([sorted((*support, row)) for row in others], dtype=np.int64)
        support = tuple(larger[problem.residuals(larger).argmin()].tolist())
    return support


def _exchange(problem: LocatingProblem, support: Support) -> tuple[Support, float]:
    """Swap single rows of the support, the best pair first, until no swap lowers the residual enough."""
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

    For one projection b, it solves by least squares for P of degree < k + t and a monic Q of degree t with
    P(x_j) = Q(x_j) v_j b_j at all rows j. The t rows where ``|Q(x_j)|`` is smallest are the lies.

    Notes
    -----
    Guarantee: none of its own; the decoder checks the remaining rows.

    Cost: one least-squares problem of n equations and k + 2 t unknowns.

    No difference from the paper is known; the method is derived from the paper's abstract and the theory of
    Reed-Solomon codes. Beyond about (s, k) = (5, 10) on real nodes it often fails; see the table in
    docs/measurements/decoding-accuracy.md.

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
