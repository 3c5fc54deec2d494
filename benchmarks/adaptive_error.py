"""Measure how far adaptive, omniscient liars can move a gradient while they stay just below the tolerance.

k honest shares determine the gradient, but some sets of k are badly conditioned: a small difference between their
shares means a large difference between gradients. Two kinds of lies exploit this:
  imitate  choose another gradient that k badly conditioned honest rows hardly distinguish from the true one, and send
           its shares
  push     add the lie that moves the least-squares solution farthest, relative to the disagreement that it causes
Hill climbing searches for the worst case over the rows that arrive, the rows that lie, the directions and the size of
the lie, and whether the gradient is spread evenly or concentrated in one chunk. Each step changes one of these at
random and decodes the group with a fresh projection. The climb keeps the change that moved the result farthest.

A result counts if k + s shares agree with it, as `SolonStrategy` requires. There are three objectives:
  any     k + s to r shares arrive, chosen by the liars: a group may have to accept such results at the deadline
  early   the same, but only results whose own error bound is within EARLY_ERROR: a group accepts these early
  all     all r shares arrive
Each is tried with exact honest shares (apart from float32 rounding), and with honest shares that are off by 0.9 rtol in
the direction that helps the liars most. No machine does that, but the decoder must tolerate it.

columns of the table:
  noise             noise of honest shares: none, or 0.9 rtol in favour of the liars
  any, early, all   the largest relative error found for this objective; - if no result counted
  shares            the number of shares in that case
  outside           results farther from the truth than their own error bound; must be 0
  decodes           the number of decodes
  certificate       the decoder's bound, known in advance

examples:
  python -m benchmarks.adaptive_error --steps 30     a quick look, in a few minutes
  python -m benchmarks.adaptive_error --only 5,10    one setting
  python -m benchmarks.adaptive_error --output adaptive.json
"""

import argparse
import json
import math
import os
import platform
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from solon_fl import CertificateWarning, Decoded, FourierCode, RealDecoder
from solon_fl.coding import smallest_group
from solon_fl.coding.real.locating import parity_of
from solon_fl.config import EARLY_ERROR

FloatArray = NDArray[np.float64]
Aim = Literal["any", "early", "all"]
AIMS: tuple[Aim, ...] = ("any", "early", "all")
SETTINGS = [(1, 3), (2, 6), (5, 5), (3, 8), (5, 10), (8, 8)]
HONEST_NOISE = (0.0, 0.9)  # relative to rtol
SHARE_DIM = 64  # columns; the decoder's verdict depends only on norms
WEAK_CHUNK = 1e-2  # size of the other chunks of a concentrated gradient, relative to its large chunk
TRIES = 3  # projections with which a lie is tried until it counts
Kind = Literal["imitate", "push"]
KINDS: tuple[Kind, ...] = ("push", "imitate")


@dataclass(frozen=True)
class Climb:
    """The settings of one climb."""

    byzantine: int
    compression: int
    aim: Aim
    num_shares: int
    honest_noise: float
    seed: int


@dataclass(frozen=True)
class Lie:
    """The parameters of a lie, which the climb changes.

    Attributes
    ----------
    fixing : tuple of int
        The k honest slots that hardly distinguish the liars' gradient from the true one.
    liars, others : tuple of int
        The slots that lie, and the other honest slots that arrive.
    weights : (k or s, c)
        Coefficients of the lie, for each of c orthonormal directions of columns. They refer to the singular vectors of
        the fixing rows ("imitate"), or of the map from disagreement to the solution's error ("push"), in order of
        decreasing effect.
    size : float
        Norm of the disagreement relative to the decoder's noise: between the fixing rows and the liars' gradient, or
        between all rows.
    big_chunk : int
        The chunk that holds most of the gradient; -1 if it is spread evenly.
    side : int
        The sign of the other honest rows' noise: 1 favours the liars, -1 is the opposite.
    """

    kind: Kind
    fixing: tuple[int, ...]
    liars: tuple[int, ...]
    others: tuple[int, ...]
    weights: FloatArray
    size: float
    big_chunk: int = -1
    side: int = 1


