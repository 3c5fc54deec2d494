"""Locating by trying every support."""

from .locating import LocatingProblem, Support

__all__ = ["ExhaustiveLocator"]


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
