"""Search for lies that a locator misses if it can't try all supports, so that a decode fails.

`InformationSetLocator` trusts k rows drawn at random, again and again. Hill climbing searches for lies that make it
need as many draws as possible. The lies start as near-codewords, as combinations to which chosen rows are least
sensitive, or at random, with sizes of 1e-6 to 1e-1 norms of a share, in one or more column directions. Their sizes,
directions and liars then change. A change is kept if the locator, given a tenth of its draws, fails more often with it.
Honest shares are off by 5e-8 (float32) or by 9e-7 (just below rtol) of their norm.

columns:
  draws        the number of draws of the locator
  located      searches for liars with all of these draws, over all kinds of lies
  failed       searches that found no rows without which the others agree; must be 0
  mean, worst  ms of such a search
  climbed      lies tried with a tenth of the draws
  a tenth      failure rate of the worst lies found, with a tenth of the draws
  unlucky      probability that none of these draws has k honest rows; a higher failure rate means that lies help
  decoded      whole decodes under the worst lies
  not          decodes that failed; must be 0

examples:
  python -m benchmarks.starvation --seconds 5       a quick look, in two minutes
  python -m benchmarks.starvation
"""

import argparse
import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from solon_fl import FourierCode, LocatingProblem, RealDecoder
from solon_fl.coding.real.locators import ExhaustiveLocator, InformationSetLocator, locate_rows
from solon_fl.coding.real.projection import NOISE_MARGIN, NUM_PROJECTIONS

SIZES = [(6, 9), (7, 4), (8, 4), (8, 8), (9, 7), (10, 3), (10, 6), (15, 5)]
NOISES = (5e-8, 9e-7)
LIKELY = 2.0  # relative to the noise; see `solon_fl.coding.real.decoding`
POOL = 16
DIM = 2000

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Lies:
    """The vectors that s liars add to their shares, in norms of a share: weights[i] times directions[i].

    `failures` of `tries` searches with a tenth of the draws missed them.
    """

    liars: IntArray
    weights: FloatArray
    directions: FloatArray  # (s, q), unit rows
    tries: int = 0
    failures: int = 0

    @property
    def rate(self) -> float:
        """The failure rate, with a prior that keeps it low after few tries."""
        return (self.failures + 0.5) / (self.tries + 2)


@dataclass
class Tally:
    located: int = 0
    failed: int = 0
    seconds: float = 0.0
    worst: float = 0.0
    climbed: int = 0
    rate: float = 0.0
    decoded: int = 0
    undecoded: int = 0
    best: list[Lies] = field(default_factory=list)


def draw_directions(count: int, rng: np.random.Generator) -> FloatArray:
    rank = int(rng.choice([1, 1, 2, 3, NUM_PROJECTIONS]))
    drawn = rng.normal(size=(count, rank)) @ rng.normal(size=(rank, NUM_PROJECTIONS))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def draw_lies(decoder: RealDecoder, rng: np.random.Generator) -> Lies:
    parity, s, size = decoder.code.parity, decoder.byzantine, decoder.code.group_size
    kind, start = int(rng.integers(4)), int(rng.integers(size))
    many = (np.arange(2 * s) + start) % size if kind < 2 else rng.choice(size, 2 * s, replace=False)
    if kind in (0, 2):  # half of a set whose syndromes nearly vanish together
        vector = np.linalg.svd(parity[:, many])[2][-1 - int(rng.integers(3))]
        halves = [np.argsort(-np.abs(vector))[:s], np.arange(0, 2 * s, 2), np.arange(s), rng.permutation(2 * s)[:s]]
        chosen = halves[int(rng.integers(4))]
        liars, weights = many[chosen], vector[chosen]
    else:
        liars = many[:s]
        vectors = np.linalg.svd(parity[:, liars])[2]
        graded = rng.normal(size=s) * 10 ** rng.uniform(-3, 0, size=s)
        weights = vectors[-1 - int(rng.integers(3))] if rng.random() < 0.5 else graded
    weights = weights / np.sqrt(np.mean(weights**2)) * 10 ** rng.uniform(-6, -1)
    return Lies(liars=liars, weights=weights, directions=draw_directions(s, rng))


def changed(lies: Lies, size: int, rng: np.random.Generator) -> Lies:
    count = len(lies.liars)
    factors = np.exp(rng.normal(size=count) * 10 ** rng.uniform(-2, 0.3) * (rng.random(count) < 0.5))
    liars, directions = lies.liars.copy(), lies.directions
    if rng.random() < 0.25:
        neighbour = (liars[place := int(rng.integers(count))] + int(rng.choice([-1, 1]))) % size
        if neighbour not in liars:
            liars[place] = neighbour
    if rng.random() < 0.2:
        directions = draw_directions(count, rng)
    return Lies(liars=liars, weights=lies.weights * factors, directions=directions)


def make_problem(
    decoder: RealDecoder, lies: Lies, noise: float, rng: np.random.Generator
) -> tuple[LocatingProblem, float]:
    """Return the problem of locating the lies, and the noise as the decoder computes it."""
    code, s = decoder.code, decoder.byzantine
    rows = code.generator @ rng.normal(size=(code.compression, NUM_PROJECTIONS)) / math.sqrt(NUM_PROJECTIONS)
    scale = float(np.sort(np.linalg.norm(rows, axis=1))[s + code.compression - 1])
    off = rng.normal(size=rows.shape)
    rows += noise * scale * off / np.linalg.norm(off, axis=1, keepdims=True)
    rows[lies.liars] += scale * lies.weights[:, None] * lies.directions
    allowed = math.sqrt(len(rows)) * decoder.rtol * scale
    problem = LocatingProblem(
        generator=code.generator,
        projected=rows,
        points=code.points,
        multipliers=code.multipliers,
        max_errors=s,
        tolerance=NOISE_MARGIN * allowed,
    )
    assert not ExhaustiveLocator().can_try_all(problem)
    return problem, allowed


