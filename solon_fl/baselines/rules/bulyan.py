"""Bulyan as its authors define it: Krum chooses vectors one by one, and their values near the median are averaged."""

from torch import Tensor

from .base import squared_distances
from .coordinates import mean_near_median

__all__ = ["bulyan", "krum_scores"]


def krum_scores(distances: Tensor, num_liars: int) -> Tensor:
    """Return Krum's score of each of n vectors, (n,): the sum of its n - f - 2 least squared distances to others.

    Parameters
    ----------
    distances : Tensor, (n, n)
        Squared distances.
    num_liars : int
        f, the number of liars. If n - f - 2 is less than 1, the score is the squared distance to the nearest vector.

    References
    ----------
    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine learning with adversaries", NeurIPS 2017, section 4.
    """
    neighbours = max(1, len(distances) - num_liars - 2)
    nearest = distances.sort(dim=1).values[:, : neighbours + 1]
    return nearest.sum(dim=1)  # the distance to itself is 0


def bulyan(vectors: Tensor, num_liars: int) -> Tensor:
    """Aggregate n >= 4f + 3 vectors with Bulyan, for at most f liars.

    First, Krum chooses theta = n - 2f of the vectors, each time the one with the least score among the remaining ones.
    Then each coordinate is the mean of those theta - 2f chosen values that are nearest to their median.

    Parameters
    ----------
    vectors, num_liars
        See `Rule`.

    Notes
    -----
    Follows the paper wherever that is definite. The last choices are made among fewer than the 2f + 3 vectors that Krum
    needs; see `krum_scores`. Flower's Bulyan differs: it chooses the theta vectors with the least scores among all n.

    Cost: O(n^2 d) for the distances, O(n^3 log n) to choose.

    Examples
    --------
    >>> import torch
    >>> honest = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    >>> bulyan(torch.cat([honest, torch.tensor([[1e9]])]), num_liars=1)
    tensor([3.])

    References
    ----------
    El Mhamdi, Guerraoui, Rouault, "The hidden vulnerability of distributed learning in Byzantium", ICML 2018,
    section 4.
    """
    distances = squared_distances(vectors)
    left = list(range(len(vectors)))
    chosen = []
    for _ in range(len(vectors) - 2 * num_liars):
        scores = krum_scores(distances[left][:, left], num_liars)
        chosen.append(left.pop(int(scores.argmin())))
    return mean_near_median(vectors[chosen], len(chosen) - 2 * num_liars)
