"""Random projection: from r shares of length m to an (r, q) matrix that still tells who lied.

Lies are per node, the same rows in every column, so the q random combinations of the columns that
`project_rows` draws are all that the locator has to look at. What they could hide, the
decoder sees when it checks all columns at the end.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ._types import FloatArray

__all__ = [
    "LARGEST_NORM",
    "NOISE_MARGIN",
    "NUM_PROJECTIONS",
    "SMALLEST_NUMBER",
    "UNDERESTIMATE",
    "project_finite",
    "project_rows",
]

NUM_PROJECTIONS = 16  # q
# No matrix's norm exceeds 9.4 times that of its projection but with a probability of 1e-9 (Chernoff's bound).
UNDERESTIMATE = 9.4
NOISE_MARGIN = 3.0  # projected noise is larger than 3 times the noise with a probability of about 1e-8
LARGEST_NORM = 1e150  # of a usable share; its square must not overflow
SMALLEST_NUMBER = 1e-150  # its square must not underflow
BLOCK = 8192  # columns worked on at once: with 20 rows and float64, 1.3 MB, about a core's cache


def project_finite(
    rows: Mapping[int, Tensor], generator: torch.Generator | None
) -> tuple[list[int], FloatArray, FloatArray]:
    """Return the slots of the finite shares, their projections and their norms."""
    slots = sorted(rows)
    projected, norms = project_rows([rows[slot] for slot in slots], generator)
    usable = norms < LARGEST_NORM  # false for NaN
    return [slot for slot, use in zip(slots, usable, strict=True) if use], projected[usable], norms[usable]


def project_rows(
    rows: Sequence[Tensor],
    generator: torch.Generator | None = None,
    observe: Callable[[int, Tensor], None] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return the random projection B = Z F of the rows Z, with an F that nobody could foresee, and their norms.

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
    observe : callable, optional
        (start, columns) -> None, given each block of columns, (n, 8192 or fewer) float64, valid during the call, for
        what else needs all of them: reading and converting them a second time takes as long as projecting.

    Returns
    -------
    projected : (n, q) float64
        Scaled so that the norm of row j estimates the norm of rows[j].
    norms : (n,) float64
        The norms themselves. A row with NaN or inf has a norm that is NaN or inf, and leaves the others as
        they are; a float64 row beyond about 1e154 has the norm inf.

    Notes
    -----
    Cost: n m (q + 1) multiply-adds in float64. Extra memory: 2 n * 8192 float64.
    """
    # 128 bits of the operating system's entropy; torch would take 32, few enough to try them all.
    fresh = np.random.default_rng()
    share_dim = rows[0].numel()
    q = NUM_PROJECTIONS
    device = rows[0].device

    def draw(*shape: int) -> Tensor:
        if generator is None:
            return torch.from_numpy(fresh.standard_normal(shape))
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # As (q, columns), and times columns^T: BLAS takes half the time of columns times (columns, q).
    block = (draw(min(BLOCK, share_dim), q) / math.sqrt(q)).T.contiguous().to(device)
    projected = torch.zeros(q, len(rows), dtype=torch.float64, device=device)
    squares = torch.zeros(len(rows), dtype=torch.float64, device=device)
    buffer = torch.empty(len(rows), min(BLOCK, share_dim), dtype=torch.float64, device=device)  # new memory is slow
    for start in range(0, share_dim, BLOCK):
        stop = min(start + BLOCK, share_dim)
        columns = buffer[:, : stop - start].copy_(torch.stack([row[start:stop] for row in rows]))
        mixing = (draw(q, q) / math.sqrt(q)).to(device)
        projected += mixing.T @ (block[:, : stop - start] @ columns.T)
        squares += torch.linalg.vector_norm(columns, dim=1).square()
        if observe is not None:
            observe(start, columns)
    return projected.T.cpu().numpy(), squares.sqrt().cpu().numpy()
