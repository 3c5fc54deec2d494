"""Let omniscient liars try to frame honest slots, and count their successes.

Each trial draws a gradient, encodes it, lets s liars frame honest slots, decodes, and compares. It tries only lies that
are hard to distinguish from the truth, from these families in turn:

  interpolated       the shares of the gradient that k badly conditioned honest rows interpolate, including their noise
  near-codeword      lies of 1e-6 to 1 norms of a share that have nearly the same syndromes as lies of honest rows
  several codewords  many such lies together, each in its own column direction
  cheapest           lies that make a chosen set of honest rows the best explanation of the disagreement
  loud and quiet     loud lies of some liars, and one of the above from the others

The liars are neighbours, every other slot of a run, or any slots. In a quarter of the trials honest shares are missing,
but at least k + s shares are left. In half of the trials the honest shares are exact, apart from rounding. In the other
half they are off by 0.9 rtol, in the direction and with the signs that help the liars most.

columns of the first table:
  named       honest slots that were named as certain liars; must be 0
  outside     gradients farther from the truth than their own error bound; must be 0
  failed      decodes that failed with at least 2 s + k shares; must be 0
  untrusted   decodes with fewer shares in which fewer than k + s agreed, so that more shares would be needed
  framed      decodes that left honest rows out of the gradient, as suspects
  suspects    honest slots that became suspects
  ms          mean time of one decode
The second table shows how many of the liars were named, by the size of their lies, in norms of a share times rtol (1e-6
with float32, 1e-12 with float64).

examples:
  python -m benchmarks.framing --trials 200     a quick look, in a minute
  python -m benchmarks.framing                  102,000 trials, in 20 minutes
"""

import argparse
import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.framing_lies import FAMILIES, Scene, draw_liars, worst_noise
from solon_fl import FourierCode, RealDecoder
from solon_fl.coding import smallest_group

SIZES = [(1, 3), (2, 6), (3, 8), (4, 8), (5, 5), (5, 10), (8, 4), (10, 3)]  # s, k; all certificates are below 1
RTOL = {torch.float32: 1e-6, torch.float64: 1e-12}
SMALLEST, LARGEST = -1, 7  # decades of lies, in units of rtol
ABSENT_FOR = 20  # trials in which the same shares are missing


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    byzantine: int
    compression: int
    stragglers: int
    dtype: torch.dtype
    trials: int


@dataclass
class Tally:
    """The outcomes of the trials of a cell."""

    trials: int = 0
    named: Counter[str] = field(default_factory=Counter)  # this and the other counters of str are by family
    outside: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    untrusted: int = 0
    framed: Counter[str] = field(default_factory=Counter)
    suspects: int = 0
    liars: Counter[int] = field(default_factory=Counter)  # by the decade of the lie's size
    liars_named: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0


