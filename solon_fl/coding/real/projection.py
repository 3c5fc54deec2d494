"""Random projection of r shares of length m to an (r, q) matrix that still shows which nodes lied.

Lies are per node: they are in the same rows of every column. So the locator needs only the q random combinations of the
columns that a `Projector` draws. At the end the decoder checks all columns, which reveals anything these hide.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from solon_fl.coding._types import FloatArray
from solon_fl.coding.sections import Sections

__all__ = [
    "LARGEST_NORM",
    "NOISE_MARGIN",
    "NUM_PROJECTIONS",
    "SMALLEST_NUMBER",
    "UNDERESTIMATE",
    "Memory",
    "Projector",
]

NUM_PROJECTIONS = 16  # q
# The norm of a matrix exceeds 9.4 times that of its projection with a probability of at most 1e-9 (Chernoff bound).
UNDERESTIMATE = 9.4
NOISE_MARGIN = 3.0  # projected noise exceeds 3 times the noise with a probability of about 1e-8
LARGEST_NORM = 1e150  # largest norm of a usable share; its square must not overflow
SMALLEST_NUMBER = 1e-150  # its square must not underflow
BLOCK = 4096  # columns processed at once; 20 rows in float64 take 0.7 MB, half of a core's cache


class Projector:
    """One random projection B = Z F of rows Z, which may arrive one after the other, with an unpredictable F.

    The columns are cut into blocks, each within one tensor. For each block, F is one Gaussian block, the same for all,
    times a Gaussian q x q matrix of its own. Drawing these costs a small part of drawing m x q numbers, and still no
    lie can be hidden. Without the q x q matrices, F would miss a lie of +v in one block and -v in the next. Random
    signs instead of Gaussian numbers would miss a lie of two opposite entries with probability 2^-q.

    Parameters
    ----------
    generator : torch.Generator, optional
        A CPU generator, from which one number is drawn. Default: 128 bits of the operating system's entropy, drawn now,
        after the shares have arrived (torch would use 32 bits, few enough to try them all). Pass one only for
        reproducible simulation, because a node that knows F can hide a lie.

    Notes
    -----
    Shares that arrive later are projected with the same F, which never leaves the server.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._random = np.random.default_rng() if generator is None else _seeded(generator)
        self._drawn: tuple[Tensor, Tensor] | None = None
        self._known: dict[int, tuple[FloatArray, FloatArray]] = {}

    def project_finite(
        self, rows: Mapping[int, Tensor], sections: Sections
    ) -> tuple[list[int], FloatArray, FloatArray]:
        """Return the slots of the finite shares and, for each tensor, their projections, (C, n, q), and norms, (C, n).

        Each slot is projected only once.
        """
        new = sorted(rows.keys() - self._known.keys())
        if new:
            projected, norms = self.project_tensors([rows[slot] for slot in new], sections)
            self._known |= {slot: (projected[:, row], norms[:, row]) for row, slot in enumerate(new)}
        slots = [s for s in sorted(rows) if np.linalg.norm(self._known[s][1]) < LARGEST_NORM]  # false for NaN
        if not slots:
            return [], np.zeros((0, 0, NUM_PROJECTIONS)), np.zeros((0, 0))
        found = [self._known[slot] for slot in slots]
        return slots, np.stack([known[0] for known in found], axis=1), np.stack([known[1] for known in found], axis=1)

    def project_tensors(
        self, rows: Sequence[Tensor], sections: Sections, chosen: Sequence[int] | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return, for each tensor (or the tensors numbered in `chosen`), the rows' projections, (C, n, q), and norms.

        The norms are (C, n). See `project`. All calls must have the same `sections` and `chosen`.
        """
        numbers = range(len(sections.stops)) if chosen is None else chosen
        places = {number: place for place, number in enumerate(numbers)}
        blocks = [(places[number], columns) for number, columns in sections.blocks(BLOCK, chosen)]
        return self._project(rows, blocks, len(places), None)

    def project(
        self, rows: Sequence[Tensor], observe: Callable[[int, Tensor], None] | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return the projections of the rows, and their norms.

        Parameters
        ----------
        rows : sequence of n tensors, each (m,), any float dtype, one device
            The shares. They are read in place, never stacked as a whole.
        observe : callable, optional
            (start, columns) -> None, called with each block of columns, (n, 4096 or fewer) float64, which is valid
            during the call. It serves computations that also need all columns, because reading and converting them a
            second time would take as long as projecting.

        Returns
        -------
        projected : (n, q) float64
            The projections, scaled so that the norm of row j estimates the norm of rows[j].
        norms : (n,) float64
            The norms of the rows. A row with NaN or inf has the norm NaN or inf, and does not affect the others. A
            float64 row beyond about 1e154 has the norm inf.

        Notes
        -----
        Cost: n m (q + 1) multiply-adds in float64. Extra memory: 2 n * 4096 float64, and 64 k + m / 16 for F. All
        calls must have rows of one length on one device.
        """
        blocks = Sections.whole(rows[0].numel()).blocks(BLOCK)
        projected, norms = self._project(rows, blocks, 1, observe)
        return projected[0], norms[0]

    def _project(
        self,
        rows: Sequence[Tensor],
        blocks: Sequence[tuple[int, slice]],
        num_tensors: int,
        observe: Callable[[int, Tensor], None] | None,
    ) -> tuple[FloatArray, FloatArray]:
        device, width = rows[0].device, max((cut.stop - cut.start for _, cut in blocks), default=1)
        block, mixing = self._draw(width, len(blocks), device)
        projected = torch.zeros(num_tensors, NUM_PROJECTIONS, len(rows), dtype=torch.float64, device=device)
        squares = torch.zeros(num_tensors, len(rows), dtype=torch.float64, device=device)
        buffer = torch.empty(len(rows), width, dtype=torch.float64, device=device)  # reused: allocation is slow
        for number, (tensor, cut) in enumerate(blocks):
            columns = buffer[:, : cut.stop - cut.start].copy_(torch.stack([row[cut] for row in rows]))
            projected[tensor] += mixing[number].T @ (block[:, : cut.stop - cut.start] @ columns.T)
            squares[tensor] += torch.linalg.vector_norm(columns, dim=1).square()
            if observe is not None:
                observe(cut.start, columns)
        return projected.transpose(1, 2).cpu().numpy(), squares.sqrt().cpu().numpy()

    def _draw(self, width: int, num_blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the Gaussian block, (q, columns), and the q x q matrices, one per block of columns; drawn once."""
        if self._drawn is None:
            q = NUM_PROJECTIONS
            block = self._random.standard_normal((width, q)) / math.sqrt(q)
            mixing = self._random.standard_normal((num_blocks, q, q)) / math.sqrt(q)
            # Shape (q, columns), multiplied by columns^T: BLAS takes half the time of columns times (columns, q).
            self._drawn = torch.from_numpy(block).T.contiguous().to(device), torch.from_numpy(mixing).to(device)
        return self._drawn


class Memory:
    """Results of earlier decodes of a group, for later ones with the same shares and some more.

    Parameters
    ----------
    generator : torch.Generator, optional
        See `Decoder.decode`.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._generator = generator
        self._projector: Projector | None = None

    @property
    def is_disputed(self) -> bool:
        """Whether the shares had to be projected."""
        return self._projector is not None

    @property
    def projector(self) -> Projector:
        """The projector for all columns, drawn at first use."""
        if self._projector is None:
            self._projector = self.new_projector()
        return self._projector

    def new_projector(self) -> Projector:
        """Return a projector for some of the columns."""
        return Projector(self._generator)


def _seeded(generator: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator, device="cpu")))
