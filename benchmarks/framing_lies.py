"""Lies that are meant to get honest nodes named: for `framing.py`, and for the tests of who is named.

The liars of a group know every honest share, noise and all, and which of the shares arrive. Each family of lies takes a
`Scene` and returns what the liars add to their shares; sizes and directions that are not optimised are drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solon_fl import RealDecoder

__all__ = ["FAMILIES", "Family", "Framing", "Scene", "draw_liars", "worst_noise"]

FloatArray = NDArray[np.float64]
NEAR_RTOL = 0.9  # of rtol: honest noise, which the rounding of a share is added to
NUM_SETS = 40  # of rows that liars look at to choose the worst


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the liars of one group see: n shares that arrive, all honest so far.

    Attributes
    ----------
    decoder : RealDecoder
        The decoder under attack.
    slots : tuple of n int
        Of the shares.
    shares : (n, m) float64
        What all would send if they were honest.
    liars : tuple of int
        Rows of the shares, not slots.
    """

    decoder: RealDecoder
    slots: tuple[int, ...]
    shares: FloatArray
    liars: tuple[int, ...]

    @cached_property
    def generator(self) -> FloatArray:
        """G of these rows."""
        return self.decoder.code.generator[list(self.slots)]

    @cached_property
    def parity(self) -> FloatArray:
        """H of these rows."""
        complete = np.linalg.qr(self.generator, mode="complete").Q
        return np.ascontiguousarray(complete[:, self.generator.shape[1] :].T)

    @cached_property
    def honest(self) -> list[int]:
        """Rows that are no liars'."""
        return [row for row in range(len(self.shares)) if row not in self.liars]

    @cached_property
    def scale(self) -> float:
        """The k-th smallest norm of the honest shares: honest noise is relative to that."""
        norms = np.sort(np.linalg.norm(self.shares[self.honest], axis=1))
        return float(norms[self.decoder.code.compression - 1])

    @property
    def noise(self) -> float:
        """Norm of what all rows together may be off by."""
        return float(np.sqrt(self.decoder.code.group_size)) * self.decoder.rtol * self.scale

    def unspanned(self, rows: Sequence[int]) -> FloatArray:
        """Return C H: what is left of the checks without these rows."""
        if not rows:
            return self.parity
        complete = np.linalg.qr(self.parity[:, list(rows)], mode="complete").Q
        return np.asarray(complete[:, len(rows) :].T @ self.parity)

    def directions(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Return unit vectors of a share's length, (count, m)."""
        drawn = rng.normal(size=(count, self.shares.shape[1]))
        return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))

    def without(self, rows: Sequence[int]) -> "Scene":
        """Return the scene in which these rows have not arrived."""
        kept = [row for row in range(len(self.shares)) if row not in rows]
        return replace(
            self,
            slots=tuple(self.slots[row] for row in kept),
            shares=self.shares[kept],
            liars=tuple(kept.index(row) for row in self.liars if row in kept),
        )


Family = Callable[[Scene, np.random.Generator], FloatArray]
"""Returns what the liars add to their shares, (number of liars, m)."""


def draw_liars(decoder: RealDecoder, count: int, rng: np.random.Generator) -> list[int]:
    """Return slots that liars choose: neighbours, every other of a run, or any."""
    size = decoder.code.group_size
    start, kind = int(rng.integers(size)), rng.integers(3)
    if kind == 0:
        return sorted(rng.choice(size, count, replace=False).tolist())
    return sorted((start + int(kind) * place) % size for place in range(count))