def all_cells(trials: int) -> Iterator[Cell]:
    for s, k in SIZES:
        few = max(1, 2 * trials // 5)  # these trials are slower
        for dtype in RTOL:
            for e in (0, 2) if s < 5 else (0,):
                yield Cell(s, k, e, dtype, few if 2 * s + k > 16 else trials)


@cache
def make_decoder(cell: Cell) -> RealDecoder:
    size = smallest_group(byzantine=cell.byzantine, compression=cell.compression, stragglers=cell.stragglers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # all certificates are below 1
        code = FourierCode(group_size=size, compression=cell.compression)
        return RealDecoder(code, byzantine=cell.byzantine, stragglers=cell.stragglers, rtol=RTOL[cell.dtype])


def draw_gradient(dim: int, dtype: torch.dtype, rng: np.random.Generator) -> torch.Tensor:
    gradient = rng.normal(size=dim)
    if rng.random() < 0.5:  # uneven, like real gradients
        gradient *= rng.random(dim) ** 4 * np.repeat(10 ** rng.uniform(-2, 0, size=-(-dim // 30)), 30)[:dim]
    return torch.from_numpy(gradient).to(dtype)


def draw_present(cell: Cell, liars: list[int], trial: int) -> list[int]:
    """Return the slots that arrive: all, or in a quarter of the trials at least s + k, among them all liars."""
    size = make_decoder(cell).code.group_size
    rng = np.random.default_rng(trial // ABSENT_FOR)
    if rng.random() < 0.75:
        return list(range(size))
    missing = int(rng.integers(1, size - cell.byzantine - cell.compression + 1))
    absent = [slot for slot in rng.permutation(size).tolist() if slot not in liars][:missing]
    return sorted(set(range(size)) - set(absent))


def run_trial(cell: Cell, trial: int, seed: int, tally: Tally) -> None:
    rng = np.random.default_rng([seed, trial, cell.byzantine, cell.compression, cell.stragglers])
    decoder, name = make_decoder(cell), list(FAMILIES)[trial % len(FAMILIES)]
    code = decoder.code
    gradient = draw_gradient(int(rng.integers(100, 400)), cell.dtype, rng)
    count = cell.byzantine if rng.random() < 0.8 else int(rng.integers(1, cell.byzantine + 1))
    liars = draw_liars(decoder, count, np.random.default_rng([seed, trial // ABSENT_FOR]))
    present = draw_present(cell, liars, trial)
    honest = np.stack([code.encode(gradient, slot).double().numpy() for slot in present])
    scene = Scene(
        decoder=decoder, slots=tuple(present), shares=honest, liars=tuple(present.index(slot) for slot in liars)
    )
    if rng.random() < 0.5:
        noisy = torch.from_numpy(honest + worst_noise(scene, rng)).to(cell.dtype).double().numpy()
        scene = Scene(decoder=decoder, slots=scene.slots, shares=noisy, liars=scene.liars)
    lies = FAMILIES[name](scene, rng)
    sent = scene.shares.copy()
    sent[list(scene.liars)] += lies
    shares = {slot: torch.from_numpy(row).to(cell.dtype) for slot, row in zip(present, sent, strict=True)}
    sizes = np.linalg.norm(lies, axis=1) / scene.scale
    judge(cell, name, gradient, shares, dict(zip(liars, sizes.tolist(), strict=True)), tally)


def judge(
    cell: Cell,
    name: str,
    gradient: torch.Tensor,
    shares: dict[int, torch.Tensor],
    size_of: dict[int, float],
    tally: Tally,
) -> None:
    """Decode and count the outcomes; the keys of `size_of` are the liars."""
    decoder, needed = make_decoder(cell), cell.byzantine + cell.compression
    started = time.perf_counter()
    decoded = decoder.decode(shares, dim=gradient.numel(), needed=needed)
    tally.seconds += time.perf_counter() - started
    tally.trials += 1
    if decoded.gradient is None or decoded.num_agreeing < needed:
        enough = len(shares) >= needed + cell.byzantine
        tally.failed[name] += enough
        tally.untrusted += not enough
        return
    tally.named[name] += len(set(decoded.corrupt_slots) - size_of.keys())
    error = float((decoded.gradient.double() - gradient.double()).norm())
    tally.outside[name] += error > decoded.error_bound
    suspects = set(decoded.suspect_slots) - size_of.keys()
    tally.framed[name] += bool(suspects)
    tally.suspects += len(suspects)
    for slot, size in size_of.items():
        decade = SMALLEST if size <= 0 else int(np.clip(np.floor(np.log10(size / decoder.rtol)), SMALLEST, LARGEST))
        tally.liars[decade] += 1
        tally.liars_named[decade] += slot in decoded.corrupt_slots


def run_all(cells: list[Cell], seed: int) -> list[Tally]:
    tallies = [Tally() for _ in cells]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("trials", total=sum(cell.trials for cell in cells))
        for cell, tally in zip(cells, tallies, strict=True):
            for trial in range(cell.trials):
                run_trial(cell, trial, seed, tally)
                progress.advance(bar)
    return tallies


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


HEADER = ["s", "k", "r", "dtype", "trials", "named", "outside", "failed", "untrusted", "framed", "suspects", "ms"]


def table_rows(cells: list[Cell], tallies: list[Tally]) -> Iterator[list[str]]:
    for cell, tally in zip(cells, tallies, strict=True):
        size = make_decoder(cell).code.group_size
        sizes = [cell.byzantine, cell.compression, size]
        counts = [tally.trials, tally.named.total(), tally.outside.total(), tally.failed.total()]
        counts += [tally.untrusted, tally.framed.total(), tally.suspects]
        milliseconds = f"{1e3 * tally.seconds / tally.trials:.1f}"
        yield [*map(str, sizes), name_of(cell.dtype), *(f"{count:,}" for count in counts), milliseconds]


def rows_by_size(cells: list[Cell], tallies: list[Tally]) -> Iterator[list[str]]:
    """Yield the number of liars, and the percentage named, by size of the lie and dtype."""
    for decade in range(SMALLEST, LARGEST + 1):
        row = [f"below {10 ** (decade + 1):,} rtol" if decade == SMALLEST else f"{10**decade:,} rtol and more"]
        for dtype in RTOL:
            of_dtype = [tally for cell, tally in zip(cells, tallies, strict=True) if cell.dtype == dtype]
            liars = sum(tally.liars[decade] for tally in of_dtype)
            named = sum(tally.liars_named[decade] for tally in of_dtype)
            row += [f"{liars:,}", f"{100 * named / liars:.1f} %" if liars else "-"]
        yield row


def notes(tallies: list[Tally]) -> Iterator[str]:
    """Yield the counts by family of lies."""
    for what in ("named", "outside", "failed", "framed"):
        total: Counter[str] = sum((getattr(tally, what) for tally in tallies), Counter())
        yield f"{what}: " + (", ".join(f"{name} {count:,}" for name, count in total.most_common() if count) or "none")


def show(title: str, header: list[str], rows: list[list[str]]) -> None:
    console = Console(width=max(120, Console().width))
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    print("\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5_000, help="per row (2/5 for large groups); default 5000")
    parser.add_argument("--seed", type=int, default=0, help="seed of gradients, liars and lies; default 0")
    arguments = parser.parse_args()
    if arguments.trials < 1:
        parser.error(f"--trials must be at least 1; got {arguments.trials}")
    torch.set_num_threads(1)
    cells = list(all_cells(arguments.trials))
    tallies = run_all(cells, arguments.seed)
    show("Framing", HEADER, list(table_rows(cells, tallies)))
    show(
        "Liars named",
        ["size", *(f"{name_of(t)} {w}" for t in RTOL for w in ("liars", "named"))],
        list(rows_by_size(cells, tallies)),
    )
    print("\n".join(f"* {note}" for note in notes(tallies)))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}, seed {arguments.seed}"
    )


if __name__ == "__main__":
    main()
