"""Locating by rational interpolation: the paper's locator."""

import numpy as np

from .locating import LocatingProblem, Support

__all__ = ["RationalLocator"]


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
