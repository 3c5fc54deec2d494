"""Attack the decoder thousands of times and count what it gets wrong.

Each trial draws a gradient, lets liars corrupt their shares by an attack whose deviation is scaled to a size between
1e-3 and 1e30 of an honest share's norm, decodes, and compares. Columns:

  outside   results farther from the truth than their own error bound (must be 0)
  failed    decodes that reported failure although at most s lied
  misnamed  decodes whose corrupt slots are not exactly the liars (of lies of at least 1e-3 of the norm)
  worst     largest relative error of a gradient returned

and, with s + 1 liars, how often a wrong gradient was returned in silence.
"""

import argparse
import json
import math
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from solon_fl import (
    ExhaustiveLocator,
    FourierCode,
    LinearCode,
    Locator,
    RationalLocator,
    SubspaceLocator,
    VandermondeCode,
)
from solon_fl.simulations import attacks as a

SMALLEST_LIE = 1e-3  # of an honest share's norm: lies from here on must be named

ATTACKS: dict[str, Callable[[LinearCode], a.Attack]] = {
    "reverse": lambda code: a.Reverse(),
    "constant": lambda code: a.Constant(),
    "sign-flip": lambda code: a.SignFlip(),
    "random": lambda code: a.RandomGaussian(),
    "alie": lambda code: a.Alie(),
    "ipm": lambda code: a.InnerProduct(),
    "min-max": lambda code: a.MinMax(),
    "min-sum": lambda code: a.MinSum(),
    "mimic": lambda code: a.Mimic(),
    "bit-flip": lambda code: a.BitFlip(),
    "nan": lambda code: a.NotFinite(),
    "inf": lambda code: a.NotFinite(math.inf),
    "silent": lambda code: a.NotFinite(),
    "same-lie": lambda code: a.SameLie(),
    "near-codeword": lambda code: a.NearCodeword(code),
    "partial-collusion": lambda code: a.PartialCollusion(code),
    "mixed-sizes": lambda code: a.RandomGaussian(),
}
LOCATORS: dict[str, Callable[[], Locator]] = {
    "subspace": SubspaceLocator,
    "rational": RationalLocator,
    "exhaustive": ExhaustiveLocator,
}
CODES: dict[str, type[LinearCode]] = {"fourier": FourierCode, "vandermonde": VandermondeCode}


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    code: str
    locator: str
    byzantine: int
    compression: int
    liars: int


@lru_cache(maxsize=4)
def make_code(cell: Cell) -> LinearCode:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table shows what a void certificate means
        return CODES[cell.code](
            byzantine=cell.byzantine, compression=cell.compression, locator=LOCATORS[cell.locator]()
        )


def attack_shares(
    code: LinearCode, name: str, shares: Tensor, liars: list[int], size: float, rng: torch.Generator
) -> Tensor:
    """Return the shares with the liars' replaced; deviations have `size` honest norms (root mean square)."""
    corrupted = shares.clone()
    lies = ATTACKS[name](code).lies(shares, liars, rng)
    if name not in ("nan", "inf", "silent", "bit-flip"):
        deviation = lies.double() - shares[liars].double()
        norms = deviation.norm(dim=1)
        if name == "mixed-sizes":
            spread = 10 ** (33 * torch.rand(len(liars), generator=rng, dtype=torch.float64) - 3)
            deviation *= (spread / norms)[:, None]
        elif norms.square().mean() > 0:
            deviation *= size / norms.square().mean().sqrt()
        typical = shares.double().norm(dim=1).median()
        lies = (shares[liars].double() + typical * deviation).to(shares.dtype)
    corrupted[liars] = lies
    return corrupted


def run_trials(cell: Cell, first: int, count: int) -> Counter[str]:
    """Run trials first..first+count-1, each with its own seed, and count the outcomes."""
    torch.set_num_threads(1)
    code = make_code(cell)
    names = list(ATTACKS)
    counts: Counter[str] = Counter()
    for trial in range(first, first + count):
        rng = torch.Generator().manual_seed(trial)
        name = names[trial % len(names)]
        dim = int(torch.randint(1, 3000, (1,), generator=rng))
        gradient = torch.randn(dim, generator=rng, dtype=torch.float64)
        gradient *= torch.rand(dim, generator=rng) ** 4  # uneven, as gradients are
        gradient = gradient.float()
        shares = torch.stack([code.encode(gradient, slot) for slot in range(code.group_size)])
        liars = sorted(torch.randperm(code.group_size, generator=rng)[: cell.liars].tolist())
        if name == "near-codeword" and cell.liars == code.byzantine and trial % 2:
            liars = a.NearCodeword(code).best_liars()
        size = 10 ** float(33 * torch.rand(1, generator=rng) - 3)
        if trial % 3 == 0:  # a third of the trials where it is hardest: small lies
            size = 10 ** float(3 * torch.rand(1, generator=rng) - 3)
        received = attack_shares(code, name, shares, liars, size, rng)
        started = time.perf_counter()
        decoded = code.decode(received, dim=dim)
        counts["microseconds"] += round(1e6 * (time.perf_counter() - started))
        counts["trials"] += 1
        counts[f"trials {name}"] += 1
        typical = float(shares.double().norm(dim=1).median())
        deviation = (received.double() - shares.double()).norm(dim=1).nan_to_num(math.inf, math.inf)
        surely = {j for j in liars if not deviation[j] < SMALLEST_LIE * typical}
        named = set(decoded.corrupt_slots) | set(decoded.erased_slots)
        if decoded.gradient is None:
            counts["failed"] += 1
            counts[f"failed {name}"] += 1
            continue
        error = float((decoded.gradient.double() - gradient.double()).norm())
        relative = error / float(gradient.double().norm())
        counts["worst"] = max(counts["worst"], relative)  # type: ignore[assignment]  # a float among counts
        if error > decoded.error_bound:
            counts["outside"] += 1
            counts[f"outside {name}"] += 1
        if relative > 1e-5:
            counts["above 1e-5"] += 1
            counts[f"above 1e-5 {name}"] += 1
        if not (surely <= named <= set(liars)):
            counts["misnamed"] += 1
            counts[f"misnamed {name}"] += 1
    return counts
