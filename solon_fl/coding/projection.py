"""Random projection: from r shares of length m to an (r, q) matrix that still tells who lied.

Lies are per node, the same rows in every column, so the q random combinations of the columns that
a `Projector` draws are all that the locator has to look at. What they could hide, the
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
    "Projector",
]

NUM_PROJECTIONS = 16  # q
# No matrix's norm exceeds 9.4 times that of its projection but with a probability of 1e-9 (Chernoff's bound).
UNDERESTIMATE = 9.4
NOISE_MARGIN = 3.0  # projected noise is larger than 3 times the noise with a probability of about 1e-8
LARGEST_NORM = 1e150  # of a usable share; its square must not overflow
SMALLEST_NUMBER = 1e-150  # its square must not underflow
BLOCK = 4096  # columns worked on at once: with 20 rows and float64, 0.7 MB, half of a core's cache


class Projector:
    """One random projection B = Z F of rows Z that may come one after the other, with an F that nobody could foresee.

    Cut into blocks of columns, F is one Gaussian block (the same for all) times one Gaussian q x q
    matrix per block: drawing that costs a small part of drawing m x q numbers, and still no lie can be
    hidden. One block without the q x q factors would be blind to a lie of +v in one block and -v in the
    next; random signs alone would miss a lie of two opposite entries with probability 2^-q.

    Parameters
    ----------
    generator : torch.Generator, optional
        A CPU generator that one number is drawn from. Default: 128 bits of the operating system's entropy, drawn now,
        after the shares have arrived (torch would take 32, few enough to try them all). Pass one only for
        reproducible simulation: a node that knows F can hide a lie.

    Notes
    -----
    Shares that come later are projected with the same F: it never leaves the server.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._random = np.random.default_rng() if generator is None else _seeded(generator)
        self._drawn: tuple[Tensor, Tensor] | None = None
        self._known: dict[int, tuple[FloatArray, float]] = {}

    def project_finite(self, rows: Mapping[int, Tensor]) -> tuple[list[int], FloatArray, FloatArray]:
        """Return the slots of the finite shares, their projections and their norms; a slot is projected once."""
        new = sorted(rows.keys() - self._known.keys())
        if new:
            projected, norms = self.project([rows[slot] for slot in new])
            self._known |= {slot: (projected[row], float(norms[row])) for row, slot in enumerate(new)}
        slots = [slot for slot in sorted(rows) if self._known[slot][1] < LARGEST_NORM]  # false for NaN
        if not slots:
            return [], np.zeros((0, NUM_PROJECTIONS)), np.zeros(0)
        return slots, np.stack([self._known[s][0] for s in slots]), np.array([self._known[s][1] for s in slots])

    def project(
        self, rows: Sequence[Tensor], observe: Callable[[int, Tensor], None] | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return the projections of the rows, and their norms.

        Parameters
        ----------
        rows : sequence of n tensors, each (m,), any float dtype, one device
            The shares. They are read in place, never stacked as a whole.
        observe : callable, optional
            (start, columns) -> None, given each block of columns, (n, 4096 or fewer) float64, valid during the call,
            for what else needs all of them: reading and converting them a second time takes as long as projecting.

        Returns
        -------
        projected : (n, q) float64
            Scaled so that the norm of row j estimates the norm of rows[j].
        norms : (n,) float64
            The norms themselves. A row with NaN or inf has a norm that is NaN or inf, and leaves the others as
            they are; a float64 row beyond about 1e154 has the norm inf.

        Notes
        -----
        Cost: n m (q + 1) multiply-adds in float64. Extra memory: 2 n * 4096 float64, and 64 k + m / 16 for F. All
        calls are for rows of one length on one device.
        """
        q, share_dim, device = NUM_PROJECTIONS, rows[0].numel(), rows[0].device
        block, mixing = self._draw(share_dim, device)
        width = block.shape[1]
        projected = torch.zeros(q, len(rows), dtype=torch.float64, device=device)
        squares = torch.zeros(len(rows), dtype=torch.float64, device=device)
        buffer = torch.empty(len(rows), width, dtype=torch.float64, device=device)  # new memory is slow
        for number, start in enumerate(range(0, share_dim, width)):
            stop = min(start + width, share_dim)
            columns = buffer[:, : stop - start].copy_(torch.stack([row[start:stop] for row in rows]))
            projected += mixing[number].T @ (block[:, : stop - start] @ columns.T)
            squares += torch.linalg.vector_norm(columns, dim=1).square()
            if observe is not None:
                observe(start, columns)
        return projected.T.cpu().numpy(), squares.sqrt().cpu().numpy()

    def _draw(self, share_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the block, (q, columns), and the matrices, one for each block; drawn once."""
        if self._drawn is None:
            q, width = NUM_PROJECTIONS, min(BLOCK, share_dim)
            block = self._random.standard_normal((width, q)) / math.sqrt(q)
            mixing = self._random.standard_normal((-(-share_dim // width), q, q)) / math.sqrt(q)
            # As (q, columns), and times columns^T: BLAS takes half the time of columns times (columns, q).
            self._drawn = torch.from_numpy(block).T.contiguous().to(device), torch.from_numpy(mixing).to(device)
        return self._drawn


def _seeded(generator: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator, device="cpu")))
