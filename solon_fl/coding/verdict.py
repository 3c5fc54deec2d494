"""How far the gradient of a decode may be off, and which of the accused rows certainly lied.

The locator leaves out the fewest rows without which the others agree. That makes the gradient safe, but not the
accusation: liars can send shares that a few honest rows, badly conditioned ones, seem to spoil. So an accused row is
a certain lie only if no honest world explains the shares with that row in it; else it is a suspect.
See docs/explanation/the-code.md for the proofs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ._types import FloatArray
from .locating import can_try_all, explaining_supports, parity_of
from .projection import BLOCK
from .solving import Solution

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be said for certain.

    Attributes
    ----------
    error_bound : float
        Bound on |gradient - truth|.
    lies : frozenset of int
        Rows of the support that certainly lied; the others of it are suspects.
    """

    error_bound: float
    lies: frozenset[int]


def judge(
    solution: Solution,
    generator: FloatArray,
    rows: list[Tensor],
    noise: float,
    liars: int,
    amplification: Callable[[int], float],
) -> Verdict:
    """Judge the accused rows of a solution.

    Parameters
    ----------
    solution : Solution
        Without the rows of its support.
    generator : (n, k) float64
        The generator's rows.
    rows : list of n Tensors, (m,)
        The shares.
    noise : float
        Norm of what all honest rows together may be off by.
    liars : int
        s', lies that there may be among the rows.
    amplification : callable
        `Code.worst_amplification`.

    Notes
    -----
    Cost: nothing of size m if all accused rows deviate loudly; else one pass over the others of them, k multiply-adds
    a number, and what `explaining_supports` takes.
    """
    num_rows, compression = generator.shape
    delta = solution.residual + solution.residual_rounding + noise
    bound = amplification(max(num_rows - len(solution.support) - liars, compression)) * delta
    smallest, largest = solution.lies - solution.lies_rounding, solution.lies + solution.lies_rounding
    loud = smallest > bound + noise
    doubtful = [row for row, certain in zip(solution.support, loud, strict=True) if not certain]
    second = amplification(max(num_rows - liars, compression)) * (delta + float(np.linalg.norm(largest[~loud])))
    lies = set(solution.support) - set(doubtful)
    if doubtful:
        lies |= _indispensable(solution, generator, rows, doubtful, liars=liars - len(lies), threshold=delta)
    return Verdict(min(bound, second) + solution.rounding, frozenset(lies))


def _indispensable(
    solution: Solution,
    generator: FloatArray,
    rows: list[Tensor],
    doubtful: list[int],
    *,
    liars: int,
    threshold: float,
) -> set[int]:
    """Return the doubtful rows that are in every set of `liars` rows without which the others may all be honest.

    Rows that are accused and not doubtful are lies, and are left out. Of the others, every set of `liars` rows is
    tried; if there are too many sets, no row is indispensable.
    """
    certain = set(solution.support) - set(doubtful)
    alive = [row for row in range(len(rows)) if row not in certain]
    parity = parity_of(generator[alive])
    num_checks, num_rows = parity.shape
    if liars < 1 or liars >= num_checks or not can_try_all(num_rows, num_checks, liars):
        return set()
    deviations = np.zeros((num_rows, len(doubtful)))
    deviations[[alive.index(row) for row in doubtful]] = _square_root(_gram(solution, generator, rows, doubtful))
    supports, _ = explaining_supports(parity, deviations, liars, threshold)
    if not len(supports):  # more lies than allowed for: nothing is certain
        return set()
    everywhere = np.bincount(supports.reshape(-1), minlength=num_rows) == len(supports)
    return {alive[place] for place in np.flatnonzero(everywhere)}


def _gram(solution: Solution, generator: FloatArray, rows: list[Tensor], doubtful: list[int]) -> FloatArray:
    """Return the inner products, over all columns, of what the doubtful rows deviate from the solution by."""
    if solution.gram is not None:
        places = [solution.support.index(row) for row in doubtful]
        return solution.gram[np.ix_(places, places)]
    chunks = solution.chunks
    factor = torch.from_numpy(generator[doubtful]).to(chunks.device)
    gram = torch.zeros(len(doubtful), len(doubtful), dtype=torch.float64, device=chunks.device)
    for start in range(0, chunks.shape[1], BLOCK):
        columns = slice(start, start + BLOCK)
        deviations = torch.stack([rows[row][columns] for row in doubtful]).to(torch.float64)
        deviations -= factor @ chunks[:, columns].to(torch.float64)
        gram += deviations @ deviations.T
    return gram.cpu().numpy()


def _square_root(gram: FloatArray) -> FloatArray:
    """Return L with L L^T = gram."""
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))