@dataclass
class Found:
    """The result of a climb."""

    climb: Climb
    error: float = 0.0  # relative
    outside: int = 0
    decodes: int = 0


@lru_cache(maxsize=8)
def make_decoder(byzantine: int, compression: int, rtol: float) -> RealDecoder:
    size = smallest_group(byzantine=byzantine, compression=compression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CertificateWarning)
        return RealDecoder(FourierCode(group_size=size, compression=compression), byzantine=byzantine, rtol=rtol)


def first_lie(climb: Climb, decoder: RealDecoder, rng: np.random.Generator) -> Lie:
    """Start with neighbouring rows, because polynomials are hardest to distinguish on a short arc of the circle."""
    s, k, size = climb.byzantine, climb.compression, decoder.code.group_size
    start, kind = int(rng.integers(size)), KINDS[climb.seed % 2]
    arc = [(start + step) % size for step in range(size)]
    fixing, rest = arc[:k], arc[k:]
    if rng.random() < 0.5:
        rng.shuffle(rest)
    weights = np.zeros((k if kind == "imitate" else s, 1))
    weights[0] = 1
    return Lie(
        kind=kind,
        fixing=tuple(fixing),
        liars=tuple(rest[:s]),
        others=tuple(rest[s : climb.num_shares - k]),
        weights=weights,
        size=10 ** rng.uniform(-1, 0.3),
        big_chunk=int(rng.integers(k)) if rng.random() < 0.5 else -1,
    )


def changed(lie: Lie, decoder: RealDecoder, rng: np.random.Generator) -> Lie:
    """Change one thing at random."""
    size, k = decoder.code.group_size, decoder.code.compression
    what = rng.choice(
        ["size", "weights", "columns", "rows", "roles", "chunk", "side"], p=[0.3, 0.3, 0.1, 0.1, 0.1, 0.05, 0.05]
    )
    if what == "size":
        return replace(lie, size=lie.size * 2 ** rng.normal(scale=0.5))
    if what == "weights":
        return replace(lie, weights=lie.weights + 10 ** rng.uniform(-2, 0) * rng.normal(size=lie.weights.shape))
    if what == "columns":
        more = np.concatenate([lie.weights, 0.5 * rng.normal(size=(len(lie.weights), 1))], axis=1)
        return replace(lie, weights=more if lie.weights.shape[1] < 4 else lie.weights[:, :1])
    if what == "chunk":
        return replace(lie, big_chunk=int(rng.integers(-1, k)))
    if what == "side":
        return replace(lie, side=int(rng.integers(-1, 2)))
    present = [*lie.fixing, *lie.liars, *lie.others]
    slots = [*present, *(slot for slot in range(size) if slot not in present)]
    one = int(rng.integers(len(present)))
    two = int(rng.integers(len(slots) if what == "rows" else len(present)))
    slots[one], slots[two] = slots[two], slots[one]
    ends = np.cumsum([k, len(lie.liars), len(lie.others)]).tolist()
    fixing, liars, others = (tuple(slots[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True))
    return replace(lie, fixing=fixing, liars=liars, others=others)


def deviations(lie: Lie, decoder: RealDecoder) -> FloatArray:
    """Return the change of each row's share if the gradient were the liars' one, (r, c), of norm about 1."""
    generator = decoder.code.generator
    weights = lie.weights / np.linalg.norm(lie.weights)
    if lie.kind == "imitate":
        _, singular, right = np.linalg.svd(generator[list(lie.fixing)])
        return np.asarray(generator @ right[::-1].T @ (weights / singular[::-1, None]))
    present = sorted((*lie.fixing, *lie.liars, *lie.others))
    columns = [present.index(slot) for slot in lie.liars]
    moves = np.linalg.pinv(generator[present])[:, columns]
    triangle = np.linalg.qr(parity_of(generator[present])[:, columns]).R  # maps lies to the disagreement they cause
    right = np.linalg.svd(moves @ np.linalg.inv(triangle)).Vh
    lies = np.linalg.solve(triangle, right.T @ weights)
    wanted = generator @ moves @ lies
    wanted[list(lie.liars)] = lies
    return np.asarray(wanted)


def shares_of(
    lie: Lie, decoder: RealDecoder, honest_noise: float, rng: np.random.Generator
) -> tuple[dict[int, Tensor], FloatArray]:
    """Return the shares that arrive, and the true gradient."""
    k = decoder.code.compression
    chunks = rng.normal(size=(k, SHARE_DIM))
    if lie.big_chunk >= 0:
        chunks[np.arange(k) != lie.big_chunk] *= WEAK_CHUNK
    chunks = chunks.astype(np.float32).astype(np.float64)
    shares = decoder.code.generator @ chunks
    honest = [*lie.fixing, *lie.others]
    scale = float(np.sort(np.linalg.norm(shares[honest], axis=1))[k - 1])  # rtol is relative to this
    columns = np.linalg.qr(rng.normal(size=(SHARE_DIM, lie.weights.shape[1]))).Q.T
    noise = math.sqrt(decoder.code.group_size) * decoder.rtol * scale
    wanted = lie.size * noise * deviations(lie, decoder) @ columns
    shares[list(lie.liars)] += wanted[list(lie.liars)]
    largest = honest_noise * decoder.rtol * scale
    for slots, side in ((lie.fixing, 1), (lie.others, lie.side)):
        moved = wanted[list(slots)]
        norms = np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-300)
        shares[list(slots)] += side * moved * np.minimum(1, largest / norms)
    rows = torch.from_numpy(shares).float()
    return {slot: rows[slot] for slot in sorted((*honest, *lie.liars))}, chunks.reshape(-1)


