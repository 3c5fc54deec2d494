"""Lies that try to frame honest nodes, for `framing.py` and for the tests of accusations.

The liars of a group know every honest share, including its noise, and which of the shares arrive. Each family of lies
takes a `Scene` and returns the vectors that the liars add to their shares. Sizes and directions that are not optimised
are random.
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
NEAR_RTOL = 0.9  # honest noise relative to rtol, before the rounding of a share
NUM_SETS = 40  # sets of rows from which liars choose the worst


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The liars' view of one group: the n shares that arrive, before any lie.

    Attributes
    ----------
    decoder : RealDecoder
        The decoder under attack.
    slots : tuple of n int
        Slots of the shares.
    shares : (n, m) float64
        The honest shares of all nodes, including the liars.
    liars : tuple of int
        The liars' rows in `shares`, not their slots.
    """

    decoder: RealDecoder
    slots: tuple[int, ...]
    shares: FloatArray
    liars: tuple[int, ...]

    @cached_property
    def generator(self) -> FloatArray:
        """G, restricted to these rows."""
        return self.decoder.code.generator[list(self.slots)]

    @cached_property
    def parity(self) -> FloatArray:
        """H for these rows."""
        complete = np.linalg.qr(self.generator, mode="complete").Q
        return np.ascontiguousarray(complete[:, self.generator.shape[1] :].T)

    @cached_property
    def honest(self) -> list[int]:
        """The rows of honest nodes."""
        return [row for row in range(len(self.shares)) if row not in self.liars]

    @cached_property
    def scale(self) -> float:
        """The k-th smallest norm of the honest shares, to which honest noise is relative."""
        norms = np.sort(np.linalg.norm(self.shares[self.honest], axis=1))
        return float(norms[self.decoder.code.compression - 1])

    @property
    def noise(self) -> float:
        """The norm by which all rows together may be off."""
        return float(np.sqrt(self.decoder.code.group_size)) * self.decoder.rtol * self.scale

    def unspanned(self, rows: Sequence[int]) -> FloatArray:
        """Return C H, the checks that remain without these rows."""
        if not rows:
            return self.parity
        complete = np.linalg.qr(self.parity[:, list(rows)], mode="complete").Q
        return np.asarray(complete[:, len(rows) :].T @ self.parity)

    def directions(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Return random unit vectors of a share's length, (count, m)."""
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
"""Returns the vectors that the liars add to their shares, (number of liars, m)."""


def draw_liars(decoder: RealDecoder, count: int, rng: np.random.Generator) -> list[int]:
    """Return the liars' slots: neighbours, every other slot of a run, or any slots."""
    size = decoder.code.group_size
    start, kind = int(rng.integers(size)), rng.integers(3)
    if kind == 0:
        return sorted(rng.choice(size, count, replace=False).tolist())
    return sorted((start + int(kind) * place) % size for place in range(count))


def targets(scene: Scene, rng: np.random.Generator) -> list[int]:
    """Return honest rows, at most as many as liars, whose lies would look most like the liars' lies."""
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
    if rng.random() < 0.3:  # choose any set, not the worst
        return sorted(tried[int(rng.integers(len(tried)))].tolist())
    columns = scene.parity.T[np.array([[*scene.liars, *rows] for rows in tried])]
    return sorted(tried[int(np.linalg.svd(columns, compute_uv=False)[:, -1].argmin())].tolist())


def badly_conditioned(scene: Scene, rng: np.random.Generator) -> list[int]:
    """Return k badly conditioned honest rows."""
    compression = scene.generator.shape[1]
    start = int(rng.integers(len(scene.honest)))
    neighbours = [scene.honest[(start + i) % len(scene.honest)] for i in range(compression)]
    tried = np.array([neighbours, *(rng.choice(scene.honest, compression, replace=False) for _ in range(NUM_SETS))])
    worst = tried[np.linalg.svd(scene.generator[tried], compute_uv=False)[:, -1].argmin()]
    return [int(row) for row in worst]


def interpolated(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """Send the shares of the gradient that k badly conditioned honest rows interpolate, or of one farther off."""
    rows = badly_conditioned(scene, rng)
    other = np.linalg.solve(scene.generator[rows], scene.shares[rows])
    truth = np.linalg.pinv(scene.generator[scene.honest]) @ scene.shares[scene.honest]
    factor = float(rng.choice([1.0, 1.0, 3.0, 10.0, 100.0]))
    liars = list(scene.liars)
    aim = scene.generator[liars] @ (truth + factor * (other - truth))
    return np.asarray(aim - scene.shares[liars])


def near_codeword(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """Add one common vector, weighted so that lies of honest rows could have nearly the same syndromes."""
    chosen = [*scene.liars, *targets(scene, rng)]
    vectors = np.linalg.svd(scene.parity[:, chosen])[2][: len(chosen)]
    weights = vectors[-1 - int(rng.integers(min(3, len(vectors))))][: len(scene.liars)]
    size = 10 ** rng.uniform(-6, 0) if scene.decoder.rtol > 1e-9 else 10 ** rng.uniform(-12, 0)
    weights = weights * size * scene.scale / max(float(np.sqrt(np.mean(weights**2))), 1e-300)
    return np.asarray(weights[:, None] * scene.directions(1, rng))


def several_codewords(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """Do the same with all small singular vectors, each in its own direction and as large as it can be hidden."""
    chosen = [*scene.liars, *targets(scene, rng)]
    _, values, vectors = np.linalg.svd(scene.parity[:, chosen], full_matrices=False)
    count = int(rng.integers(1, len(values) + 1))
    sizes = 10 ** rng.uniform(-1.5, 1.5) * scene.noise / values[-count:] / np.sqrt(count)
    weights = vectors[-count:, : len(scene.liars)].T * sizes
    return np.asarray(weights @ scene.directions(count, rng))


def cheapest(scene: Scene, rng: np.random.Generator) -> FloatArray:
    """Make a chosen set of honest rows the best explanation: without them the other rows agree almost exactly.

    The liars cancel the honest noise that remains without the targets. They add lies in the directions to which the
    checks without the targets are least sensitive.
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
    """Let some liars lie loudly, each with its own vector, and the others with one of the other families."""
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
    """Return the honest noise just below rtol, (n, m), that helps the liars most. It is zero for the liars.

    All noise has the same direction. Its signs maximise either the disagreement without the liars, or the error of the
    gradient that badly conditioned rows determine.
    """
    if rng.random() < 0.5:
        rows = scene.honest
        matrix: FloatArray = scene.unspanned(scene.liars)[:, rows]
    else:
        rows = badly_conditioned(scene, rng)
        matrix = np.asarray(np.linalg.inv(scene.generator[rows]), np.float64)
    signs = np.sign(np.linalg.svd(matrix)[2][0])
    for _ in range(20):  # find a local maximum of the norm of matrix @ signs
        signs = np.sign(matrix.T @ (matrix @ signs) + 1e-9 * signs)
    weights = np.zeros(len(scene.shares))
    weights[rows] = signs * NEAR_RTOL * scene.decoder.rtol * scene.scale
    return np.asarray(weights[:, None] * scene.directions(1, rng))


@dataclass(frozen=True)
class Framing:
    """An `Attack` that tries several lies and uses the most successful one.

    The liars know the decoder, and decode the result of each lie before they choose.

    Parameters
    ----------
    decoder : RealDecoder
        The decoder under attack.
    family : callable, optional
        The family of lies to try. Default: any family.
    num_tries : int
        The number of lies to try.
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
        """Return the number of accused honest slots minus the number of named liars."""
        sent = vectors.clone()
        sent[list(liars)] = lies
        decoded = self.decoder.decode(sent)
        accused = {*decoded.corrupt_slots, *decoded.suspect_slots}
        return len(accused - set(liars)) - len(set(decoded.corrupt_slots) & set(liars))
