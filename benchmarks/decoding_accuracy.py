"""Attack the decoder thousands of times and count its errors.

Each trial draws a gradient, encodes it, lets liars corrupt their shares, decodes, and compares. The trials go through
17 attacks in turn. The distance of a lie from the honest share is drawn between 1e-3 and 1e30 norms of such a share. In
a third of the trials it is between 1e-3 and 1, where liars are hardest to distinguish from honest nodes.

columns of the table:
  outside      gradients farther from the truth than their own error bound; must be 0 with at most s liars
  failed       decodes that reported a failure instead of a gradient
  blamed       decodes that named an honest slot as a liar; must be 0
  unnamed      decodes that did not name a lie of at least 1e-3 of a share's norm; it may still be a suspect
  > 1e-5       gradients with a relative error above 1e-5
  worst        largest relative error of a gradient within its error bound
  certificate  the decoder's bound, known in advance
  ms           mean time of one decode

A row that names a locator uses only that one. The default chooses one for each decode. The rows with s + 1 liars show
what happens beyond the guarantee.

--codes exact tests the exact code instead, with the lies of benchmarks/exact_lies.py. There, `unnamed` counts decodes
that missed a share with a wrong bit, and `wrong bits` counts the wrong bits of all gradients.

examples:
  python -m benchmarks.decoding_accuracy --trials 200     a quick look, in a minute or two
  python -m benchmarks.decoding_accuracy --output accuracy.json
  python -m benchmarks.decoding_accuracy --codes exact
"""

import argparse
import json
import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from benchmarks.exact_lies import Scene, draw_scene, make_exact_decoder
from solon_fl import (
    Decoded,
    FourierCode,
    Locator,
    RationalLocator,
    RealCode,
    RealDecoder,
    SubspaceLocator,
    VandermondeCode,
)
from solon_fl.coding import smallest_group
from solon_fl.simulations import attacks as a

SMALLEST_LIE = 1e-3  # relative to an honest share's norm; smaller lies need not be named
PRECISE = 1e-5
TRIALS_PER_TASK = 50

ATTACKS: dict[str, Callable[[RealDecoder], a.Attack]] = {
    "reverse": lambda decoder: a.Reverse(),
    "constant": lambda decoder: a.Constant(),
    "sign-flip": lambda decoder: a.SignFlip(),
    "random": lambda decoder: a.RandomGaussian(),
    "mixed-sizes": lambda decoder: a.RandomGaussian(),  # each liar has its own size
    "alie": lambda decoder: a.Alie(),
    "ipm": lambda decoder: a.InnerProduct(),
    "min-max": lambda decoder: a.MinMax(),
    "min-sum": lambda decoder: a.MinSum(),
    "mimic": lambda decoder: a.Mimic(),
    "same-lie": lambda decoder: a.SameLie(),
    "near-codeword": a.NearCodeword,
    "other-gradient": lambda decoder: a.OtherGradient(decoder.code),
    "partial-collusion": a.PartialCollusion,
    "bit-flip": lambda decoder: a.BitFlip(),
    "nan": lambda decoder: a.NotFinite(),
    "silent": lambda decoder: a.NotFinite(),  # no share at all
}
UNSCALED = ("bit-flip", "nan", "silent")
LOCATORS: dict[str, Callable[[], Locator] | None] = {
    "default": None,
    "subspace": SubspaceLocator,
    "rational": RationalLocator,
}
SMALL = [(1, 3), (2, 6), (5, 5), (5, 10)]  # (s, k) with a certificate below 1
CODES: dict[str, type[RealCode]] = {"fourier": FourierCode, "vandermonde": VandermondeCode}


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    code: str
    locator: str
    byzantine: int
    compression: int
    liars: int
    trials: int


@dataclass
class Tally:
    """The outcomes of some trials of a cell. The counters are by attack."""

    trials: int = 0
    outside: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    blamed: Counter[str] = field(default_factory=Counter)
    unnamed: Counter[str] = field(default_factory=Counter)
    wrong_bits: Counter[str] = field(default_factory=Counter)
    imprecise: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0
    seconds: float = 0.0

    def add(self, other: "Tally") -> None:
        """Add the trials of another tally of the same cell."""
        self.trials += other.trials
        self.outside += other.outside
        self.failed += other.failed
        self.blamed += other.blamed
        self.unnamed += other.unnamed
        self.wrong_bits += other.wrong_bits
        self.imprecise += other.imprecise
        self.worst = max(self.worst, other.worst)
        self.seconds += other.seconds