def attempt(lie: Lie, climb: Climb, decoder: RealDecoder, rng: np.random.Generator, found: Found) -> float:
    """Decode a few times and return the relative error of the first result that counts; 0 if none does."""
    shares, gradient = shares_of(lie, decoder, climb.honest_noise, rng)
    needed = climb.byzantine + climb.compression
    for _ in range(TRIES):
        projection = torch.Generator().manual_seed(int(rng.integers(2**62)))
        decoded = decoder.decode(shares, dim=gradient.size, needed=needed, generator=projection)
        found.decodes += 1
        if decoded.gradient is None:
            continue
        error = float(np.linalg.norm(decoded.gradient.double().numpy() - gradient))
        found.outside += error > decoded.error_bound
        if counts(decoded, climb.aim, needed):
            return error / float(np.linalg.norm(gradient))
    return 0.0


def counts(decoded: Decoded, aim: Aim, needed: int) -> bool:
    """Return whether a group would accept the result."""
    if decoded.gradient is None or decoded.num_agreeing < needed:
        return False
    return aim != "early" or decoded.error_bound <= EARLY_ERROR * float(decoded.gradient.double().norm())


def run_climb(climb: Climb, steps: int, rtol: float) -> Found:
    torch.set_num_threads(1)
    decoder = make_decoder(climb.byzantine, climb.compression, rtol)
    rng = np.random.default_rng([climb.seed, AIMS.index(climb.aim), climb.num_shares, round(10 * climb.honest_noise)])
    found = Found(climb)
    best = first_lie(climb, decoder, rng)
    for step in range(steps):
        tried = changed(best, decoder, rng) if step else best
        error = attempt(tried, climb, decoder, rng, found)
        if error >= found.error:
            found.error, best = error, tried
    return found


def all_climbs(settings: list[tuple[int, int]], restarts: int, seed: int) -> Iterator[Climb]:
    for s, k in settings:
        size = smallest_group(byzantine=s, compression=k)
        for aim in AIMS:
            for honest_noise in HONEST_NOISE:
                for number in [size] if aim == "all" else range(s + k, size + 1):
                    for restart in range(restarts * (4 if aim == "all" else 2)):
                        yield Climb(s, k, aim, number, honest_noise, seed * 1_000_002 + restart)