def targets(scene: Scene, rng: np.random.Generator) -> list[int]:
    """Return honest rows whose lies would look most like the liars', as many as there are liars, or fewer."""
    room = len(scene.parity) - len(scene.liars)
    count = min(len(scene.liars), len(scene.honest), room)
    if count < 1:
        return []
    if count > 1 and rng.random() < 0.3:
        count = int(rng.integers(1, count + 1))
    distance = np.array([min(abs(row - liar) for liar in scene.liars) for row in scene.honest])
    nearest = np.array(scene.honest)[np.argsort(distance + rng.random(len(distance)))[:count]]
    tried = [nearest, *(rng.choice(scene.honest, count, replace=False) for _ in range(NUM_SETS if count > 1 else 0))]
    if count == 1:
        tried = [np.array([row]) for row in scene.honest]
    if rng.random() < 0.3:  # any, not the worst
        return sorted(tried[int(rng.integers(len(tried)))].tolist())
    columns = scene.parity.T[np.array([[*scene.liars, *rows] for rows in tried])]
    return sorted(tried[int(np.linalg.svd(columns, compute_uv=False)[:, -1].argmin())].tolist())


def badly_conditioned(scene: Scene, rng: np.random.Generator) -> list[int]:
    """Return k honest rows that tell little of the gradient."""
    compression = scene.generator.shape[1]
    start = int(rng.integers(len(scene.honest)))
    neighbours = [scene.honest[(start + i) % len(scene.honest)] for i in range(compression)]
    tried = np.array([neighbours, *(rng.choice(scene.honest, compression, replace=False) for _ in range(NUM_SETS))])
    worst = tried[np.linalg.svd(scene.generator[tried], compute_uv=False)[:, -1].argmin()]
    return [int(row) for row in worst]