def misses(decoder: RealDecoder, lies: Lies, noise: float, draws: int, rng: np.random.Generator) -> bool:
    problem, allowed = make_problem(decoder, lies, noise, rng)
    return locate_rows(InformationSetLocator(draws), problem, LIKELY * allowed) is None


def locate(decoder: RealDecoder, lies: Lies, noise: float, rng: np.random.Generator, tally: Tally) -> None:
    problem, allowed = make_problem(decoder, lies, noise, rng)
    started = time.process_time()
    found = locate_rows(None, problem, LIKELY * allowed)
    seconds = time.process_time() - started
    tally.located += 1
    tally.failed += found is None
    tally.seconds += seconds
    tally.worst = max(tally.worst, seconds)


def climb(
    decoder: RealDecoder, noise: float, draws: int, seconds: float, rng: np.random.Generator, tally: Tally
) -> Lies:
    """Return the lies that are missed most often with this number of draws."""

    def tried(lies: Lies, tries: int) -> Lies:
        failures = sum(misses(decoder, lies, noise, draws, rng) for _ in range(tries))
        tally.climbed += 1
        return replace(lies, tries=lies.tries + tries, failures=lies.failures + failures)

    pool: list[Lies] = []
    until = time.process_time() + seconds
    while (left := until - time.process_time()) > 0 or not pool:
        if left > 0.6 * seconds or len(pool) < 2:
            lies = draw_lies(decoder, rng)
            locate(decoder, lies, noise, rng, tally)
        else:
            place = int(rng.integers(len(pool)))
            if pool[place].tries < 80:
                pool[place] = tried(pool[place], 8)
            lies = changed(pool[place], decoder.code.group_size, rng)
        pool = sorted([*pool, tried(lies, 8)], key=lambda entry: -entry.rate)[:POOL]
    return pool[0]


def decode(decoder: RealDecoder, lies: Lies, rng: np.random.Generator) -> bool:
    """Return whether a decode of float32 shares succeeds under these lies."""
    gradient = torch.from_numpy(rng.normal(size=DIM)).float()
    shares = [decoder.code.encode(gradient, slot).double() for slot in range(decoder.code.group_size)]
    basis = np.linalg.qr(rng.normal(size=(len(shares[0]), NUM_PROJECTIONS)))[0].T
    added = torch.from_numpy(lies.weights[:, None] * (lies.directions @ basis)) * float(shares[0].norm())
    for liar, lie in zip(lies.liars.tolist(), added, strict=True):
        shares[liar] += lie
    return decoder.decode(torch.stack(shares).float(), dim=DIM).ok


def run_row(s: int, k: int, seconds: float, seed: int) -> Tally:
    decoder = RealDecoder(FourierCode(group_size=2 * s + k, compression=k), byzantine=s)
    tenth = max(allowed_draws(s, k) // 10, 2)
    tally, rng = Tally(), np.random.default_rng([seed, s, k])
    for noise in NOISES:
        worst = climb(decoder, noise, tenth, 0.6 * seconds / len(NOISES), rng, tally)
        tally.rate = max(tally.rate, float(np.mean([misses(decoder, worst, noise, tenth, rng) for _ in range(200)])))
        until = time.process_time() + 0.2 * seconds / len(NOISES)
        while time.process_time() < until:
            locate(decoder, worst, noise, rng, tally)
        until = time.process_time() + 0.2 * seconds / len(NOISES)
        while time.process_time() < until:
            tally.decoded += 1
            tally.undecoded += not decode(decoder, worst, rng)
    return tally


def allowed_draws(s: int, k: int) -> int:
    return InformationSetLocator().draws_needed(2 * s + k, k, s)


HEADER = ["s", "k", "r", "draws", "located", "failed", "mean", "worst", "climbed", "a tenth", "unlucky"]
HEADER += ["decoded", "not"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40, help="CPU time per row; default 40")
    parser.add_argument("--seed", type=int, default=0, help="seed of lies and gradients; default 0")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for s, k in track(SIZES, "searching"):
        tally = run_row(s, k, arguments.seconds, arguments.seed)
        draws = allowed_draws(s, k)
        honest = math.comb(s + k, k) / math.comb(2 * s + k, k)
        numbers = [s, k, 2 * s + k, draws, tally.located, tally.failed]
        times = [f"{1e3 * tally.seconds / tally.located:.1f}", f"{1e3 * tally.worst:.0f}"]
        rates = [f"{tally.rate:.2f}", f"{(1 - honest) ** max(draws // 10, 2):.2f}"]
        rows.append([*map(str, numbers), *times, str(tally.climbed), *rates, str(tally.decoded), str(tally.undecoded)])
    table = Table(*HEADER, title="Starvation")
    for row in rows:
        table.add_row(*row)
    Console(width=max(120, Console().width)).print(table)
    print("\n".join("| " + " | ".join(row) + " |" for row in [HEADER, ["---"] * len(HEADER), *rows]))


if __name__ == "__main__":
    main()
