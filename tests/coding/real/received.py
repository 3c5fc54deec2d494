"""Shares that a server receives from a group in which some nodes lie. Sizes of lies are in norms of a typical share."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import Decoded, FourierCode, RealCode, RealDecoder
from solon_fl.simulations.attacks import Attack, BelowTolerance, NearCodeword, OtherGradient, PartialCollusion
from tests.coding.real.problems import error_of, fourier_decoder, seeded, shares_of


@dataclass(frozen=True)
class Case:
    decoder: RealDecoder
    gradient: Tensor
    liars: tuple[int, ...]
    missing: tuple[int, ...]
    received: dict[int, Tensor]

    @property
    def code(self) -> RealCode:
        return self.decoder.code


DECODERS = [
    fourier_decoder(byzantine=s, compression=k, stragglers=e)
    for s, k, e in [
        (0, 1, 0),
        (0, 3, 2),
        (1, 1, 0),
        (1, 2, 1),
        (1, 3, 0),
        (2, 3, 2),
        (2, 6, 0),
        (3, 4, 0),
        (3, 5, 1),
        (5, 10, 0),
    ]
] + [RealDecoder(FourierCode(group_size=9, compression=3), byzantine=2)]  # a larger group than s liars need
CRAFTED: dict[str, Callable[[RealDecoder, float], Attack]] = {
    "near-codeword": NearCodeword,
    "other-gradient": lambda decoder, size: OtherGradient(decoder.code, size),
    "partial-collusion": PartialCollusion,
    "below-tolerance": BelowTolerance,  # `size` in units of the tolerance
}
KINDS = ["random", "same", *CRAFTED, "constant", "mixed", "nan", "inf", "zero", "as-another"]

decoders = st.sampled_from(DECODERS)
kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**32)
dtypes = st.sampled_from([torch.float32, torch.float64])
sizes = st.floats(-3, 30).map(lambda decade: float(10**decade))


def receive(
    decoder: RealDecoder,
    kind: str,
    size: float,
    seed: int,
    num_liars: int,
    num_missing: int = 0,
    dim: int = 40,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Draw a gradient, the liars and the missing shares; the lies are of this kind and size."""
    rng, code = seeded(seed), decoder.code
    gradient = torch.randn(dim, generator=rng, dtype=torch.float64).to(dtype)
    order = torch.randperm(code.group_size, generator=rng).tolist()
    liars = tuple(sorted(order[:num_liars]))
    missing = tuple(sorted(order[num_liars : num_liars + num_missing]))
    case = Case(decoder, gradient, liars, missing, shares_of(code, gradient))
    if liars:
        lies = lies_of(kind, case, size, seed).to(dtype)
        case.received.update(zip(liars, lies, strict=True))
    for slot in missing:
        del case.received[slot]
    return case


def lies_of(kind: str, case: Case, size: float, seed: int) -> Tensor:
    """Return the liars' shares, which deviate by `size` typical norms."""
    shares = torch.stack(list(shares_of(case.code, case.gradient).values())).double()
    liars, rng = list(case.liars), seeded(seed)
    honest, typical = shares[liars], typical_norm(dict(enumerate(shares)))
    noise = torch.randn(len(liars), shares.shape[1], generator=rng, dtype=torch.float64)
    noise /= noise.norm(dim=1, keepdim=True)
    if kind == "same":
        noise = noise[:1].expand_as(noise)
    if kind == "mixed":
        noise *= 10 ** (33 * torch.rand(len(liars), 1, generator=rng, dtype=torch.float64) - 3) / size
    if kind in CRAFTED:
        return CRAFTED[kind](case.decoder, size).lies(shares, liars, rng)
    constants = {"nan": math.nan, "inf": -math.inf, "constant": -100.0 * size, "zero": 0.0}
    if kind in constants:
        return torch.full_like(honest, constants[kind])
    if kind == "as-another":
        return shares[[(slot + 1) % case.code.group_size for slot in liars]]
    return honest + size * typical * noise


def large_lies(case: Case) -> set[int]:
    """Return the slots whose lies are at least 1e-3 typical norms."""
    honest = shares_of(case.code, case.gradient)
    smallest = 1e-3 * typical_norm(honest)
    return {
        slot
        for slot in case.liars
        if not float((case.received[slot].double() - honest[slot].double()).norm()) < smallest
    }


def typical_norm(shares: dict[int, Tensor]) -> float:
    return float(np.median([float(share.double().norm()) for share in shares.values()]))


def assert_within_bound(decoded: Decoded, gradient: Tensor) -> None:
    assert decoded.ok, decoded
    assert error_of(decoded, gradient) <= decoded.error_bound
    assert decoded.residual <= decoded.tolerance