def interpolated(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """The shares of the gradient that k badly conditioned honest rows interpolate, or one that is farther off."""
    rows = badly_conditioned(scene, rng)
    other = np.linalg.solve(scene.generator[rows], scene.shares[rows])
    truth = np.linalg.pinv(scene.generator[scene.honest]) @ scene.shares[scene.honest]
    factor = float(rng.choice([1.0, 1.0, 3.0, 10.0, 100.0]))
    liars = list(scene.liars)
    aim = scene.generator[liars] @ (truth + factor * (other - truth))
    return np.asarray(aim - scene.shares[liars])


def near_codeword(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """One common vector, in proportions in which lies of honest rows would nearly have the same syndromes."""
    chosen = [*scene.liars, *targets(scene, rng)]
    vectors = np.linalg.svd(scene.parity[:, chosen])[2][: len(chosen)]
    weights = vectors[-1 - int(rng.integers(min(3, len(vectors))))][: len(scene.liars)]
    size = 10 ** rng.uniform(-6, 0) if scene.decoder.rtol > 1e-9 else 10 ** rng.uniform(-12, 0)
    weights = weights * size * scene.scale / max(float(np.sqrt(np.mean(weights**2))), 1e-300)
    return np.asarray(weights[:, None] * scene.directions(1, rng))


def several_codewords(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """The same with all small singular vectors, each in a direction of its own, and as large as hides it as well."""
    chosen = [*scene.liars, *targets(scene, rng)]
    _, values, vectors = np.linalg.svd(scene.parity[:, chosen], full_matrices=False)
    count = int(rng.integers(1, len(values) + 1))
    sizes = 10 ** rng.uniform(-1.5, 1.5) * scene.noise / values[-count:] / np.sqrt(count)
    weights = vectors[-count:, : len(scene.liars)].T * sizes
    return np.asarray(weights @ scene.directions(count, rng))


def cheapest(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """What makes a chosen set of honest rows the best explanation: without them the others agree all but exactly.

    The liars cancel what is left of honest noise without the targets, and add what hides there: in the directions that
    the checks without the targets see least.
    """
    checks = scene.unspanned(targets(scene, rng))
    seen = checks[:, list(scene.liars)]
    lies = -np.linalg.pinv(seen) @ (checks @ scene.shares)
    _, values, vectors = np.linalg.svd(seen, full_matrices=False)
    count = 1 if rng.random() < 0.5 else int(rng.integers(1, len(values) + 1))
    left = 10 ** rng.uniform(-2.5, 0.7) * scene.noise / np.sqrt(count)
    lies += (vectors[-count:].T * (left / values[-count:])) @ scene.directions(count, rng)
    return np.asarray(lies)


def loud_and_quiet(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """Some liars shout, each its own vector; the others frame as one of the other families does."""
    count = int(rng.integers(1, len(scene.liars))) if len(scene.liars) > 1 else 0
    loud = sorted(rng.choice(len(scene.liars), count, replace=False).tolist())
    quiet = [place for place in range(len(scene.liars)) if place not in loud]
    lies = np.zeros((len(scene.liars), scene.shares.shape[1]))
    sizes = 10 ** rng.uniform(-3, 3 if rng.random() < 0.8 else 12, size=(count, 1))
    lies[loud] = sizes * scene.scale * scene.directions(count, rng)
    family = (interpolated, near_codeword, several_codewords, cheapest)[int(rng.integers(4))]
    lies[quiet] = family(scene.without([scene.liars[place] for place in loud]), rng)
    return lies


FAMILIES: dict[str, Family] = {
    "interpolated": interpolated,
    "near-codeword": near_codeword,
    "several codewords": several_codewords,
    "cheapest": cheapest,
    "loud and quiet": loud_and_quiet,
}


def worst_noise(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """Return honest noise just below rtol, (n, m), zero for liars, that helps them most.

    All of it in one direction, with signs such that it looks least like noise without the liars, or such that badly
    conditioned rows bend the gradient most.
    """
    if rng.random() < 0.5:
        rows = scene.honest
        matrix: FloatArray = scene.unspanned(scene.liars)[:, rows]
    else:
        rows = badly_conditioned(scene, rng)
        matrix = np.asarray(np.linalg.inv(scene.generator[rows]), np.float64)
    signs = np.sign(np.linalg.svd(matrix)[2][0])
    for _ in range(20):  # of all signs, a local maximum of the norm of matrix @ signs
        signs = np.sign(matrix.T @ (matrix @ signs) + 1e-9 * signs)
    weights = np.zeros(len(scene.shares))
    weights[rows] = signs * NEAR_RTOL * scene.decoder.rtol * scene.scale
    return np.asarray(weights[:, None] * scene.directions(1, rng))


@dataclass(frozen=True)
class Framing:
    """An `Attack`: of several lies that the liars think of, the one with which they come off best.

    They know the decoder, and decode what they are about to bring about.

    Parameters
    ----------
    decoder : RealDecoder
        The decoder under attack.
    family : callable, optional
        What they think of. Default: lies of any family.
    num_tries : int
        Lies that they think of.
    """

    decoder: RealDecoder
    family: Family | None = None
    num_tries: int = 8
    omniscient = True

    def lies(self, vectors: Tensor, liars: Sequence[int], rng: torch.Generator) -> Tensor:
        """See `Attack.lies`."""
        drawn = np.random.default_rng(int(torch.randint(2**62, (1,), generator=rng)))
        shares = vectors.double().cpu().numpy()
        scene = Scene(decoder=self.decoder, slots=tuple(range(len(vectors))), shares=shares, liars=tuple(liars))
        families = [self.family] if self.family else list(FAMILIES.values())
        best, best_score = vectors[list(liars)], -len(vectors)
        for _ in range(self.num_tries):
            family = families[int(drawn.integers(len(families)))]
            lies = torch.from_numpy(shares[list(liars)] + family(scene, drawn)).to(vectors)
            score = self._score(vectors, liars, lies)
            if score > best_score:
                best, best_score = lies, score
        return best

    def _score(self, vectors: Tensor, liars: Sequence[int], lies: Tensor) -> int:
        """Return how many honest slots are accused, less the liars that are named."""
        sent = vectors.clone()
        sent[list(liars)] = lies
        decoded = self.decoder.decode(sent)
        accused = {*decoded.corrupt_slots, *decoded.suspect_slots}
        return len(accused - set(liars)) - len(set(decoded.corrupt_slots) & set(liars))
