"""Draco's cyclic code."""

import math
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from solon_fl.baselines.draco.code import FAILED, DracoCode, DracoDecoded, Received, receive, weighted_sum
from solon_fl.coding._types import FloatArray
from solon_fl.coding.real.fourier import trigonometric_columns
from solon_fl.coding.real.locating import LocatingProblem, Support
from solon_fl.coding.real.locators import locate_rows
from solon_fl.coding.real.projection import NOISE_MARGIN

__all__ = ["CyclicCode"]

ABSURD = 1e9  # times the (s+1)-th largest norm: a lie, and one that would drown others in float64's rounding
CLOSER = 0.1  # a second look counts if it leaves this part of the residual: less may be fitting noise


class CyclicCode(DracoCode):
    """Draco's cyclic code: node j computes batches j..j+2s (mod n) and sends one complex combination of them.

    The combinations R = W g, W = C_L Q with C_L the first n - 2s columns of the inverse DFT matrix, are
    Reed-Solomon codewords at the roots of unity: the last 2s frequencies of honest vectors vanish, and
    those of lies locate them. See `DracoCode` for parameters and errors; rtol is relative to the (s+1)-th largest norm.

    Notes
    -----
    Guarantee: a gradient is returned only if all vectors but at most s agree with one codeword up to the
    `tolerance`, and at most s lies that stand out from it are named. Over real numbers that is weak for many nodes:
    2s neighbours that collude are told from the honest up to a factor of the code's condition only (160 at
    n = 15, s = 2; 4e7 at n = 45, s = 5; 9e10 at n = 100, s = 5), so at large n / s lies made for that code may fail
    the decode, shift the gradient (measured, relative: up to 0.08 at n = 45, more than 1 at n = 100, s = 5; nothing at
    n = 15), or be blamed on others. Independent or equal lies of a vector's norm were located
    in 200 of 200 trials each, also by s neighbours (whose removal leaves a relative error of 4e-5 at n = 100, s = 5).
    More than s liars are reported, unless they agree on another codeword.
    Cost: 2 n d (q + 1) multiply-adds to project, 2 n d to solve (in the same pass over the vectors if nobody lies,
    else in a second one), and locating in an (n, 2q) matrix.
    Differs from the paper: row (n-2s-1)/2 of Q is all ones, not the first, where W's entries have up to 3e8 times the
    size of their sum at n = 100, s = 5, beyond float32; q = 16 fresh projections, not one vector for the run; one
    verdict for all layers; a relative tolerance and a check of the rows kept, not |.| > 1e-9; least squares over
    all rows kept, not over n - 2s.

    References
    ----------
    Chen et al., "DRACO", ICML 2018, section 4 (cyclic code).
    """

    is_complex = True

    @cached_property
    def matrix(self) -> npt.NDArray[np.complex128]:
        """W, (n, n): the rows are the nodes, the columns the batches."""
        n, s = self.num_nodes, self.byzantine
        steps = np.arange(1, 2 * s + 1)
        # The only polynomials of degree < n - 2s that vanish at all other nodes: Gaussian binomials, times phases.
        sines = np.sin(np.pi * steps / n)
        kernel = np.concatenate([[1.0], np.cumprod(sines[::-1] / sines)])
        offsets = np.arange(2 * s + 1)
        kernel = kernel * np.exp(-1j * np.pi * (n - 2 * s - 1) * offsets / n)
        kernel *= math.sqrt(n) / (kernel @ np.exp(2j * np.pi * self._ones_row * offsets / n))
        matrix = np.zeros((n, n), dtype=np.complex128)
        for node in range(n):
            batches = (node + offsets) % n
            matrix[node, batches] = kernel * np.exp(2j * np.pi * self._ones_row * batches / n)
        return matrix

    def batches(self, node: int) -> tuple[int, ...]:
        """Return node..node + 2s, mod n."""
        return tuple((node + offset) % self.num_nodes for offset in range(2 * self.byzantine + 1))

    def weights(self, node: int) -> npt.NDArray[np.complex128]:
        """Return the entries of row W[node] at its batches."""
        return np.asarray(self.matrix[node, list(self.batches(node))], dtype=np.complex128)

    @property
    def _ones_row(self) -> int:
        """The row of Q that is all ones: 1^T = C_L[:, row]^H W."""
        return (self.num_nodes - 2 * self.byzantine - 1) // 2

    @cached_property
    def _problem(self) -> tuple[FloatArray, npt.NDArray[np.complex128], npt.NDArray[np.complex128]]:
        """A real code, and phases: those times R have real and imaginary parts in that code; and C_L."""
        n, dimension = self.num_nodes, self.num_nodes - 2 * self.byzantine
        angles = 2 * np.pi * np.arange(n) / n
        columns = np.exp(1j * np.outer(angles, np.arange(dimension))) / math.sqrt(n)
        return trigonometric_columns(n, dimension), np.exp(-0.5j * (dimension - 1) * angles), columns

    def _decode(self, vectors: dict[int, Tensor], generator: torch.Generator | None) -> DracoDecoded:
        if len(vectors) < self.num_nodes:
            return self._solve(receive(vectors, self.num_nodes, generator), None)
        # If nobody lies, the gradient is solved from all vectors: at little cost while they are read to be projected.
        gradient = torch.empty_like(vectors[0][0])
        factor = torch.from_numpy(self._solver(list(vectors))).to(gradient.device)

        def solve(start: int, columns: Tensor) -> None:
            gradient[start : start + columns.shape[1]] = factor @ columns

        return self._solve(receive(vectors, self.num_nodes, generator, solve), gradient)

    def _solver(self, kept: list[int]) -> FloatArray:
        """Return the weights of the real and imaginary parts of these nodes' vectors in the mean gradient."""
        # v^T C_L[kept] = e^T, so v^T R[kept] = e^T Q g = 1^T g, with the least |v|.
        columns = self._problem[2]
        solver = np.linalg.pinv(columns[kept])[self._ones_row] / self.num_nodes
        return np.stack([solver.real, -solver.imag], axis=1).reshape(-1)

    def _solve(self, received: Received, of_all: Tensor | None) -> DracoDecoded:
        """Locate the lies and solve from the other vectors; `of_all` is the gradient if there are none."""
        n, s = self.num_nodes, self.byzantine
        scale = float(np.sort(received.norms)[n - 1 - s]) + received.floor
        usable = {node for node in received.vectors if received.norms[node] <= ABSURD * scale}
        if len(usable) < n - s:
            return FAILED
        generator, phases, _ = self._problem
        real, imaginary = np.split(received.projected, 2, axis=1)
        rotated = phases[:, None] * (real + 1j * imaginary)
        rotated[[node for node in range(n) if node not in usable]] = 0
        problem = LocatingProblem(
            generator=generator,
            projected=np.concatenate([rotated.real, rotated.imag], axis=1),
            points=np.exp(2j * np.pi * np.arange(n) / n),
            multipliers=phases.conj() * math.sqrt(n),
            max_errors=s,
            tolerance=NOISE_MARGIN * math.sqrt(n) * (self.rtol * scale + received.floor),
        )
        own_rounding = n * np.finfo(np.float64).eps  # of projections and residuals
        support = _locate(problem, math.sqrt(n) * (received.rounding + own_rounding) * scale)
        kept = sorted(usable.difference(support or ()))
        if support is None or len(kept) < n - s:
            return FAILED
        gradient = of_all
        if gradient is None or len(kept) < n:
            gradient = weighted_sum(self._solver(kept), [part for node in kept for part in received.vectors[node]])
        return DracoDecoded(
            gradient=gradient,
            corrupt_nodes=tuple(sorted(set(range(n)).difference(kept))),
            residual=problem.residual(support),
            tolerance=problem.tolerance,
        )


def _locate(problem: LocatingProblem, rounding: float) -> Support | None:
    """Locate, and look closer while more than the vectors' rounding is left: it may hide lies of neighbours."""
    support = locate_rows(None, problem)
    while support is not None and (residual := problem.residual(support)) > rounding:
        problem = replace(problem, tolerance=CLOSER * residual)
        closer = locate_rows(None, problem)
        if closer is None:
            break
        support = closer
    return support