def run_all(climbs: list[Climb], steps: int, rtol: float, workers: int) -> list[Found]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ProcessPoolExecutor(workers) as pool, Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("climbs", total=len(climbs))
        jobs = [pool.submit(run_climb, climb, steps, rtol) for climb in climbs]
        for _ in as_completed(jobs):
            progress.advance(bar)
        return [job.result() for job in jobs]


HEADER = ["s", "k", "r", "noise", *(cell for aim in AIMS[:2] for cell in (aim, "shares")), "all", "outside", "decodes"]
HEADER += ["certificate"]


def is_for(climb: Climb, aim: Aim) -> bool:
    """Return whether results of this climb count for the aim. Every result counts for "any"."""
    all_there = climb.num_shares == smallest_group(byzantine=climb.byzantine, compression=climb.compression)
    return aim == "any" or climb.aim == aim or (aim == "all" and all_there)


def table_rows(founds: list[Found], rtol: float) -> Iterator[list[str]]:
    for s, k in dict.fromkeys((found.climb.byzantine, found.climb.compression) for found in founds):
        decoder = make_decoder(s, k, rtol)
        for honest_noise in HONEST_NOISE:
            mine = [
                found
                for found in founds
                if (found.climb.byzantine, found.climb.compression, found.climb.honest_noise) == (s, k, honest_noise)
            ]
            cells = [str(s), str(k), str(decoder.code.group_size), f"{honest_noise:g} rtol" if honest_noise else "none"]
            for aim in AIMS:
                best = max((found for found in mine if is_for(found.climb, aim)), key=lambda found: found.error)
                cells.append(f"{best.error:.1e}" if best.error else "-")
                if aim != "all":
                    cells.append(str(best.climb.num_shares) if best.error else "-")
            cells += [str(sum(found.outside for found in mine)), f"{sum(found.decodes for found in mine):,}"]
            yield [*cells, f"{decoder.certificate:.0e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help=f"steps per climb, of 1 to {TRIES} decodes; default 200")
    parser.add_argument(
        "--restarts", type=int, default=1, help="climbs per number of shares and kind of lie; default 1"
    )
    parser.add_argument("--rtol", type=float, default=1e-6, help="the decoder's rtol; default 1e-6")
    parser.add_argument("--only", help="one setting, as S,K; default: " + " ".join(f"{s},{k}" for s, k in SETTINGS))
    parser.add_argument("--seed", type=int, default=0, help="seed of gradients, lies and projections; default 0")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="number of processes; default: all cores")
    parser.add_argument("--output", type=Path, help="write the results of all climbs to this JSON file")
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.restarts) < 1:
        parser.error(f"--steps and --restarts must be at least 1; got {arguments.steps} and {arguments.restarts}")
    settings = SETTINGS
    if arguments.only:
        s, _, k = arguments.only.partition(",")
        if not (s.isdecimal() and k.isdecimal() and int(s) and int(k) >= int(s)):
            parser.error(f"--only takes S,K with 1 <= S <= K; got {arguments.only!r}")
        settings = [(int(s), int(k))]
    climbs = list(all_climbs(settings, arguments.restarts, arguments.seed))
    founds = run_all(climbs, arguments.steps, arguments.rtol, arguments.workers)
    rows = list(table_rows(founds, arguments.rtol))

    console = Console(width=max(120, Console().width))
    table = Table(*HEADER, title=f"Largest relative error caused by adaptive liars, rtol={arguments.rtol:g}")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    about = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "restarts": arguments.restarts,
    }
    print(
        "\n".join(
            ["", *("| " + " | ".join(row) + " |" for row in [HEADER, ["---"] * len(HEADER), *rows]), "", f"{about}"]
        )
    )
    if arguments.output:
        results = [asdict(found) for found in founds]
        arguments.output.write_text(json.dumps({"about": about, "results": results}, indent=1))
        console.print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
