"""Give groups more liars than s, with beyond_bound="accept", and count what comes of it.

Each trial draws a gradient of 300 entries, encodes it into float32 shares, draws the liars, lets them lie, decodes, and
compares. t liars, from s + 1 to r - k + 1: up to r - k - 1 no result of status "beyond-bound" may be wrong.

lies:
  random       each liar its own random vector, of 0.01 to 100 times the norm of a share
  sizes        the same, but of 1e-5 to 1e25 times, drawn for each liar
  one line     all liars add one common vector, each times a random number of its own
  same         all liars add one common vector
  framing      lies that look as much as can be like one lie of one honest node
  two camps    the liars are of two camps, and each sends the shares of another gradient
  other        all liars send the shares of one other gradient

columns, of the trials:
  located      status "beyond-bound", the gradient within its error bound, all liars named and nobody else
  partly       the same, but some liars are not named: what they sent differs from the truth by noise only
  rejected     no gradient
  wrong        status "beyond-bound", but the gradient is outside its error bound
  misled       not looked for beyond the bound, as k + s shares or more agree, but wrong: what nothing detects
  other right  the same, but right
  bound        median of the error bound of the located, relative to the gradient's norm
  ms           mean time of a decode

example:
  python benchmarks/beyond_bound.py --trials 5        a first look, in half a minute
"""

import argparse
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from solon_fl import Decoded, DecodeStatus, FourierCode, RealCode, RealDecoder
from solon_fl.coding import smallest_group
from solon_fl.simulations.attacks import OtherGradient, SameLie

DIM = 300
Lies = Callable[[RealCode, Tensor, list[int], torch.Generator], Tensor]  # of unit size, added to the shares


def directions(count: int, shares: Tensor, rng: torch.Generator) -> Tensor:
    drawn = torch.randn(count, shares.shape[1], generator=rng, dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def powers(count: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return 10 ** (low + (high - low) * torch.rand(count, 1, generator=rng, dtype=torch.float64))


def random(code: RealCode, shares: Tensor, liars: list[int], rng: torch.Generator) -> Tensor:
    return powers(1, -2, 2, rng) * directions(len(liars), shares, rng)


def sizes(code: RealCode, shares: Tensor, liars: list[int], rng: torch.Generator) -> Tensor:
    return powers(len(liars), -5, 25, rng) * directions(len(liars), shares, rng)


def one_line(code: RealCode, shares: Tensor, liars: list[int], rng: torch.Generator) -> Tensor:
    return torch.randn(len(liars), 1, generator=rng, dtype=torch.float64) * directions(1, shares, rng)


def same(code: RealCode, shares: Tensor, liars: list[int], rng: torch.Generator) -> Tensor:
    return SameLie(1.0).lies(shares, liars, rng) - shares[liars]


def framing(code: RealCode, shares: Tensor, liars: list[int], rng: torch.Generator) -> Tensor:
    honest = [slot for slot in range(code.group_size) if slot not in liars]
    framed = honest[int(torch.randint(len(honest), (1,), generator=rng))]
    weights = np.linalg.lstsq(code.parity[:, liars], code.parity[:, framed], rcond=None)[0]
    return torch.from_numpy(weights)[:, None] * directions(1, shares, rng)


def other(code: RealCode, shares: Tensor, liars: list[int], rng: torch.Generator) -> Tensor:
    return OtherGradient(code, 1.0).lies(shares, liars, rng) - shares[liars]


def two_camps(code: RealCode, shares: Tensor, liars: list[int], rng: torch.Generator) -> Tensor:
    half = len(liars) // 2
    return torch.cat([other(code, shares, camp, rng) for camp in (liars[:half], liars[half:])])


LIES: dict[str, Lies] = {
    "random": random,
    "sizes": sizes,
    "one line": one_line,
    "same": same,
    "framing": framing,
    "two camps": two_camps,
    "other": other,
}


@dataclass
class Tally:
    counts: Counter[str] = field(default_factory=Counter)
    bounds: list[float] = field(default_factory=list)
    seconds: float = 0.0


def verdict(decoded: Decoded, error: float, liars: list[int]) -> str:
    right = error <= decoded.error_bound
    if not decoded.ok:
        return "rejected"
    if decoded.status is not DecodeStatus.BEYOND_BOUND:
        return "other right" if right else "misled"
    if not right:
        return "wrong"
    return "located" if decoded.corrupt_slots == tuple(liars) else "partly"


def run(decoder: RealDecoder, name: str, num_liars: int, trials: int, seed: int) -> Tally:
    code, tally = decoder.code, Tally()
    for trial in range(trials):
        rng = torch.Generator().manual_seed((seed * 1000 + num_liars) * 1_000_003 + trial)
        gradient = torch.randn(DIM, generator=rng)
        shares = torch.stack([code.encode(gradient, slot) for slot in range(code.group_size)])
        liars = sorted(torch.randperm(code.group_size, generator=rng)[:num_liars].tolist())
        exact = shares.double() / float(shares.double().norm(dim=1).median())
        added = LIES[name](code, exact, liars, rng) * float(shares.double().norm(dim=1).median())
        shares[liars] = (shares[liars].double() + added).float()
        started = time.perf_counter()
        decoded = decoder.decode(shares, dim=DIM, generator=rng)
        tally.seconds += time.perf_counter() - started
        error = np.inf if decoded.gradient is None else float((decoded.gradient.double() - gradient.double()).norm())
        result = verdict(decoded, error, liars)
        tally.counts[result] += 1
        if result == "located":
            tally.bounds.append(decoded.error_bound / float(gradient.norm()))
    return tally


COUNTS = ["located", "partly", "rejected", "wrong", "misled", "other right"]
HEADER = ["lies", "t", *COUNTS, "bound", "ms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trials", type=int, default=8, help="per row of the large group; 20 times as many of the small"
    )
    parser.add_argument("--seed", type=int, default=0, help="of gradients, lies and projections; default 0")
    arguments = parser.parse_args()
    if arguments.trials < 1:
        parser.error(f"--trials must be at least 1; got {arguments.trials}")
    torch.set_num_threads(1)
    started = time.perf_counter()
    for byzantine, compression, trials in ((2, 3, 20 * arguments.trials), (5, 10, arguments.trials)):
        size = smallest_group(byzantine=byzantine, compression=compression)
        code = FourierCode(group_size=size, compression=compression)
        decoder = RealDecoder(code, byzantine=byzantine, beyond_bound="accept")
        checks = size - compression
        print(f"\ns={byzantine}, k={compression}, r={size}; {trials} trials a row; r - k - 1 = {checks - 1}\n")
        for row in (HEADER, ["---"] * len(HEADER)):
            print("| " + " | ".join(row) + " |")
        for name in LIES:
            for num_liars in range(byzantine + 1, checks + 2):
                tally = run(decoder, name, num_liars, trials, arguments.seed)
                if num_liars < checks and tally.counts["wrong"]:
                    raise SystemExit(f"{name}, {num_liars} liars: a wrong result that must not be")
                bound = f"{np.median(tally.bounds):.0e}" if tally.bounds else ""
                numbers = [str(num_liars), *(str(tally.counts[count]) for count in COUNTS)]
                print(
                    "| " + " | ".join([name, *numbers, bound, f"{1e3 * tally.seconds / trials:.0f}"]) + " |", flush=True
                )
    print(
        f"\n{time.perf_counter() - started:.0f} s; {platform.machine()}, {os.cpu_count()} cores (one used), "
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"seed {arguments.seed}, float32"
    )


if __name__ == "__main__":
    main()
