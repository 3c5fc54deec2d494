"""The attacks of Fang et al. on Krum, the trimmed mean and the median, by liars that know every node's vector.

In the paper nodes send models, and the attack moves each coordinate against the direction s in which honest nodes would
move it. Here nodes send gradients, so s = sign(mu), where mu is the honest mean, and the previous model is taken as 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solon_fl.baselines.rules import krum_scores
from solon_fl.errors import ConfigurationError

from .base import honest_rows

__all__ = ["FangKrum", "FangTrimmedMean"]

LEAST = 1e-5  # of the largest lambda: below it the search stops


@dataclass(frozen=True)
class FangKrum:
    """All liars send -lambda s, with the largest lambda at which Krum chooses their vector.

    Notes
    -----
    lambda starts at the paper's upper bound, with a square root that gives it the unit of a gradient::

        sqrt(min_i sum of the n - m - 2 smallest |g_i - g_j|^2 / ((n - 2 m - 1) d)) + max_i |g_i| / sqrt(d)

    It is halved until Krum, which is told m, chooses a liar's vector, or lambda is below 1e-5 of the bound.

    This differs from the paper in two ways. The search ends at a fraction of the bound rather than at 1e-5, so that it
    treats gradients of any length alike. All liars send the same vector, as in the authors' analysis, whereas their
    code adds noise.

    References
    ----------
    Fang, Cao, Jia, Gong, "Local model poisoning attacks to Byzantine-robust federated learning", USENIX Security 2020,
    section 4.2, with full knowledge.
    """

    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        honest = honest_rows(vectors, liars)
        against = -honest.mean(0).sign()
        num_nodes, num_liars, dim = len(vectors), len(liars), vectors.shape[1]
        between = torch.cdist(honest, honest, compute_mode="donot_use_mm_for_euclid_dist").double().square()
        lengths = torch.linalg.vector_norm(honest, dim=1, dtype=torch.float64)
        neighbours = max(1, num_nodes - num_liars - 2)
        near = between.sort(dim=1).values[:, : neighbours + 1].sum(dim=1).min()
        bound = float((near / (max(1, num_nodes - 2 * num_liars - 1) * dim)) ** 0.5 + lengths.max() / dim**0.5)
        size = bound
        while size > LEAST * bound and not _is_chosen(honest, between, size * against, num_liars):
            size /= 2
        return (size * against).expand(num_liars, -1).clone()


def _is_chosen(honest: Tensor, between: Tensor, lie: Tensor, num_liars: int) -> bool:
    """Return whether Krum chooses a lie that all liars send."""
    to_lie = torch.linalg.vector_norm(honest - lie, dim=1, dtype=torch.float64).square()
    distances = between.new_zeros(len(honest) + num_liars, len(honest) + num_liars)
    distances[: len(honest), : len(honest)] = between
    distances[: len(honest), len(honest) :] = to_lie[:, None]
    distances[len(honest) :, : len(honest)] = to_lie
    return int(krum_scores(distances, num_liars).argmin()) >= len(honest)


@dataclass(frozen=True)
class FangTrimmedMean:
    """In each coordinate, liars send values just beyond the honest ones, on the side that s points away from.

    Where s = 1, the lies are below the smallest honest value, min. They are drawn from [min / b, min] if min is
    positive, and else from [b min, min]. Where s = -1, they are above the largest honest value, max, drawn from
    [max, b max] if max is positive, and else from [max, max / b]. The trimmed mean then cuts honest values instead of
    lies, and the median moves.

    Parameters
    ----------
    factor : float
        b > 1.

    Notes
    -----
    As in the paper. Where s = 0, liars send 0.

    References
    ----------
    Fang, Cao, Jia, Gong, USENIX Security 2020, section 4.3, with full knowledge, on trimmed mean and median; b = 2.
    """

    factor: float = 2.0
    omniscient = True

    def __post_init__(self) -> None:
        if not 1 < self.factor < float("inf"):
            raise ConfigurationError(f"factor must be finite and greater than 1; got factor={self.factor}.")

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        honest = honest_rows(vectors, liars)
        sign = honest.mean(0).sign()
        least, greatest = honest.min(0).values, honest.max(0).values
        below = torch.where(least > 0, least / self.factor, least * self.factor)
        above = torch.where(greatest > 0, greatest * self.factor, greatest / self.factor)
        edge, far = torch.where(sign > 0, least, greatest), torch.where(sign > 0, below, above)
        drawn = torch.rand(len(liars), vectors.shape[1], generator=rng, dtype=torch.float64, device="cpu")
        return torch.where(sign == 0, 0.0, edge + drawn.to(vectors.device) * (far - edge)).to(vectors.dtype)
