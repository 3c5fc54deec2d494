"""Draco's repetition code: majority votes."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ._types import FloatArray
from .decoder import NOISE_MARGIN
from .draco import FAILED, DracoCode, DracoDecoded, Received, weighted_sum
from .projection import BLOCK

__all__ = ["RepetitionCode"]


class RepetitionCode(DracoCode):
    """Draco's repetition code: groups of 2s + 1 or more nodes compute the same batches, and vote.

    The nodes are cut into n // (2s + 1) groups of consecutive numbers, as equal as possible. A group's batches have
    the numbers of its nodes, and each of its nodes sends their mean gradient. See `DracoCode` for parameters and
    errors.

    Notes
    -----
    Guarantee: as long as honest vectors of a group are within rtol of each other (relative to their norm) and at most
    s of its nodes lie, whatever they know and send, the group's vector is within rtol of an honest one, every node
    further than 2 rtol from it is named, and no honest node is. A lie closer than that may be taken or pass unnamed.
    s + 1 liars who send the same vector win their group; a group without s + 1 that agree fails the decode.
    Cost: n d (q + 1) multiply-adds to project and n d to check.
    Differs from the paper: voting tolerates float noise; group sizes need not divide n.

    References
    ----------
    Chen et al., "DRACO", ICML 2018, section 4 (repetition code, majority vote).
    """

    is_complex = False

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The nodes (and batches) of each group."""
        num_groups = self.num_nodes // (2 * self.byzantine + 1)
        return tuple(tuple(part.tolist()) for part in np.array_split(np.arange(self.num_nodes), num_groups))

    def batches(self, node: int) -> tuple[int, ...]:
        """Return the numbers of the group's nodes."""
        return next(group for group in self.groups if node in group)

    def weights(self, node: int) -> npt.NDArray[np.complex128]:
        """Return 1 / size, once for each node of the group."""
        size = len(self.batches(node))
        return np.full(size, 1 / size, dtype=np.complex128)

    def _decode(self, received: Received) -> DracoDecoded:
        elected, corrupt, residual, tolerance = [], set(range(self.num_nodes)), 0.0, 0.0
        for group in self.groups:
            vote = self._vote(received, [node for node in group if node in received.vectors])
            if vote is None:
                return FAILED
            winner, distances = vote
            limit = 2 * (self.rtol * float(received.norms[winner]) + received.floor)
            agreeing = {node: distance for node, distance in distances.items() if distance <= limit}
            corrupt -= set(agreeing)
            elected.append((len(group) / self.num_nodes, received.vectors[winner]))
            residual, tolerance = max(residual, *agreeing.values()), max(tolerance, limit)
        weights, winners = zip(*elected, strict=True)
        return DracoDecoded(
            gradient=weighted_sum(np.array(weights), winners),
            corrupt_nodes=tuple(sorted(corrupt)),
            residual=residual,
            tolerance=tolerance,
        )

    def _vote(self, received: Received, members: list[int]) -> tuple[int, dict[int, float]] | None:
        """Return a node that s others agree with, and the distances of all members from it; None if there is none.

        Candidates come in the order of the distance to their s-th nearest, the least first, as projected: all
        within it but s are honest.
        """
        if len(members) <= self.byzantine:
            return None
        points = received.projected[members]
        apart = np.stack([np.linalg.norm(points - point, axis=1) for point in points])
        radii = np.partition(apart, self.byzantine, axis=1)[:, self.byzantine]
        for candidate in np.argsort(radii, kind="stable").tolist():
            winner = members[candidate]
            limit = self.rtol * float(received.norms[winner]) + received.floor
            if radii[candidate] <= NOISE_MARGIN * limit:
                distances = _distances([received.vectors[node] for node in members], received.vectors[winner])
                if np.count_nonzero(distances <= limit) > self.byzantine:
                    return winner, dict(zip(members, distances.tolist(), strict=True))
        return None


def _distances(vectors: Sequence[Tensor], centre: Tensor) -> FloatArray:
    """Return |vector - centre| for each, in float64."""
    squares = torch.zeros(len(vectors), dtype=torch.float64, device=centre.device)
    for start in range(0, centre.numel(), BLOCK):
        block = torch.stack([vector[start : start + BLOCK] for vector in vectors]).to(torch.float64)
        squares += (block - centre[start : start + BLOCK]).square().sum(1)
    return np.asarray(squares.sqrt().cpu().numpy(), dtype=np.float64)
