"""Draco's repetition code, which decodes by majority votes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from solon_fl.baselines.draco.code import FAILED, DracoCode, DracoDecoded, smallest_norm, weighted_sum
from solon_fl.coding._types import FloatArray
from solon_fl.coding.real.projection import BLOCK, LARGEST_NORM

__all__ = ["RepetitionCode"]

NARROW_BLOCK = 1024
WIDE_BLOCK = 65_536  # numbers of each vector that are compared at once: half a MB in all


class RepetitionCode(DracoCode):
    """Draco's repetition code: groups of 2s + 1 or more nodes compute the same batches and vote.

    The nodes are split into n // (2s + 1) groups of consecutive numbers, of sizes as equal as possible. A group's
    batches have the numbers of its nodes, and each of its nodes sends their mean gradient. See `DracoCode` for
    parameters and errors.

    Notes
    -----
    Guarantee: assume that honest vectors of a group are within rtol of each other (relative to the smaller norm), and
    that at most s of its nodes lie, whatever they know and send. Then the group's vector is within rtol of an honest
    one, every node further than (2 + rtol) rtol from it is named, and no honest node is named, because an honest vector
    is within rtol of the honest one that is within rtol of the winner. A closer lie may win or pass unnamed. If s + 1
    liars send the same vector, they win their group. If no s + 1 nodes of a group agree, the decode fails.

    Cost: n d comparisons if the honest vectors of a group are identical, and less than 2 n d on average whatever liars
    send. A group of g nodes whose honest vectors differ costs g^2 d / 2 multiply-adds.

    Differs from the paper: voting tolerates rounding differences, and group sizes need not divide n.

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
        """Return the weights of the group's batches, all 1 / size."""
        size = len(self.batches(node))
        return np.full(size, 1 / size, dtype=np.complex128)

    def _decode(self, vectors: dict[int, Tensor], generator: torch.Generator | None) -> DracoDecoded:
        seed = None if generator is None else int(torch.randint(2**62, (), generator=generator, device="cpu"))
        fresh = np.random.default_rng(seed)
        elected, corrupt, residual, tolerance = [], set(range(self.num_nodes)), 0.0, 0.0
        for group in self.groups:
            members = {node: vectors[node] for node in group if node in vectors}
            vote = self._vote_of_identical(members, fresh) or self._vote_of_near(members)
            if vote is None:
                return FAILED
            corrupt -= set(vote.agreeing)
            elected.append((len(group) / self.num_nodes, vote.winner))
            residual, tolerance = max(residual, *vote.agreeing.values()), max(tolerance, vote.limit)
        weights, winners = zip(*elected, strict=True)
        return DracoDecoded(
            gradient=weighted_sum(np.array(weights), winners),
            corrupt_nodes=tuple(sorted(corrupt)),
            residual=residual,
            tolerance=tolerance,
        )

    def _vote_of_identical(self, members: dict[int, Tensor], fresh: np.random.Generator) -> "_Vote | None":
        """Return the vote for a vector that s + 1 nodes sent, identical in every number; None if there is none.

        Nodes with hardware and software of the same kind agree exactly. A candidate is drawn at random and, if it
        loses, set aside with all nodes equal to it. If most nodes are honest, few candidates are examined, and no node
        can arrange to be the first.
        """
        undecided = fresh.permutation(list(members)).tolist()
        while len(undecided) > self.byzantine:
            winner = members[undecided[0]]
            others = _equal(winner, {node: members[node] for node in undecided[1:]})
            size = _norm(winner) if len(others) >= self.byzantine else math.inf
            if size < LARGEST_NORM:
                limit = 2 * (self.rtol * size + smallest_norm(winner))
                agreeing = dict.fromkeys([undecided[0], *others], 0.0)
                rest = {node: vector for node, vector in members.items() if node not in agreeing}
                distances = _distances(list(rest.values()), winner, limit)
                near = {node: away for node, away in zip(rest, distances, strict=True) if away <= limit}
                return _Vote(winner=winner, agreeing=agreeing | near, limit=limit)
            undecided = [node for node in undecided[1:] if node not in others]
        return None

    def _vote_of_near(self, members: dict[int, Tensor]) -> "_Vote | None":
        """Return the vote for a vector that has s others within rtol; None if there is none.

        Candidates are tried in ascending order of the distance to their s-th nearest vector. At least one of the s + 1
        vectors within that distance is honest.
        """
        if len(members) <= self.byzantine:
            return None
        nodes = list(members)
        norms, apart = _all_distances(list(members.values()))
        radii = np.partition(apart, self.byzantine, axis=1)[:, self.byzantine]
        for candidate in np.argsort(radii, kind="stable").tolist():
            winner = members[nodes[candidate]]
            limit = self.rtol * float(norms[candidate]) + smallest_norm(winner)
            if radii[candidate] <= limit and norms[candidate] < LARGEST_NORM:
                wider = (2 + self.rtol) * limit
                agreeing = {
                    nodes[row]: float(apart[candidate, row]) for row in np.flatnonzero(apart[candidate] <= wider)
                }
                return _Vote(winner=winner, agreeing=agreeing, limit=wider)
        return None