def all_cells(trials: int) -> Iterator[Cell]:
    pairs = [("fourier", "default"), ("fourier", "subspace"), ("fourier", "rational"), ("vandermonde", "rational")]
    for s, k in SMALL:
        for code, locator in pairs:
            yield Cell(code, locator, s, k, s, trials)
    for s, k in SMALL:
        yield Cell("fourier", "default", s, k, s + 1, trials)
    few = max(1, trials // 10)  # these trials are slower
    for s, k in [(3, 10), (8, 8), (10, 10), (10, 20)]:
        for code, locator in (pairs[0], pairs[-1]):
            yield Cell(code, locator, s, k, s, few)


def guaranteed_cells(trials: int) -> Iterator[Cell]:
    """Yield the rows with a certificate below 1, at most s liars and the default locator."""
    for cell in all_cells(trials):
        is_small = (cell.byzantine, cell.compression) in SMALL
        if is_small and cell.locator == "default" and cell.liars == cell.byzantine:
            yield cell


def exact_cells(trials: int) -> Iterator[Cell]:
    for s, k in [(1, 3), (2, 6), (5, 5), (5, 10), (10, 20), (20, 60)]:
        yield Cell("exact", "default", s, k, s, trials)


@lru_cache(maxsize=4)
def make_decoder(kind: str, locator: str, byzantine: int, compression: int) -> RealDecoder:
    make_locator = LOCATORS[locator]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table shows the effect of a certificate of 1 or more
        size = smallest_group(byzantine=byzantine, compression=compression)
        code = CODES[kind](group_size=size, compression=compression)
        return RealDecoder(code, byzantine=byzantine, locator=None if make_locator is None else make_locator())


@lru_cache(maxsize=4)
def hardest_liars(decoder: RealDecoder) -> list[int]:
    return a.NearCodeword(decoder).best_liars()


def typical_norm(shares: Tensor) -> float:
    return float(shares.double().norm(dim=1).median())


def draw_gradient(rng: torch.Generator) -> Tensor:
    dim = int(torch.randint(1, 3000, (1,), generator=rng))
    gradient = torch.randn(dim, generator=rng, dtype=torch.float64)
    return (gradient * torch.rand(dim, generator=rng) ** 4).float()  # uneven, as gradients are


def draw_size(trial: int, rng: torch.Generator) -> float:
    decades = 3 if trial % 3 == 0 else 33
    return float(10 ** (decades * torch.rand(1, generator=rng, dtype=torch.float64) - 3))


def corrupt(
    decoder: RealDecoder, name: str, shares: Tensor, liars: list[int], size: float, rng: torch.Generator
) -> Tensor:
    """Return the shares with lies in place of the liars' shares; the lies' root mean square is `size` honest norms."""
    corrupted = shares.clone()
    lies = ATTACKS[name](decoder).lies(shares, liars, rng)
    if name not in UNSCALED:
        deviation = lies.double() - shares[liars].double()
        norms = deviation.norm(dim=1)
        scale = torch.full_like(norms, size)
        if name == "mixed-sizes":
            scale = 10 ** (33 * torch.rand(len(liars), generator=rng, dtype=torch.float64) - 3)
        else:
            norms = norms.square().mean().sqrt().expand_as(norms)
        deviation *= (typical_norm(shares) * scale / norms.clamp_min(1e-300))[:, None]
        lies = (shares[liars].double() + deviation).to(shares.dtype)
    corrupted[liars] = lies
    return corrupted


def run_trial(cell: Cell, trial: int, seed: int, tally: Tally) -> None:
    rng = torch.Generator().manual_seed(seed * 1_000_000_007 + trial)
    decoder = make_decoder(cell.code, cell.locator, cell.byzantine, cell.compression)
    code = decoder.code
    name = list(ATTACKS)[trial % len(ATTACKS)]
    gradient = draw_gradient(rng)
    honest = torch.stack([code.encode(gradient, slot) for slot in range(code.group_size)])
    liars = sorted(torch.randperm(code.group_size, generator=rng)[: cell.liars].tolist())
    if name == "near-codeword" and cell.liars == decoder.byzantine and trial % 2:
        liars = hardest_liars(decoder)
    received = corrupt(decoder, name, honest, liars, draw_size(trial, rng), rng)
    shares = {slot: share for slot, share in enumerate(received) if not (name == "silent" and slot in liars)}
    started = time.perf_counter()
    decoded = decoder.decode(shares, dim=gradient.numel(), generator=rng)
    tally.seconds += time.perf_counter() - started
    tally.trials += 1
    judge(decoded, name, gradient, honest, received, liars, tally)


def judge(
    decoded: Decoded, name: str, gradient: Tensor, honest: Tensor, received: Tensor, liars: list[int], tally: Tally
) -> None:
    """Count the decoder's errors."""
    if decoded.gradient is None:
        tally.failed[name] += 1
        return
    deviation = (received.double() - honest.double()).norm(dim=1)
    sure_liars = {slot for slot in liars if not deviation[slot] < SMALLEST_LIE * typical_norm(honest)}
    named = {*decoded.corrupt_slots, *decoded.erased_slots}
    tally.blamed[name] += not named <= set(liars)
    tally.unnamed[name] += not sure_liars <= named
    error = float((decoded.gradient.double() - gradient.double()).norm())
    relative = error / float(gradient.double().norm())
    tally.imprecise[name] += relative > PRECISE
    if error > decoded.error_bound:
        tally.outside[name] += 1
    else:
        tally.worst = max(tally.worst, relative)


def run_exact_trial(cell: Cell, trial: int, seed: int, tally: Tally) -> None:
    name, scene, received = draw_scene(cell.byzantine, cell.compression, trial, seed)
    slot = trial % scene.code.group_size
    encoded = scene.code.encode(scene.gradient.view(torch.float32), slot)
    assert torch.equal(encoded.view(torch.int32), scene.honest[slot]), (cell, trial)
    started = time.perf_counter()
    decoded = scene.decoder.decode(received, dim=len(scene.gradient))
    tally.seconds += time.perf_counter() - started
    tally.trials += 1
    judge_exact(decoded, name, scene, received, tally)


def judge_exact(decoded: Decoded, name: str, scene: Scene, received: dict[int, Tensor], tally: Tally) -> None:
    """Count the decoder's errors, down to a single bit."""
    if decoded.gradient is None:
        tally.failed[name] += 1
        return
    changed = [slot for slot in scene.liars if not torch.equal(received[slot].view(torch.int32), scene.honest[slot])]
    named = {*decoded.different_slots, *decoded.corrupt_slots, *decoded.suspect_slots}
    absent = tuple(slot for slot in range(scene.code.group_size) if slot not in received)
    tally.blamed[name] += not named <= set(changed) or decoded.erased_slots != absent
    tally.unnamed[name] += decoded.different_slots != tuple(changed)
    true, found = scene.gradient.view(torch.float32), decoded.gradient
    same = (found == true) | (found.isnan() & true.isnan())
    if not bool(same.all()) or decoded.error_bound > 0:  # the bound is 0
        tally.outside[name] += 1
    wrong = (found.view(torch.int32) ^ scene.gradient).numpy().view(np.uint8)
    tally.wrong_bits[name] += int(np.unpackbits(wrong).sum())


def run_trials(cell: Cell, first: int, count: int, seed: int) -> Tally:
    torch.set_num_threads(1)
    tally = Tally()
    for trial in range(first, first + count):
        (run_exact_trial if cell.code == "exact" else run_trial)(cell, trial, seed, tally)
    return tally


def run_all(cells: list[Cell], seed: int, workers: int) -> list[Tally]:
    tallies = [Tally() for _ in cells]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ProcessPoolExecutor(workers) as pool, Progress(*columns, console=Console(stderr=True)) as progress:
        row_of = {}
        for row, cell in enumerate(cells):
            for first in range(0, cell.trials, TRIALS_PER_TASK):
                count = min(TRIALS_PER_TASK, cell.trials - first)
                row_of[pool.submit(run_trials, cell, first, count, seed)] = row
        bar = progress.add_task("trials", total=sum(cell.trials for cell in cells))
        for done in as_completed(row_of):
            tallies[row_of[done]].add(done.result())
            progress.advance(bar, done.result().trials)
    return tallies


HEADER = ["code", "locator", "s", "k", "r", "liars", "trials", "outside", "failed", "blamed", "unnamed"]
HEADER += ["> 1e-5", "worst", "certificate", "ms"]


def table_rows(cells: list[Cell], tallies: list[Tally]) -> list[list[str]]:
    rows = []
    for cell, tally in zip(cells, tallies, strict=True):
        decoder = make_decoder(cell.code, cell.locator, cell.byzantine, cell.compression)
        numbers = [cell.byzantine, cell.compression, decoder.code.group_size, cell.liars, tally.trials]
        counts = [counter.total() for counter in (tally.outside, tally.failed, tally.blamed, tally.unnamed)]
        counts.append(tally.imprecise.total())
        rates = [f"{tally.worst:.0e}", f"{decoder.certificate:.0e}", f"{1e3 * tally.seconds / tally.trials:.1f}"]
        rows.append([cell.code, cell.locator, *map(str, numbers + counts), *rates])
    return rows


EXACT_HEADER = ["code", "s", "k", "r", "trials", "outside", "failed", "blamed", "unnamed", "wrong bits", "ms"]


def exact_rows(cells: list[Cell], tallies: list[Tally]) -> list[list[str]]:
    rows = []
    for cell, tally in zip(cells, tallies, strict=True):
        size = make_exact_decoder(cell.byzantine, cell.compression).code.group_size
        numbers = [cell.byzantine, cell.compression, size, tally.trials]
        counts = [counter.total() for counter in (tally.outside, tally.failed, tally.blamed, tally.unnamed)]
        counts.append(tally.wrong_bits.total())
        rows.append([cell.code, *map(str, numbers + counts), f"{1e3 * tally.seconds / tally.trials:.1f}"])
    return rows


def notes(cells: list[Cell], tallies: list[Tally]) -> Iterator[str]:
    """Yield the counts by attack, for the default locator."""
    for cell, tally in zip(cells, tallies, strict=True):
        if cell.locator == "default":
            for what in ("outside", "failed", "blamed", "unnamed", "wrong_bits"):
                counter: Counter[str] = getattr(tally, what)
                by_attack = ", ".join(f"{name} {count}" for name, count in counter.most_common() if count)
                if by_attack:
                    yield f"s={cell.byzantine}, k={cell.compression}, {cell.liars} liars, {what}: {by_attack}"


def about_this_run(seed: int, workers: int) -> dict[str, object]:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "seed": seed,
        "workers": workers,
        "dtype": "float32",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000, help="per row (a tenth for s=3, 8, 10); default 10000")
    parser.add_argument("--codes", choices=("real", "exact"), default="real", help="codes to attack; default real")
    parser.add_argument("--seed", type=int, default=0, help="seed of gradients, lies and projections; default 0")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="number of processes; default: all cores")
    parser.add_argument("--output", type=Path, help="write the counts, by attack, to this JSON file")
    arguments = parser.parse_args()
    if arguments.trials < 1:
        parser.error(f"--trials must be at least 1; got {arguments.trials}")
    exact = arguments.codes == "exact"
    cells = list((exact_cells if exact else all_cells)(arguments.trials))
    about = about_this_run(arguments.seed, arguments.workers)
    tallies = run_all(cells, arguments.seed, arguments.workers)
    header, rows = (EXACT_HEADER, exact_rows(cells, tallies)) if exact else (HEADER, table_rows(cells, tallies))

    console = Console(width=max(140, Console().width))
    table = Table(*header, title="Decoding accuracy")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    markdown = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    lines = ["", *markdown, "", *(f"* {note}" for note in notes(cells, tallies)), "", f"{about}"]
    print("\n".join(lines))
    if arguments.output:
        results = [asdict(cell) | vars(tally) for cell, tally in zip(cells, tallies, strict=True)]
        arguments.output.write_text(json.dumps({"about": about, "results": results}, indent=1))
        console.print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
