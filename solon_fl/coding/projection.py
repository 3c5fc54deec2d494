"""Random projection: from r shares of length m to an (r, q) matrix that still tells who lied.

Lies are per node, the same rows in every column, so the q random combinations of the columns that
`project_rows` draws are all that the locator has to look at (Solon's step 2). What the projection can
hide is bounded by `underestimate_factor`.
"""

import math
import secrets
from collections.abc import Sequence
from functools import lru_cache

import torch
from scipy import integrate, optimize, stats
from torch import Tensor

__all__ = ["NUM_PROJECTIONS", "project_rows", "underestimate_factor"]

NUM_PROJECTIONS = 16  # q
BLOCK = 8192  # columns worked on at once: with 20 rows and float64, 1.3 MB, about a core's cache


def fresh_generator() -> torch.Generator:
    """A generator seeded from the operating system's entropy, which no node can know."""
    return torch.Generator().manual_seed(secrets.randbits(63))


def project_rows(rows: Sequence[Tensor], generator: torch.Generator | None = None) -> Tensor:
    """Return the random projection B = Z F of the rows Z, with an F that nobody could foresee.

    Cut into blocks of columns, F is one Gaussian block (the same for all) times one Gaussian q x q
    matrix per block: drawing that costs a small part of drawing m x q numbers, and still no lie can be
    hidden. One block without the q x q factors would be blind to a lie of +v in one block and -v in the
    next; random signs alone would miss a lie of two opposite entries with probability 2^-q.

    Parameters
    ----------
    rows : sequence of n tensors, each (m,), any float dtype, one device
        The shares. They are read in place, never stacked as a whole.
    generator : torch.Generator, optional
        A CPU generator. Default: fresh entropy, drawn now, after the shares have arrived. Pass one only
        for reproducible simulation: a node that knows it can hide a lie.

    Returns
    -------
    Tensor, (n, q), float64, CPU
        Scaled so that the norm of row j estimates the norm of rows[j]. A row with NaN or inf gives a
        row with NaN or inf, and leaves the others as they are.

    Notes
    -----
    Cost: n m (q + 1) multiply-adds in float64. Extra memory: n * 8192 float64.
    """
    if generator is None:
        generator = fresh_generator()
    share_dim = rows[0].numel()
    q = NUM_PROJECTIONS
    device = rows[0].device

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    block = (draw(min(BLOCK, share_dim), q) / math.sqrt(q)).to(device)
    projected = torch.zeros(len(rows), q, dtype=torch.float64, device=device)
    for start in range(0, share_dim, BLOCK):
        stop = min(start + BLOCK, share_dim)
        columns = torch.stack([row[start:stop] for row in rows]).to(torch.float64)
        mixing = (draw(q, q) / math.sqrt(q)).to(device)
        projected += (columns @ block[: stop - start]) @ mixing
    return projected.cpu()


@lru_cache
def underestimate_factor(failure_probability: float = 1e-9) -> float:
    """Return c such that the true norm exceeds c times its projected estimate with that probability at most.

    Holds for every vector, and for the Frobenius norm of every matrix, chosen before F was drawn.

    Notes
    -----
    Given the block, v F is Gaussian with a variance that is a quadratic form of Gaussians. By Chernoff's
    bound the worst case of both is rank one (a product of 1 + a_i is at least 1 + sum a_i), where the
    squared estimate is |v|^2 times the product of two independent chi-square(q) / q.
    """
    q = NUM_PROJECTIONS

    def log_chernoff(log_rate: float, log_square: float) -> float:
        rate = math.exp(log_rate)

        def density(u: float) -> float:  # of w = e^u = chi-square(q) / q, times E exp(-rate w chi2(q) / q)
            w = math.exp(u)
            return float(q * w * stats.chi2.pdf(q * w, q) * (1 + 2 * rate * w / q) ** (-q / 2))

        mean = integrate.quad(density, -12, 3, limit=500)[0]
        return rate * math.exp(log_square) + math.log(mean)

    def excess(log_square: float) -> float:
        best = optimize.minimize_scalar(lambda u: log_chernoff(u, log_square), bounds=(-6, 25), method="bounded")
        return float(best.fun) - math.log(failure_probability)

    log_square = optimize.brentq(excess, -12, -0.1)
    return math.exp(-log_square / 2)
