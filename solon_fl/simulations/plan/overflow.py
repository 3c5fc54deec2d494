"""The probability that random regrouping puts more liars into a group than the group tolerates."""

import math
from functools import lru_cache

from solon_fl.checks import check_between, check_whole
from solon_fl.errors import ConfigurationError

__all__ = ["least_byzantine", "overflow_in_run", "overflow_probability"]

MOST_NODES = 20_000
MOST_ROUNDS = 10**9


@lru_cache(maxsize=4096, typed=True)
def overflow_probability(num_nodes: int, group_size: int, byzantine: int, liars: int) -> float:
    """Return the probability that a uniformly random grouping puts more than s of the liars into some group.

    Parameters
    ----------
    num_nodes : int
        P, the number of nodes: a multiple of `group_size`, at most 20,000.
    group_size : int
        r, nodes of a group.
    byzantine : int
        s, liars that a group tolerates.
    liars : int
        b, liars among all nodes, chosen without knowing the grouping.

    Returns
    -------
    float
        In [0, 1]. It is exactly 0 if b <= s or r <= s, and otherwise only if it is below 1e-323. It is exactly 1 if
        b > s P / r.

    Raises
    ------
    ConfigurationError
        If a number is out of range.

    Notes
    -----
    There are C(P, b) equally likely sets of b places for the liars. The coefficient of x^b in f(x)^(P/r), where f(x) is
    the sum of C(r, i) x^i over i <= s, counts those with at most s liars in every group. All numbers are whole, and
    only the last division rounds. docs/explanation/regrouping.md states the assumptions.

    The cost is b s products of numbers of at most P bits: a second for P = 20,000, b = 9,000.

    Examples
    --------
    >>> overflow_probability(4, 2, 1, 2)  # 2 of the 6 pairs of places are in one group
    0.3333333333333333
    >>> overflow_probability(100, 20, 5, 5)
    0.0
    """
    for name, value, least in (
        ("num_nodes", num_nodes, 1),
        ("group_size", group_size, 1),
        ("byzantine", byzantine, 0),
        ("liars", liars, 0),
    ):
        check_whole(name, value, least)
    if num_nodes > MOST_NODES:
        raise ConfigurationError(f"num_nodes must be at most {MOST_NODES}; got num_nodes={num_nodes}.")
    if num_nodes % group_size:
        raise ConfigurationError(
            f"num_nodes must be a multiple of group_size; got num_nodes={num_nodes}, group_size={group_size}."
        )
    if liars > num_nodes:
        raise ConfigurationError(f"liars must be at most num_nodes={num_nodes}; got liars={liars}.")
    if liars <= byzantine:
        return 0.0
    num_groups = num_nodes // group_size
    if liars > byzantine * num_groups:
        return 1.0
    groupings = math.comb(num_nodes, liars)
    return (groupings - _harmless(group_size, num_groups, byzantine, liars)) / groupings


def overflow_in_run(probability: float, rounds: int) -> float:
    """Return the probability that an event of each round happens at least once in several independent rounds.

    Parameters
    ----------
    probability : float
        Probability of the event in one round, from 0 to 1, such as `overflow_probability`.
    rounds : int
        Number of rounds, at least 1.

    Examples
    --------
    >>> print(f"{overflow_in_run(1e-9, 1000):.7g}")
    9.999995e-07
    """
    if not 0 <= probability <= 1:
        raise ConfigurationError(f"probability must be from 0 to 1; got probability={probability!r}.")
    check_whole("rounds", rounds, 1, MOST_ROUNDS)
    if probability == 1:
        return 1.0
    return -math.expm1(rounds * math.log1p(-probability))  # 1 - (1 - p)^rounds, without its cancellation


def least_byzantine(num_nodes: int, group_size: int, liars: int, rounds: int, risk: float) -> int:
    """Return the smallest s for which some group gets more than s liars in a run with probability `risk` at most.

    Parameters
    ----------
    num_nodes, group_size, liars
        See `overflow_probability`.
    rounds : int
        Rounds of the run.
    risk : float
        Accepted probability, between 0 and 1.

    Returns
    -------
    int
        At most b. Groups of r nodes may be too small to tolerate so many: they need r >= 2 s + e + k.
    """
    check_between("risk", risk, 0, 1)
    low, high = 0, liars  # high is enough
    while low < high:
        middle = (low + high) // 2
        if overflow_in_run(overflow_probability(num_nodes, group_size, middle, liars), rounds) <= risk:
            high = middle
        else:
            low = middle + 1
    return high


def _harmless(group_size: int, num_groups: int, byzantine: int, liars: int) -> int:
    """Count the sets of b places with at most s in every group: the coefficient of x^b in f(x)^num_groups."""
    f = [math.comb(group_size, i) for i in range(min(byzantine, group_size) + 1)]
    # g = f^G satisfies f g' = G f' g. Its coefficient of x^(n - 1), with f[0] = 1, gives g[n] from earlier ones.
    g = [1]
    for n in range(1, liars + 1):
        terms = (((num_groups + 1) * i - n) * f[i] * g[n - i] for i in range(1, min(n, len(f) - 1) + 1))
        g.append(sum(terms) // n)  # without remainder
    return g[liars]
