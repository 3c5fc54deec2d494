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

# A vector above ABSURD x the (s+1)-th largest norm is a lie, and would hide others in float64's rounding.
ABSURD = 1e9
# A second search counts only if it leaves at most this part of the residual: a smaller gain may be fitted noise.
CLOSER = 0.1


class CyclicCode(DracoCode):
    """Draco's cyclic code: node j computes batches j..j+2s (mod n) and sends one complex combination of them.

    The combinations are R = W g with W = C_L Q, where C_L is the first n - 2s columns of the inverse DFT matrix. They
    are Reed-Solomon codewords at the roots of unity: the last 2s frequencies of honest vectors vanish, and those of
    lies locate them. See `DracoCode` for parameters and errors; rtol is relative to the (s+1)-th largest norm.

    Notes
    -----
    Guarantee: a gradient is returned only if all vectors except at most s agree with one codeword up to the
    `tolerance`; the at most s lies that stand out from it are named. Over real numbers this is weak for many nodes. The
    code separates 2s colluding neighbours from honest nodes only up to a factor of its condition number (160 at n = 15,
    s = 2; 4e7 at n = 45, s = 5; 9e10 at n = 100, s = 5). At large n / s, lies designed for the code may thus make the
    decode fail, shift the gradient (measured relative shifts: up to 0.08 at n = 45, more than 1 at n = 100, s = 5;
    none at n = 15), or be blamed on other nodes. Independent or equal lies of a vector's norm were located in 200 of
    200 trials each, even from s neighbours (removing those leaves a relative error of 4e-5 at n = 100, s = 5). More
    than s liars are reported, unless they agree on another codeword.

    Cost: 2 n d (q + 1) multiply-adds to project, 2 n d to solve (in the same pass over the vectors if nobody lies,
    otherwise in a second one), and locating lies in an (n, 2q) matrix.

    Differs from the paper:

    - Row (n-2s-1)/2 of Q is all ones, rather than the first. With the first, the entries of W are up to 3e8 times as
      large as their sum at n = 100, s = 5, which float32 can't represent.
    - Vectors are projected on q = 16 fresh vectors, rather than on one for the whole run.
    - There is one verdict for all layers.
    - The tolerance is relative, and the rows kept are checked, rather than compared with an absolute 1e-9.
    - The gradient is a least-squares solution over all rows kept, rather than over n - 2s of them.

    References
    ----------
    Chen et al., "DRACO", ICML 2018, section 4 (cyclic code).
    """

    is_complex = True

    @cached_property
    def matrix(self) -> npt.NDArray[np.complex128]:
        """W, (n, n), with a row for each node and a column for each batch."""
        n, s = self.num_nodes, self.byzantine
        steps = np.arange(1, 2 * s + 1)
        # These are the only polynomials of degree < n - 2s that vanish at all other nodes: Gaussian binomials times
        # phases.
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
        """Return the numbers node, ..., node + 2s, mod n."""
        return tuple((node + offset) % self.num_nodes for offset in range(2 * self.byzantine + 1))

    def weights(self, node: int) -> npt.NDArray[np.complex128]:
        """Return the entries of row W[node] at its batches."""
        return np.asarray(self.matrix[node, list(self.batches(node))], dtype=np.complex128)

    @property
    def _ones_row(self) -> int:
        """The row of Q that is all ones, so that 1^T = C_L[:, row]^H W."""
        return (self.num_nodes - 2 * self.byzantine - 1) // 2

    @cached_property
    def _problem(self) -> tuple[FloatArray, npt.NDArray[np.complex128], npt.NDArray[np.complex128]]:
        """A real code, phases such that the real and imaginary parts of phases x R are in that code, and C_L."""
        n, dimension = self.num_nodes, self.num_nodes - 2 * self.byzantine
        angles = 2 * np.pi * np.arange(n) / n
        columns = np.exp(1j * np.outer(angles, np.arange(dimension))) / math.sqrt(n)
        return trigonometric_columns(n, dimension), np.exp(-0.5j * (dimension - 1) * angles), columns

    def _decode(self, vectors: dict[int, Tensor], generator: torch.Generator | None) -> DracoDecoded:
        if len(vectors) < self.num_nodes:
            return self._solve(receive(vectors, self.num_nodes, generator), None)
        # If nobody lies, the gradient is solved from all vectors, which is cheap while they are read to be projected.
        gradient = torch.empty_like(vectors[0][0])
        factor = torch.from_numpy(self._solver(list(vectors))).to(gradient.device)

        def solve(start: int, columns: Tensor) -> None:
            gradient[start : start + columns.shape[1]] = factor @ columns

        return self._solve(receive(vectors, self.num_nodes, generator, solve), gradient)

    def _solver(self, kept: list[int]) -> FloatArray:
        """Return the weights of the real and imaginary parts of these nodes' vectors in the mean gradient."""
        # The v with the least norm and v^T C_L[kept] = e^T, so that v^T R[kept] = e^T Q g = 1^T g.
        columns = self._problem[2]
        solver = np.linalg.pinv(columns[kept])[self._ones_row] / self.num_nodes
        return np.stack([solver.real, -solver.imag], axis=1).reshape(-1)

    def _solve(self, received: Received, of_all: Tensor | None) -> DracoDecoded:
        """Locate the lies and solve from the other vectors; `of_all` is the gradient if there are no lies."""
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
    """Locate lies, searching again while the residual exceeds the vectors' rounding: it may hide lies of neighbours."""
    support = locate_rows(None, problem)
    while support is not None and (residual := problem.residual(support)) > rounding:
        problem = replace(problem, tolerance=CLOSER * residual)
        closer = locate_rows(None, problem)
        if closer is None:
            break
        support = closer
    return support
