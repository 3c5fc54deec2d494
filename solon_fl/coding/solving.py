"""From the shares kept to the gradient, and what all the others deviate from it by, over all columns.

`interpolate` is fast: most of its result is received, not computed. `least_squares` takes several times as long, but
works in float64 and averages the noise of all rows.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ._types import FloatArray
from .locating import Support, parity_of
from .projection import BLOCK

__all__ = ["Interpolation", "Solution", "interpolate", "least_squares"]

CPU_COLUMNS = 32_768  # that `interpolate` works on at once: of 20 float32 rows, 2.6 MB, about a core's cache
OTHER_COLUMNS = 1_048_576  # the same on a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A gradient made without the rows of the support, and norms over all columns.

    Attributes
    ----------
    support : tuple of int
        Rows that it was not made from.
    chunks : Tensor, (k, m)
        The gradient, and behind its last entry what stands where it was padded; of the rows' dtype and device.
    dim : int
        d.
    residual : float
        Norm of what the other rows deviate from it by.
    lies : (len(support),) float64
        Norm of what each row of the support deviates by.
    rounding : float
        What rounding may have changed the gradient by.
    residual_rounding : float
        What rounding may have hidden of the residual.
    lies_rounding : (len(support),) float64
        What rounding may have changed each of the lies by.
    gram : (len(support), len(support)) float64, or None
        Inner products of the lies, if they are known.
    """

    support: Support
    chunks: Tensor
    dim: int
    residual: float
    lies: FloatArray
    rounding: float
    residual_rounding: float
    lies_rounding: FloatArray
    gram: FloatArray | None = None

    @property
    def gradient(self) -> Tensor:
        """The gradient, (dim,)."""
        return self.chunks.view(-1)[: self.dim]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpolation(Solution):
    """A gradient through k of the rows.

    Attributes
    ----------
    row_norms : (n,) float64
        Of all rows; inf for float32 rows beyond about 1e19.
    """

    row_norms: FloatArray


def interpolate(
    generator: FloatArray, support: Support, rows: list[Tensor], dim: int, loud: float
) -> Interpolation | slice | None:
    """Return the gradient that k of the rows not in the support fix, and what all rows deviate from it by.

    Rows that hold a chunk of the gradient as it is (unit rows of the generator) are copied; only the chunks for
    which there is none are solved for. All in the dtype of the rows: rounding is bounded by Higham's gamma.

    Parameters
    ----------
    generator : (n, k) float64
        The generator's rows.
    support : tuple of int
        Rows that are not to be made use of; k others at least are left.
    rows : list of n Tensors, (m,), float32 or float64
        The shares.
    dim : int
        d.
    loud : float
        Rows are loud in some columns if they deviate by more than `loud` times the largest of them.

    Returns
    -------
    The interpolation; or the first slice of columns where rows outside the support are loud or not finite; or None if
    matrix products of this device are not of full precision (TF32, bfloat16), or might overflow.

    Notes
    -----
    Cost: (n - k) k m multiply-adds if all unit rows are there, n k m at most. Extra memory: (n + k) times
    32,768 numbers, on a GPU 1,048,576.
    """
    num_rows, compression = generator.shape
    kept = [row for row in range(num_rows) if row not in support]
    basis, inverse = _basis(generator, kept)
    solved = [chunk for chunk in range(compression) if np.count_nonzero(inverse[chunk]) > 1]
    others = [row for row in kept if row not in basis] + list(support)
    num_checks = len(kept) - compression
    share_dim, dtype, device = rows[0].numel(), rows[0].dtype, rows[0].device
    width = min(CPU_COLUMNS if device.type == "cpu" else OTHER_COLUMNS, share_dim)
    weights = generator[others] @ inverse
    expected = torch.from_numpy(weights).to(device, dtype)
    solver = torch.from_numpy(inverse[solved]).to(device, dtype)
    buffer = torch.empty(
        max(len(others), 1), width, dtype=dtype, device=device
    )  # with one row there is a product to try
    if not _multiplies_in_full(compression, buffer):
        return None

    chunks = _new_memory(compression, share_dim, dtype, device)
    squares = torch.zeros(compression + 2 * len(others), dtype=torch.float64, device=device)
    for start in range(0, share_dim, width):
        columns = slice(start, min(start + width, share_dim))
        block, deviations = chunks[:, columns], buffer[: len(others), : columns.stop - start]
        for target, row in zip([*block, *deviations], [*basis, *others], strict=True):  # faster than torch.stack
            target.copy_(rows[row][columns])
        norms = [torch.linalg.vector_norm(block, dim=1), torch.linalg.vector_norm(deviations, dim=1)]
        deviations.addmm_(expected, block, alpha=-1)
        norms.append(torch.linalg.vector_norm(deviations, dim=1))
        here = torch.cat(norms).to(torch.float64).square()
        if not here[compression + len(others) :][:num_checks].sum() <= loud**2 * here[: len(kept)].max() < math.inf:
            return columns
        squares += here
        if solved:
            block[solved] = solver @ block

    limits = torch.finfo(dtype)
    lost = math.sqrt(share_dim * limits.smallest_normal)  # of a norm, at most: smaller squares vanish
    norms_of_basis, norms_of_others, lengths = np.split(
        (1 + width * limits.eps) * squares.sqrt().cpu().numpy(),  # no less than they are, but for what is lost
        [compression, compression + len(others)],
    )
    norms_of_basis, norms_of_others = norms_of_basis + lost, norms_of_others + lost
    if (np.abs(inverse) @ norms_of_basis).max() >= limits.max:
        return None
    gamma = (compression + 3) * limits.eps / 2
    rounding = gamma * (np.abs(weights) @ norms_of_basis + norms_of_others)
    rounding += lost
    row_norms = np.empty(num_rows)
    row_norms[basis], row_norms[others] = norms_of_basis, norms_of_others
    return Interpolation(
        support=support,
        chunks=chunks,
        dim=dim,
        residual=float(np.linalg.norm(lengths[:num_checks])),
        lies=lengths[num_checks:],
        rounding=float(np.linalg.norm(gamma * (np.abs(inverse[solved]) @ norms_of_basis))),
        residual_rounding=float(np.linalg.norm(rounding[:num_checks])),
        lies_rounding=rounding[num_checks:],
        row_norms=row_norms,
    )


