"""The locators: exhaustive search, random trials, subspace locating and the paper's rational interpolation.

See `default_locator` for which of them the decoder takes.
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
DRAWS = 256  # looked at together
NUM_TELLING = 4  # columns that the draws are judged by
NUM_EXCHANGED = 8  # of the supports that such draws lead to, the best are looked at closely
WORTHWHILE = 0.7  # a swap must lower the residual to this part of it: less is fitting noise


def default_locator(num_rows: int, compression: int, max_errors: int) -> Locator:
    """Return `ExhaustiveLocator` if it can try all supports, `InformationSetLocator` if it may draw often enough.

    Else `SubspaceLocator`: adaptive liars can bring it to find nobody.
    """
    if can_try_all(num_rows, num_rows - compression, max_errors):
        return ExhaustiveLocator()
    drawing = InformationSetLocator()
    return (
        drawing if drawing.draws_needed(num_rows, compression, max_errors) <= drawing.max_draws else SubspaceLocator()
    )


def locate_rows(locator: Locator | None, problem: LocatingProblem, noise: float = math.inf) -> Support | None:
    """Return rows without which the others agree, none of them needless, or None if t rows are not enough.

    No row is needless without which the others disagree by less than `noise`, and with which by more.
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
    """Acquit, one by one, rows whose return leaves the residual within the tolerance."""
    while support:
        smaller = np.array([[row for row in support if row != out] for out in support], dtype=np.int64)
        residuals = problem.residuals(smaller)
        if residuals.min() > tolerance:
            break
        support = tuple(smaller[residuals.argmin()].tolist())
    return support


class ExhaustiveLocator:
    """Finds the t rows without which the others agree best, by trying all sets of t.

    Notes
    -----
    Guarantee: the least residual over all C(n, t) supports, if one is within the tolerance; it is the oracle for the
    other locators. If none is, or there are too many (`can_try_all`), it names nobody (the decoder then reports a
    failed group, never a guess).
    Cost: see `explaining_supports`.
    """

    def can_try_all(self, problem: LocatingProblem) -> bool:
        """Return whether the supports are few enough."""
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
    """Finds t rows without which the others agree, by believing k rows drawn at random, again and again.

    If the k rows are honest, they tell what every other row should be: whoever deviates by more than the tolerance
    lies, and if there is doubt about the rest, exchanging single rows settles it. k honest rows are drawn sooner or
    later, whatever the liars do: a share C(n - t, k) / C(n, k) of all draws.

    Parameters
    ----------
    max_draws : int
        After which it gives up.

    Notes
    -----
    Guarantee: none in theory, because k honest rows may be badly conditioned. The draws are `draws_needed`, by which
    k honest rows are drawn 20 times on average (once at least but for a probability of 2e-9); no lies are known that
    get past it (benchmarks/starvation.py). Where these are more than `max_draws`, from about r = 36 on, it finds
    nothing in more and more decodes, whatever the lies are.
    Cost: n k (k + 4) multiply-adds a draw. At s = 8, k = 8 some 60 draws, a few ms.

    References
    ----------
    Prange 1962, "The use of information sets in decoding cyclic codes", over the real field.
    """

    def __init__(self, max_draws: int = 20_000) -> None:
        self.max_draws = max_draws

    def draws_needed(self, num_rows: int, compression: int, max_errors: int) -> int:
        """Return after how many draws it is next to certain that k honest rows were drawn."""
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
    """Return, for (N, k) sets of rows, the t rows that contradict each most, if no more than t certainly do.

    What k rows and one more disagree by is no more than what all honest rows do, if all of these are honest.
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
