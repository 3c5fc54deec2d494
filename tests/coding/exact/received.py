"""Shares that a server receives from a group in which some nodes lie about bits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import Decoded, ExactCode, ExactDecoder
from solon_fl.coding.exact.field import LARGEST, P
from tests.coding.exact.problems import any_gradient, assert_same_bits, numbers_of, of_bits, seeded, shares_of
from tests.oracles import value_in_field


@dataclass(frozen=True)
class Case:
    decoder: ExactDecoder
    gradient: Tensor
    liars: tuple[int, ...]
    missing: tuple[int, ...]
    honest: dict[int, Tensor]
    received: dict[int, Tensor]

    @property
    def code(self) -> ExactCode:
        return self.decoder.code


Lie = Callable[[Tensor, int, torch.Generator], Tensor]  # of bits, (m,), the liar's number, and random numbers


def one_bit(bits: Tensor, number: int, rng: torch.Generator) -> Tensor:
    place, bit = (int(torch.randint(size, (), generator=rng)) for size in (len(bits), 32))
    return flip(bits, place, bit)


def late_bit(bits: Tensor, number: int, rng: torch.Generator) -> Tensor:
    return flip(bits, len(bits) - 1, 0)


def bit_elsewhere(bits: Tensor, number: int, rng: torch.Generator) -> Tensor:
    """Return lies in distinct columns, if there are enough columns."""
    return flip(bits, -1 - number % len(bits), 7)


def noise(bits: Tensor, number: int, rng: torch.Generator) -> Tensor:
    return torch.randint(-(2**31), 2**31, bits.shape, generator=rng).to(torch.int32)


def not_canonical(bits: Tensor, number: int, rng: torch.Generator) -> Tensor:
    """Return other bits for the same field elements where they exist, and invalid bits elsewhere."""
    same = torch.where(bits < LARGEST - 2**32 + 6, bits.long() + P, bits.long())
    if not bool((same > LARGEST).any()):
        same[int(torch.randint(len(bits), (), generator=rng))] = LARGEST + 1 + number % 5
    return same.to(torch.int32)


def zeros(bits: Tensor, number: int, rng: torch.Generator) -> Tensor:
    return torch.zeros_like(bits)


ALONE: dict[str, Lie] = {
    "one-bit": one_bit,
    "late-bit": late_bit,
    "bit-elsewhere": bit_elsewhere,
    "noise": noise,
    "not-canonical": not_canonical,
    "zeros": zeros,
}
KINDS = [*ALONE, "mixed", "same", "other-gradient", "near-gradient", "as-another"]

kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**32)


def flip(bits: Tensor, place: int, bit: int) -> Tensor:
    flipped = bits.tolist()
    flipped[place] ^= 2**bit if bit < 31 else -(2**31)
    return torch.tensor(flipped, dtype=torch.int32)


def receive(
    decoder: ExactDecoder, kind: str, seed: int, *, num_liars: int, num_missing: int = 0, share_dim: int = 6
) -> Case:
    """Draw a gradient, the liars and the missing shares; the lies are of this kind."""
    rng, code = seeded(seed), decoder.code
    gradient = any_gradient(seed, share_dim * code.compression)
    if kind == "not-canonical":
        gradient[::share_dim] = -0.0  # which makes the first entry of each share -0.0
    order = torch.randperm(code.group_size, generator=rng).tolist()
    liars = tuple(sorted(order[:num_liars]))
    missing = tuple(sorted(order[num_liars : num_liars + num_missing]))
    honest = shares_of(code, gradient)
    received = honest | lies_of(kind, honest, liars, gradient, code, rng)
    for slot in missing:
        del received[slot]
    return Case(decoder, gradient, liars, missing, honest, received)


def lies_of(
    kind: str,
    honest: dict[int, Tensor],
    liars: tuple[int, ...],
    gradient: Tensor,
    code: ExactCode,
    rng: torch.Generator,
) -> dict[int, Tensor]:
    if kind == "same":
        lie = noise(honest[0], 0, rng)
        return {slot: lie.view(torch.float32) for slot in liars}
    if kind == "as-another":
        return {slot: honest[(slot + 1) % code.group_size] for slot in liars}
    if kind in ("other-gradient", "near-gradient"):
        other = any_gradient(int(torch.randint(2**32, (), generator=rng)), len(gradient))
        if kind == "near-gradient":
            other = torch.cat([gradient[:-1], other[-1:]])
        return {slot: code.encode(other, slot) for slot in liars}
    lies = list(ALONE.values()) if kind == "mixed" else [ALONE[kind]]
    return {
        slot: lies[number % len(lies)](honest[slot].view(torch.int32), number, rng).view(torch.float32)
        for number, slot in enumerate(liars)
    }


def different(case: Case) -> tuple[int, ...]:
    """Return the liars whose shares do not happen to equal the honest ones."""
    return tuple(slot for slot in case.liars if not same_bits(case.received[slot], case.honest[slot]))


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def assert_right(decoded: Decoded, case: Case) -> None:
    """Assert that the gradient is the honest one and that exactly the liars are named."""
    assert_same_bits(decoded.gradient, case.gradient)
    assert decoded.different_slots == different(case)
    assert decoded.suspect_slots == ()
    assert decoded.erased_slots == case.missing
    assert decoded.status == ("corrected" if decoded.different_slots else "clean")
    assert decoded.num_agreeing == len(case.received) - len(decoded.different_slots)
    assert (decoded.residual, decoded.tolerance, decoded.error_bound) == (0.0, 0.0, 0.0)


def assert_supported(decoded: Decoded, case: Case) -> None:
    """Assert that the result agrees, bit for bit, with all shares except the named ones."""
    assert decoded.gradient is not None
    named = {*decoded.different_slots, *decoded.suspect_slots}
    kept = sorted(case.received.keys() - named)
    assert decoded.num_agreeing == len(kept)
    chunks = decoded.gradient.view(case.code.compression, -1)
    points = list(range(1, case.code.compression + 1))
    columns = [numbers_of(column) for column in chunks.T.contiguous()]
    for slot in sorted(case.received):
        numbers = [value_in_field(points, column, slot + 1) for column in columns]
        share = of_bits([(number + 2**31) % P - 2**31 for number in numbers])
        assert same_bits(share, case.received[slot]) == (slot in kept)