@dataclass(frozen=True, slots=True)
class _Vote:
    """The vote of a group."""

    winner: Tensor
    agreeing: dict[int, float]  # distance by node, for nodes within the limit
    limit: float


def _equal(centre: Tensor, vectors: dict[int, Tensor]) -> set[int]:
    """Return the nodes whose vectors equal the centre in every entry."""
    equal = set(vectors)
    start, stop = 0, NARROW_BLOCK  # most vectors that differ do so early
    while equal and start < centre.numel():
        block = centre[start:stop]
        equal = {node for node in equal if _is_equal(vectors[node][start:stop], block)}
        start, stop = stop, stop + WIDE_BLOCK
    return equal


def _is_equal(one: Tensor, other: Tensor) -> bool:
    # On a CPU, NumPy's comparison takes half the time of torch's.
    return np.array_equal(one.numpy(), other.numpy()) if one.device.type == "cpu" else torch.equal(one, other)


def _norm(vector: Tensor) -> float:
    """Return the norm of a vector, computed in float64."""
    starts = range(0, vector.numel(), BLOCK)
    return math.hypot(*(float(torch.linalg.vector_norm(vector[start : start + BLOCK].double())) for start in starts))


def _distances(vectors: Sequence[Tensor], centre: Tensor, limit: float) -> list[float]:
    """Return each vector's distance to the centre, in float64; above the limit, only a lower bound that exceeds it."""
    squares = [0.0] * len(vectors)
    near = list(range(len(vectors)))
    for start in range(0, centre.numel(), BLOCK):
        block = centre[start : start + BLOCK].double()
        for row in near:
            difference = vectors[row][start : start + BLOCK] - block
            squares[row] += float(difference @ difference)
        near = [row for row in near if squares[row] <= limit * limit]
        if not near:
            break
    return [math.sqrt(square) for square in squares]


def _all_distances(vectors: Sequence[Tensor]) -> tuple[FloatArray, FloatArray]:
    """Return the norms, (N,), and all distances, (N, N), in float64; for vectors that aren't finite they are inf."""
    first, second = np.triu_indices(len(vectors), 1)
    norms = np.zeros(len(vectors))
    squares = np.zeros(len(first))
    for start in range(0, vectors[0].numel(), BLOCK):
        block = torch.stack([vector[start : start + BLOCK] for vector in vectors]).double()
        norms = np.hypot(norms, torch.linalg.vector_norm(block, dim=1).cpu().numpy())
        squares += torch.nn.functional.pdist(block).square().cpu().numpy()
    apart = np.zeros((len(vectors), len(vectors)))
    apart[first, second] = apart[second, first] = np.sqrt(squares)
    return norms, np.nan_to_num(apart, nan=math.inf, posinf=math.inf)
