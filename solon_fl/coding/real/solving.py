"""Solving for the gradient from the kept shares, and measuring how far all shares deviate from it, over all columns.

`interpolate` is fast, because it copies most of its result from shares. `least_squares` takes several times as long,
but works in float64 and averages the noise of all rows.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from solon_fl.coding._types import FloatArray
from solon_fl.coding.memory import new_memory
from solon_fl.coding.sections import Sections

from .locating import Support, parity_of
from .projection import BLOCK

__all__ = ["Interpolation", "Solution", "interpolate", "least_squares"]

CPU_COLUMNS = 32_768  # columns that `interpolate` processes at once; 20 float32 rows take 2.6 MB, about a core's cache
OTHER_COLUMNS = 1_048_576  # the same on a GPU
FEW_PIECES = 4  # blocks with at most this many pieces are measured piece by piece
SMALLEST_NORM = 1e-8  # below it float32 norms are recomputed in float64; above, underflow in 1e6 columns costs 1e-8
ROUNDINGS = 4  # units by which an honest share, and so a solved entry, may be off; see tests/coding/real/test_zeros.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A gradient computed without the rows of the support, and norms over the columns of each tensor.

    Attributes
    ----------
    support : tuple of a int
        Rows that the gradient was computed without.
    columns : Tensor, (m, k)
        X^T: the gradient, followed by the decoded padding; with the dtype and device of the rows.
    dim : int
        d, the gradient's length.
    sections : Sections
        The C tensors.
    norms : (C,) float64
        Norms of the gradient.
    residual : (C,) float64
        Norms of the other rows' deviation from the gradient's shares.
    lies : (C, a) float64
        Norm of the deviation of each row of the support.
    rounding : (C,) float64
        Bound on the rounding error of the gradient.
    residual_rounding : (C,) float64
        Bound on how much of the residual rounding may have hidden.
    lies_rounding : (C, a) float64
        Bound on the rounding error of each of the lies.
    gram : (K, a, a) float64, or None
        Inner products of the lies, for each class of tensors, if they are known.
    odd : tuple of int
        Numbers of the tensors in which the other rows are known to disagree by more than noise.
    """

    support: Support
    columns: Tensor
    dim: int
    sections: Sections
    norms: FloatArray
    residual: FloatArray
    lies: FloatArray
    rounding: FloatArray
    residual_rounding: FloatArray
    lies_rounding: FloatArray
    gram: FloatArray | None = None
    odd: tuple[int, ...] = ()

    @property
    def gradient(self) -> Tensor:
        """The gradient, (dim,)."""
        return self.columns.view(-1)[: self.dim]

    def fits(self, limits: FloatArray) -> bool:
        """Return whether the residual of each class is within its limit; `limits` are (K,)."""
        return bool((self.sections.norms_by_class(self.residual) <= limits).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpolation(Solution):
    """A gradient through k of the rows.

    Attributes
    ----------
    row_norms : (C, n) float64
        Norms of all rows; inf for float32 rows beyond about 1e19.
    """

    row_norms: FloatArray


def interpolate(
    generator: FloatArray, support: Support, rows: list[Tensor], dim: int, sections: Sections, loud: float
) -> Interpolation | slice | None:
    """Return the gradient determined by k rows outside of the support, and how far all rows deviate from it.

    Rows that hold every k-th entry of the gradient unchanged (unit rows of the generator) are copied, and only the
    missing entries are solved for. Everything is in the dtype of the rows; Higham's gamma bounds the rounding errors.

    Parameters
    ----------
    generator : (n, k) float64
        The generator's rows.
    support : tuple of int
        Rows that must not be used. At least k others are left.
    rows : list of n Tensors, (m,), float32 or float64
        The shares.
    dim : int
        d, the gradient's length.
    sections : Sections
        The tensors.
    loud : float
        Rows are loud in some columns if they deviate by more than `loud` times the largest of them.

    Returns
    -------
    Interpolation, slice or None
        The interpolation; or the first slice of columns in which rows outside of the support are loud or not finite; or
        None if matrix products on this device lack full precision (TF32, bfloat16) or might overflow.

    Notes
    -----
    Solved entries that can't be distinguished from zero are set to zero; see `_without_noise`.

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
    noise = torch.from_numpy(_rounding_weights(inverse[solved], generator[basis], dtype)).to(device, dtype)
    scratch = torch.empty(compression, width, dtype=dtype, device=device)
    buffer = torch.empty(
        max(len(others), 1), width, dtype=dtype, device=device
    )  # one row at least, to test the precision of a product
    if not _multiplies_in_full(compression, buffer):
        return None

    result = new_memory(share_dim, compression, dtype, device)
    squares = torch.zeros(len(sections.stops), 2 * (compression + len(others)), dtype=torch.float64, device=device)
    for start in range(0, share_dim, width):
        columns = slice(start, min(start + width, share_dim))
        block, deviations = (part[:, : columns.stop - start] for part in (scratch, buffer[: len(others)]))
        for target, row in zip([*block, *deviations], [*basis, *others], strict=True):  # faster than torch.stack
            target.copy_(rows[row][columns])
        pieces = sections.pieces(start, columns.stop)
        norms = [_norms(block, pieces), _norms(deviations, pieces)]
        deviations.addmm_(expected, block, alpha=-1)
        norms.append(_norms(deviations, pieces))
        if solved:
            block[solved] = _without_noise(solver @ block, noise, block, solved)
        norms.append(_norms(block, pieces) if solved else norms[0])
        here = torch.cat(norms, dim=1).square()
        total = here.sum(0)
        disagreement = total[compression + len(others) :][:num_checks].sum()
        if not disagreement <= loud**2 * total[: len(kept)].max() < math.inf:
            return columns
        squares[pieces[0][0] : pieces[-1][0] + 1] += here
        _interleave(result[columns], block)

    limits = torch.finfo(dtype)
    lost = _lost(sections.widths, compression, dtype)[:, None]
    norms_of_basis, norms_of_others, lengths, norms_of_chunks = np.split(
        (1 + width * limits.eps) * squares.sqrt().cpu().numpy(),  # upper bounds, apart from `lost`
        np.cumsum([compression, len(others), len(others)]),
        axis=1,
    )
    norms_of_basis, norms_of_others = norms_of_basis + lost, norms_of_others + lost
    if (norms_of_basis @ np.abs(inverse).T).max() >= limits.max:
        return None
    gamma = (compression + 3) * limits.eps / 2
    rounding = gamma * (norms_of_basis @ np.abs(weights).T + norms_of_others) + lost
    row_norms = np.empty((len(sections.stops), num_rows))
    row_norms[:, basis], row_norms[:, others] = norms_of_basis, norms_of_others
    of_solved = gamma * norms_of_basis @ np.abs(inverse[solved]).T
    of_solved += 1.01 * norms_of_chunks @ noise.cpu().double().numpy().T  # 1.01: norms before some entries became 0
    return Interpolation(
        support=support,
        columns=result,
        dim=dim,
        sections=sections,
        norms=np.linalg.norm(norms_of_chunks, axis=1),
        residual=np.linalg.norm(lengths[:, :num_checks], axis=1),
        lies=lengths[:, num_checks:],
        rounding=np.linalg.norm(of_solved, axis=1),
        residual_rounding=np.linalg.norm(rounding[:, :num_checks], axis=1),
        lies_rounding=rounding[:, num_checks:],
        row_norms=row_norms,
    )


def _norms(matrix: Tensor, pieces: list[tuple[int, slice]]) -> Tensor:
    """Return the norm of each row in each piece, (pieces, rows), float64. Squares of float32 don't underflow."""
    if len(pieces) > FEW_PIECES and matrix.device.type == "cpu":
        with np.errstate(over="ignore"):  # float64 lies may overflow
            squares = np.square(matrix.numpy(), dtype=np.float64)
        return torch.from_numpy(np.sqrt(np.add.reduceat(squares, [cut.start for _, cut in pieces], axis=1)).T)
    norms = torch.stack([torch.linalg.vector_norm(matrix[:, cut], dim=1) for _, cut in pieces]).to(torch.float64)
    if matrix.dtype == torch.float32:
        for number in (norms < SMALLEST_NORM).any(dim=1).nonzero().flatten().tolist():
            cut = pieces[number][1]
            norms[number] = torch.linalg.vector_norm(matrix[:, cut], dim=1, dtype=torch.float64)
    return norms


def _lost(widths: FloatArray, compression: int, dtype: torch.dtype) -> FloatArray:
    """Return how much a norm may lose, by tensor, as float64 squares underflow and float32 sums round near zero."""
    limits = torch.finfo(dtype)
    if dtype == torch.float64:
        return np.asarray(np.sqrt(widths * limits.smallest_normal))
    return np.asarray((compression + 1) * limits.smallest_normal * limits.eps * np.sqrt(widths))


def _interleave(target: Tensor, chunks: Tensor) -> None:
    """Copy (k, columns) into (columns, k). On the CPU numpy does it, in half of torch's time."""
    if target.device.type == "cpu":
        values, rows = target.numpy(), chunks.numpy()
        for chunk, row in enumerate(rows):
            values[:, chunk] = row
    else:
        target.copy_(chunks.T)


def _rounding_weights(solver: FloatArray, generator: FloatArray, dtype: torch.dtype) -> FloatArray:
    """Return U, (chunks, k): the rounding of the shares alone puts solved entries off by at most ``U |X|``."""
    unit = ROUNDINGS * torch.finfo(dtype).eps / 2
    return np.asarray(unit * np.abs(solver) @ np.abs(generator))


def _without_noise(values: Tensor, noise: Tensor, chunks: Tensor, solved: list[int]) -> Tensor:
    """Set entries to 0 that the rounding of the shares alone explains; return the entries.

    values : (a, columns), the solved entries
    chunks : (k, columns), X, or the shares in place of the solved entries

    Otherwise, entries that are 0 on every node would come back as noise, which Adam turns into full steps.
    """
    size = chunks.abs()
    size[solved] = values.abs()
    return values.masked_fill_(size[solved] <= noise @ size, 0)


def _basis(generator: FloatArray, kept: list[int]) -> tuple[list[int], FloatArray]:
    """Return k of the kept rows, and the matrix that computes the k chunks from them.

    Row l is chunk l itself if that row was kept. For the other chunks, well-conditioned rows are chosen.
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
    """Return whether a product of k terms into the buffer has the full precision of its dtype, by a test product."""
    if buffer.dtype == torch.float64:
        return True
    telling = buffer.new_zeros(len(buffer), compression)
    telling[:, 0] = 1 + 2.0**-20
    buffer.zero_().addmm_(telling, buffer.new_ones(compression, buffer.shape[1]), alpha=-1)
    return bool((buffer == -(1 + 2.0**-20)).all())


def least_squares(
    generator: FloatArray, support: Support, rows: list[Tensor], dim: int, sections: Sections
) -> Solution:
    """Return the least-squares gradient over the rows not in the support: X = pinv(G[kept]) Z[kept], cut to dim.

    The residual Z[kept] - G[kept] X has the norm of H Z[kept], where H is the orthonormal parity matrix of these rows.
    Lie j is Z[j] - G[j] X. It computes in float64, because matrix products in a smaller dtype may silently use an even
    smaller one (TF32). Entries that can't be distinguished from zero are set to zero.
    """
    num_rows, compression = generator.shape
    accused = list(support)
    kept = np.delete(np.arange(num_rows), accused)
    weights = np.zeros((num_rows, num_rows))
    solver, checks, lies = np.split(weights, [compression, len(kept)])
    solver[:, kept] = np.linalg.pinv(generator[kept])
    checks[:, kept] = parity_of(generator[kept])
    lies[:] = np.eye(num_rows)[accused] - generator[accused] @ solver
    share_dim, dtype, device = rows[0].numel(), rows[0].dtype, rows[0].device
    factor = torch.from_numpy(weights).to(device)
    noise = torch.from_numpy(_rounding_weights(solver, generator, dtype)).to(device)
    if dtype == torch.float64:  # here the sums below round as much as the shares do
        noise *= num_rows + float(np.linalg.cond(generator[kept])) ** 2
    result = new_memory(share_dim, compression, dtype, device)
    squares = torch.zeros(len(sections.stops), num_rows, dtype=torch.float64, device=device)
    gram = torch.zeros(len(sections.names), len(accused), len(accused), dtype=torch.float64, device=device)
    every, limits = list(range(compression)), torch.finfo(dtype)
    for number, cut in sections.blocks(BLOCK):
        product = factor @ torch.stack([row[cut] for row in rows]).to(torch.float64)
        chunks, deviations = product[:compression], product[len(kept) :]
        squares[number] += torch.linalg.vector_norm(product, dim=1).square()
        gram[sections.classes[number]] += deviations @ deviations.T
        chunks = _without_noise(chunks, noise, chunks, every)
        _interleave(result[cut], chunks.clamp_(-limits.max, limits.max))  # only rounding takes them beyond the limits
    norms = np.split(squares.sqrt().cpu().numpy(), [compression, len(kept)], axis=1)
    rounding = limits.eps * norms[0] + norms[0] @ noise.cpu().numpy().T
    return Solution(
        support=support,
        columns=result,
        dim=dim,
        sections=sections,
        norms=np.linalg.norm(norms[0], axis=1),
        residual=np.linalg.norm(norms[1], axis=1),
        lies=norms[2],
        rounding=np.linalg.norm(rounding, axis=1),
        residual_rounding=np.zeros(len(sections.stops)),
        lies_rounding=np.zeros((len(sections.stops), len(accused))),
        gram=gram.cpu().numpy(),
    )
