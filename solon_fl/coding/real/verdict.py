"""The verdict of a decode: how far the gradient may be off, and which of the accused rows certainly lied.

The locator leaves out the fewest rows without which the others agree. That makes the gradient safe, but not the
accusation: liars can send shares for which a few badly conditioned honest rows seem to be at fault. So an accused row
is a certain lie only if no honest explanation of the shares includes that row. Otherwise it is a suspect.
See docs/explanation/the-code.md for the proofs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solon_fl.coding._types import FloatArray

from .locating import can_try_all, explaining_supports, parity_of
from .projection import BLOCK
from .solving import Solution

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The conclusions that are certain.

    Attributes
    ----------
    error_bound : (K,) float64
        Bound on the norm of gradient - truth in each class of tensors.
    lies : frozenset of int
        Rows of the support that certainly lied. The other rows of the support are suspects.
    """

    error_bound: FloatArray
    lies: frozenset[int]


def judge(
    solution: Solution,
    generator: FloatArray,
    rows: list[Tensor],
    noise: FloatArray,
    liars: int,
    amplification: Callable[[int], float],
) -> Verdict:
    """Judge the accused rows of a solution. A row lied if any single class of tensors proves it.

    Parameters
    ----------
    solution : Solution
        The solution without the rows of its support.
    generator : (n, k) float64
        The generator's rows.
    rows : list of n Tensors, (m,)
        The shares.
    noise : (K,) float64
        Norm by which all honest rows together may be off in each class.
    liars : int
        s', the number of lies that may be among the rows.
    amplification : callable
        `RealDecoder.amplification`.

    Notes
    -----
    Cost: no pass over the m columns if all accused rows deviate loudly. Else one pass over the other accused rows, with
    k multiply-adds per number, and the cost of `explaining_supports`.
    """
    num_rows, compression = generator.shape
    by_class = solution.sections.norms_by_class
    delta = by_class(solution.residual) + by_class(solution.residual_rounding) + noise
    bound = amplification(max(num_rows - len(solution.support) - liars, compression)) * delta
    lies, rounding = by_class(solution.lies), by_class(solution.lies_rounding)
    loud = np.any(lies - rounding > (bound + noise)[:, None], axis=0)
    doubtful = [row for row, certain in zip(solution.support, loud, strict=True) if not certain]
    deviation = delta + np.linalg.norm((lies + rounding)[:, ~loud], axis=1)
    second = amplification(max(num_rows - liars, compression)) * deviation
    certain = set(solution.support) - set(doubtful)
    found = set(certain)
    if doubtful:
        grams = _grams(solution, generator, rows, doubtful)
        for gram, threshold in zip(grams, delta, strict=True):
            found |= _indispensable(certain, generator, doubtful, gram, liars=liars - len(certain), threshold=threshold)
    return Verdict(np.minimum(bound, second) + by_class(solution.rounding), frozenset(found))


def _indispensable(
    certain: set[int], generator: FloatArray, doubtful: list[int], gram: FloatArray, *, liars: int, threshold: float
) -> set[int]:
    """Return the doubtful rows that are in every set of `liars` rows without which the others may all be honest.

    Certain lies are removed first. Then every set of `liars` of the remaining rows is tried. If there are too many
    sets, no row counts as indispensable.

    gram : inner products of the doubtful rows' deviations from the solution
    """
    alive = [row for row in range(len(generator)) if row not in certain]
    parity = parity_of(generator[alive])
    num_checks, num_rows = parity.shape
    if liars < 1 or liars >= num_checks or not can_try_all(num_rows, num_checks, liars):
        return set()
    deviations = np.zeros((num_rows, len(doubtful)))
    deviations[[alive.index(row) for row in doubtful]] = _square_root(gram)
    supports, _ = explaining_supports(parity, deviations, liars, threshold)
    if not len(supports):  # there are more lies than allowed, so nothing is certain
        return set()
    everywhere = np.bincount(supports.reshape(-1), minlength=num_rows) == len(supports)
    return {alive[place] for place in np.flatnonzero(everywhere)}


def _grams(solution: Solution, generator: FloatArray, rows: list[Tensor], doubtful: list[int]) -> FloatArray:
    """Return, for each class, the inner products of the doubtful rows' deviations from the solution."""
    if solution.gram is not None:
        places = [solution.support.index(row) for row in doubtful]
        return np.asarray(solution.gram[:, places][:, :, places])
    columns, sections = solution.columns, solution.sections
    factor = torch.from_numpy(generator[doubtful]).to(columns.device)
    grams = torch.zeros(len(sections.names), len(doubtful), len(doubtful), dtype=torch.float64, device=columns.device)
    for number, cut in sections.blocks(BLOCK):
        deviations = torch.stack([rows[row][cut] for row in doubtful]).to(torch.float64)
        deviations -= factor @ columns[cut].to(torch.float64).T
        grams[sections.classes[number]] += deviations @ deviations.T
    return grams.cpu().numpy()


def _square_root(gram: FloatArray) -> FloatArray:
    """Return L with L L^T = gram."""
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))