def _basis(generator: FloatArray, kept: list[int]) -> tuple[list[int], FloatArray]:
    """Return k of the rows kept, and the matrix that makes of them the k chunks.

    Row l is chunk l itself where that was kept. For the other chunks rows are chosen that determine them well.
    """
    compression = generator.shape[1]
    identity = np.eye(compression)
    units = {identity[chunk].tobytes(): chunk for chunk in range(compression)}
    basis = {units[bits]: row for row in reversed(kept) if (bits := (generator[row] + 0.0).tobytes()) in units}
    received = np.array(sorted(basis), dtype=np.int64)
    solved = np.delete(np.arange(compression), received)
    if len(solved):
        spare = np.array([row for row in kept if row not in basis.values()])
        pivots = scipy.linalg.qr(generator[np.ix_(spare, solved)].T, mode="r", pivoting=True)[1]
        chosen = spare[pivots[: len(solved)]]
        basis.update(zip(solved.tolist(), chosen.tolist(), strict=True))
        inverse = np.linalg.inv(generator[np.ix_(chosen, solved)])
        identity[np.ix_(solved, solved)] = inverse
        identity[np.ix_(solved, received)] = -inverse @ generator[np.ix_(chosen, received)]
    return [basis[chunk] for chunk in range(compression)], identity


def _multiplies_in_full(compression: int, buffer: Tensor) -> bool:
    """Whether products of k terms into the buffer are of the precision of its dtype, tried with numbers that tell."""
    if buffer.dtype == torch.float64:
        return True
    telling = buffer.new_zeros(len(buffer), compression)
    telling[:, 0] = 1 + 2.0**-20
    buffer.zero_().addmm_(telling, buffer.new_ones(compression, buffer.shape[1]), alpha=-1)
    return bool((buffer == -(1 + 2.0**-20)).all())


def _new_memory(num_rows: int, num_columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised matrix; on the CPU numpy's: it asks Linux for huge pages, and is four times as fast."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty((num_rows, num_columns), str(dtype).removeprefix("torch.")))
    return torch.empty(num_rows, num_columns, dtype=dtype, device=device)


def least_squares(generator: FloatArray, support: Support, rows: list[Tensor], dim: int) -> Solution:
    """Return the least-squares gradient over the rows not in the support: X = pinv(G[kept]) Z[kept], cut to dim.

    The residual Z[kept] - G[kept] X has the norm of H Z[kept], H the orthonormal parity of these rows; lie j is
    Z[j] - G[j] X. In float64, because matrix products of a smaller dtype may silently be of a still smaller one
    (TF32).
    """
    num_rows, compression = generator.shape
    accused = list(support)
    kept = np.delete(np.arange(num_rows), accused)
    weights = np.zeros((num_rows, num_rows))
    solver, checks, lies = np.split(weights, [compression, len(kept)])
    solver[:, kept] = np.linalg.pinv(generator[kept])
    checks[:, kept] = parity_of(generator[kept])
    lies[:] = np.eye(num_rows)[accused] - generator[accused] @ solver
    share_dim, device = rows[0].numel(), rows[0].device
    factor = torch.from_numpy(weights).to(device)
    chunks = _new_memory(compression, share_dim, rows[0].dtype, device)
    squares = torch.zeros(num_rows, dtype=torch.float64, device=device)
    gram = torch.zeros(len(accused), len(accused), dtype=torch.float64, device=device)
    for start in range(0, share_dim, BLOCK):
        product = factor @ torch.stack([row[start : start + BLOCK] for row in rows]).to(torch.float64)
        chunks[:, start : start + BLOCK] = product[:compression]
        squares += torch.linalg.vector_norm(product, dim=1).square()
        gram += product[len(kept) :] @ product[len(kept) :].T
    norms = np.split(squares.sqrt().cpu().numpy(), [compression, len(kept)])
    largest = torch.finfo(chunks.dtype).max
    if norms[0].max() >= largest:  # what is beyond by rounding only: the truth is not
        chunks.clamp_(-largest, largest)
    return Solution(
        support=support,
        chunks=chunks,
        dim=dim,
        residual=float(np.linalg.norm(norms[1])),
        lies=norms[2],
        rounding=torch.finfo(chunks.dtype).eps * float(np.linalg.norm(norms[0])),
        residual_rounding=0.0,
        lies_rounding=np.zeros(len(accused)),
        gram=gram.cpu().numpy(),
    )
