"""Measure the server's CPU time for a round under the worst known lies, against an honest round.

The shares of one group arrive one by one, the liars' shares first. From k + s shares on, the group is decoded after
each, as in `GroupRound`, until k + s shares agree. Lies are drawn until the time for a row is over. The table shows the
most expensive round, which is measured again.

lies:
  near-codeword   one common vector, weighted so that lies of honest rows could have nearly the same syndromes
  graded          a vector per liar, or one for all, with sizes from 1e-6 to 1e2 norms of a share
  at the end      lies only in the last entry, so that the decoder abandons its fast pass late
  whispers        some liars lie loudly in the last columns, the others just above and below the noise

columns:
  honest       ms of an honest round
  attacked     ms of the most expensive round
  ratio        attacked / honest
  decodes      number of decodes in that round
  lie          the lie in that round
  tried        number of rounds under attack

examples:
  python -m benchmarks.attacked_round --seconds 5 --dims 1e5      a quick look, in half a minute
  python -m benchmarks.attacked_round --profile                   also show where the time of the worst rounds goes
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from solon_fl import Decoded, FourierCode, RealDecoder
from solon_fl.coding.real import decoding
from solon_fl.coding.real.projection import Memory, Projector

SIZES = [(1, 3), (2, 6), (5, 5), (5, 10), (10, 4)]
PARTS = {"interpolate": "interpolate", "least_squares": "least squares", "locate_rows": "locate", "judge": "judge"}
Shares = dict[int, Tensor]
Lie = Callable[[RealDecoder, Shares, np.random.Generator], Shares]  # returns the liars' shares


@dataclass
class Round:
    """A round and its cost."""

    seconds: float
    decodes: int
    decoded: Decoded
    parts: dict[str, float] = field(default_factory=dict)


def play(decoder: RealDecoder, shares: Shares, order: list[int], dim: int) -> Round:
    """Let the shares arrive in this order, and decode as `GroupRound` does."""
    needed = decoder.code.compression + decoder.byzantine
    memory, got, decodes = Memory(), {slot: shares[slot] for slot in order[: needed - 1]}, 0
    started = time.process_time()
    for slot in order[needed - 1 :]:
        got[slot] = shares[slot]
        decoded = decoder.decode(got, dim=dim, last=len(got) == len(order), needed=needed, memory=memory)
        decodes += 1
        if decoded.num_agreeing >= needed:
            break
    return Round(time.process_time() - started, decodes, decoded)


@contextmanager
def profiled(parts: dict[str, float]) -> Iterator[None]:
    """Add up, in `parts`, the CPU seconds of the steps of all decodes."""

    def timed(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            started = time.process_time()
            result = function(*arguments, **named)
            parts[name] = parts.get(name, 0.0) + time.process_time() - started
            return result

        return call

    with ExitStack() as stack:
        for name, shown in PARTS.items():
            stack.enter_context(patch.object(decoding, name, timed(shown, getattr(decoding, name))))
        stack.enter_context(patch.object(Projector, "_project", timed("project", Projector._project)))
        yield


def play_profiled(decoder: RealDecoder, shares: Shares, order: list[int], dim: int) -> Round:
    parts: dict[str, float] = {}
    with profiled(parts):
        played = play(decoder, shares, order, dim)
    played.parts = parts
    return played


def draw_liars(decoder: RealDecoder, rng: np.random.Generator) -> list[int]:
    size, s = decoder.code.group_size, decoder.byzantine
    kind, start = int(rng.integers(3)), int(rng.integers(size))
    chosen = rng.choice(size, s, replace=False) if kind == 0 else (start + kind * np.arange(s)) % size
    return [int(slot) for slot in chosen]


def unit(length: int, rng: np.random.Generator) -> Tensor:
    drawn = torch.from_numpy(rng.standard_normal(length, dtype=np.float32))
    return drawn.div_(torch.linalg.vector_norm(drawn))


def near_codeword(decoder: RealDecoder, shares: Shares, rng: np.random.Generator) -> Shares:
    size, s = decoder.code.group_size, decoder.byzantine
    run = (int(rng.integers(size)) + np.arange(2 * s)) % size
    chosen = run if rng.random() < 0.7 else rng.choice(size, 2 * s, replace=False)
    vector = np.linalg.svd(decoder.code.parity[:, chosen])[2][-1]
    half = np.argsort(-np.abs(vector))[:s] if rng.random() < 0.5 else np.arange(0, 2 * s, 2)
    norm, direction = float(shares[0].norm()), unit(shares[0].numel(), rng)
    weights = vector[half] / max(float(np.abs(vector[half]).max()), 1e-9) * 10 ** rng.uniform(-5.5, 0) * norm
    return {
        slot: shares[slot] + float(weight) * direction
        for slot, weight in zip(chosen[half].tolist(), weights, strict=True)
    }


def graded(decoder: RealDecoder, shares: Shares, rng: np.random.Generator) -> Shares:
    norm, length = float(shares[0].norm()), shares[0].numel()
    common, together = unit(length, rng), rng.random() < 0.5
    low = rng.uniform(-6, 0)
    return {
        slot: shares[slot] + 10 ** rng.uniform(low, 2) * norm * (common if together else unit(length, rng))
        for slot in draw_liars(decoder, rng)
    }


def at_the_end(decoder: RealDecoder, shares: Shares, rng: np.random.Generator) -> Shares:
    lies = {slot: shares[slot].clone() for slot in draw_liars(decoder, rng)}
    for lie in lies.values():
        lie[-1] += 10 ** rng.uniform(-5.5, 1) * float(lie.norm())
    return lies


def whispers(decoder: RealDecoder, shares: Shares, rng: np.random.Generator) -> Shares:
    norm, length = float(shares[0].norm()), shares[0].numel()
    noise = math.sqrt(decoder.code.group_size) * decoder.rtol * norm
    liars = draw_liars(decoder, rng)
    loud = int(rng.integers(len(liars) + 1))
    lies, size = {}, 10 ** rng.uniform(-0.3, 1.7)
    for place, slot in enumerate(liars):
        if place < loud:
            lies[slot] = shares[slot].clone()
            start = max(length - 4096 * (loud - place), 0)
            lies[slot][start:] += norm * unit(length - start, rng)
        else:
            lies[slot] = shares[slot] + size * noise * unit(length, rng)
            size *= 10 ** rng.uniform(-0.5, 0)
    return lies


LIES: dict[str, Lie] = {
    "near-codeword": near_codeword,
    "graded": graded,
    "at the end": at_the_end,
    "whispers": whispers,
}


@dataclass
class Row:
    """One row of the table."""

    byzantine: int
    compression: int
    dim: int
    honest: Round
    worst: Round
    lie: str
    tried: int


def run_row(s: int, k: int, dim: int, seconds: float, seed: int) -> Row:
    decoder = RealDecoder(FourierCode(group_size=2 * s + k, compression=k), byzantine=s)
    rng = np.random.default_rng([seed, s, k, dim])
    gradient = torch.from_numpy(rng.standard_normal(dim, dtype=np.float32))
    size = decoder.code.group_size
    shares = {slot: decoder.code.encode(gradient, slot) for slot in range(size)}
    rounds = [play(decoder, shares, rng.permutation(size).tolist(), dim) for _ in range(5)]
    honest = min(rounds, key=lambda played: played.seconds)
    worst, worst_lie, tried = honest, "none", 0
    until = time.process_time() + seconds
    while time.process_time() < until or tried < len(LIES):
        name = list(LIES)[tried % len(LIES)]
        lies = LIES[name](decoder, shares, rng)
        others = [slot for slot in rng.permutation(size).tolist() if slot not in lies]
        order, sent = [*lies, *others], shares | lies
        tried += 1
        if play(decoder, sent, order, dim).seconds <= worst.seconds:
            continue
        played = min((play_profiled(decoder, sent, order, dim) for _ in range(2)), key=lambda one: one.seconds)
        if played.seconds > worst.seconds:
            assert played.decoded.ok
            worst, worst_lie = played, name
    return Row(s, k, dim, honest, worst, worst_lie, tried)


HEADER = ["s", "k", "d", "honest", "attacked", "ratio", "decodes", "lie", "tried"]


def cells_of(row: Row) -> list[str]:
    return [
        *map(str, (row.byzantine, row.compression)),
        f"{row.dim:,}",
        f"{1e3 * row.honest.seconds:.1f}",
        f"{1e3 * row.worst.seconds:.0f}",
        f"{row.worst.seconds / row.honest.seconds:.1f}",
        str(row.worst.decodes),
        row.lie,
        str(row.tried),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="CPU time per row; default 20")
    parser.add_argument("--dims", default="1e5,1e6,1e7", help="lengths of the gradient; default 1e5,1e6,1e7")
    parser.add_argument("--seed", type=int, default=0, help="seed of gradients and lies; default 0")
    parser.add_argument("--profile", action="store_true", help="show where the time of the worst rounds goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=max(120, Console().width), highlight=False)
    table = Table(*HEADER, title="Attacked rounds, 1 thread")
    rows = []
    for dim in (int(float(text)) for text in arguments.dims.split(",")):
        for s, k in SIZES:
            row = run_row(s, k, dim, arguments.seconds, arguments.seed)
            rows.append(cells_of(row))
            table.add_row(*rows[-1])
            if arguments.profile:
                parts = sorted(row.worst.parts.items(), key=lambda part: -part[1])
                shown = ", ".join(f"{part} {1e3 * spent:.1f}" for part, spent in parts)
                console.print(f"s={s}, k={k}, d={dim:,}: {1e3 * row.worst.seconds:.1f} ms, of which {shown}")
    console.print(table)
    print("\n".join("| " + " | ".join(row) + " |" for row in [HEADER, ["---"] * len(HEADER), *rows]))


if __name__ == "__main__":
    main()
