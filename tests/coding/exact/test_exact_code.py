"""Properties of `ExactCode.encode`: any k shares determine the gradient's bits, whatever they are."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from solon_fl import ConfigurationError, ExactCode
from solon_fl.coding.exact.code import CPU_NUMBERS, block_size
from solon_fl.coding.exact.field import P
from tests.coding.exact.problems import (
    SPECIAL,
    any_gradient,
    assert_same_bits,
    blocks_of,
    exact_decoder,
    numbers_of,
    of_bits,
    one_nan,
    seeded,
    shares_of,
)
from tests.oracles import value_in_field

seeds = st.integers(0, 2**32)


def chunks_of(code: ExactCode, gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient, padded with zeros, as a matrix."""
    length = math.ceil(len(gradient) / code.compression)
    chunks = torch.zeros(code.compression * length)
    chunks[: len(gradient)] = gradient
    return chunks.view(code.compression, length)


@given(dim=st.integers(1, 40), compression=st.integers(1, 9), block=st.integers(1, 12), seed=seeds)
@example(dim=2, compression=9, block=12, seed=0)  # fewer entries than chunks
@example(dim=17, compression=4, block=5, seed=0)  # the last chunk holds 2 of 5 entries
@example(dim=25, compression=9, block=2, seed=0)  # the last two chunks are empty
def test_shares_are_what_the_polynomials_through_the_chunks_are(
    dim: int, compression: int, block: int, seed: int
) -> None:
    code = ExactCode(group_size=compression + 2, compression=compression)
    gradient = any_gradient(seed, dim)
    chunks = chunks_of(code, gradient)
    points = list(range(1, compression + 1))
    with blocks_of(block):
        shares = shares_of(code, gradient)
    for slot in range(compression):
        assert_same_bits(shares[slot], chunks[slot])
    columns = [numbers_of(column) for column in chunks.T.contiguous()]
    for slot in range(compression, code.group_size):
        assert numbers_of(shares[slot]) == [value_in_field(points, column, slot + 1) for column in columns]
        assert shares[slot].view(torch.int32).max() < P - 2**31


@given(dim=st.integers(1, 60), compression=st.integers(1, 9), block=st.integers(1, 12), data=st.data())
def test_any_k_shares_hold_the_gradient(dim: int, compression: int, block: int, data: st.DataObject) -> None:
    decoder = exact_decoder(byzantine=0, compression=compression, stragglers=5)
    gradient = any_gradient(data.draw(seeds), dim)
    slots = data.draw(st.permutations(range(compression + 5)))[:compression]
    with blocks_of(block):
        shares = {slot: decoder.code.encode(gradient, slot) for slot in slots}
        decoded = decoder.decode(shares, dim=dim)
    assert_same_bits(decoded.gradient, gradient)


@pytest.mark.parametrize("offset", [-1, 0, 1, 700])
@pytest.mark.parametrize("blocks", [1, 2])
def test_blocks_of_columns_meet(blocks: int, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the smallest size join correctly."""
    assert block_size(10, torch.device("cpu")) == CPU_NUMBERS // 10
    monkeypatch.setattr("solon_fl.coding.exact.code.CPU_NUMBERS", 1)
    decoder = exact_decoder(byzantine=1, compression=3)
    assert block_size(3, torch.device("cpu")) == 1024
    dim = 3 * (1024 * blocks + offset) - 1
    gradient = any_gradient(3, dim)
    shares = shares_of(decoder.code, gradient)
    for slot in range(3):
        kept = {other: share for other, share in shares.items() if other != slot}
        assert_same_bits(decoder.decode(kept, dim=dim).gradient, gradient)


@given(seed=seeds, dim=st.integers(1, 30), a=st.integers(0, P - 1))
def test_encoding_is_linear_over_the_field(seed: int, dim: int, a: int) -> None:
    code = ExactCode(group_size=5, compression=3)
    x, y = any_gradient(seed, dim, nan=False), any_gradient(seed + 1, dim, nan=False)
    mixed = [(a * one + other) % P for one, other in zip(numbers_of(x), numbers_of(y), strict=True)]
    bits = [(number + 2**31) % P - 2**31 for number in mixed]
    gradient = of_bits(bits)
    if bool(gradient.isnan().any()):  # encoding would change its bits
        gradient = of_bits([0 if is_nan else number for number, is_nan in zip(bits, gradient.isnan(), strict=True)])
        x, y = (values.masked_fill(of_bits(bits).isnan(), 0.0) for values in (x, y))
    for slot in range(code.group_size):
        one, other = numbers_of(code.encode(x, slot)), numbers_of(code.encode(y, slot))
        assert numbers_of(code.encode(gradient, slot)) == [(a * i + j) % P for i, j in zip(one, other, strict=True)]


# Contents of a gradient


def test_every_kind_of_number_comes_back_bit_by_bit() -> None:
    decoder = exact_decoder(byzantine=2, compression=3)
    gradient = of_bits(SPECIAL)
    for kept in [(0, 1, 2), (1, 3, 5), (4, 5, 6)]:
        shares = {slot: decoder.code.encode(gradient, slot) for slot in kept}
        assert_same_bits(decoder.decode(shares, dim=len(SPECIAL)).gradient, one_nan(gradient))
    assert one_nan(gradient).isnan().sum() == 5


def test_another_nan_is_the_same_gradient() -> None:
    """Honest nodes may compute different NaN patterns."""
    code = ExactCode(group_size=5, compression=2)
    bits = [0x3F800000, 0x7FC00000, -1, 0x7FFFFFFD]
    one, other = of_bits(bits), of_bits([bits[0], *bits[:0:-1]])
    for slot in range(5):
        assert_same_bits(code.encode(one, slot), code.encode(other, slot))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_come_back_bit_by_bit(dtype: torch.dtype) -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    decoder = exact_decoder(byzantine=1, compression=5)
    shares = {slot: decoder.code.encode(patterns, slot) for slot in (0, 2, 4, 5, 6)}
    assert {share.dtype for share in shares.values()} == {torch.float32}
    decoded = decoder.decode(shares, dim=2**16).gradient
    assert decoded is not None
    number = ~patterns.isnan()
    assert torch.equal(decoded.isnan(), ~number)
    assert torch.equal(decoded.to(dtype).view(torch.int16)[number], patterns.view(torch.int16)[number])


@pytest.mark.parametrize("slot", [0, 4])
def test_float64_is_refused(slot: int) -> None:
    code = ExactCode(group_size=5, compression=3)
    with pytest.raises(ConfigurationError, match=r"make the whole model float32, or use code='four"):
        code.encode(torch.ones(4, dtype=torch.float64), slot)


@pytest.mark.parametrize(
    ("gradient", "slot", "shown"),
    [
        (torch.ones(2, 3), 0, r"shape=\(2, 3\)"),
        (torch.ones(3, dtype=torch.int32), 0, "dtype=torch.int32"),
        (torch.ones(0), 0, "dim=0"),
        (torch.ones(3), 5, "slot=5"),
        (torch.ones(3), -1, "slot=-1"),
    ],
)
def test_gradients_are_flat_floats_and_slots_are_there(gradient: torch.Tensor, slot: int, shown: str) -> None:
    with pytest.raises(ConfigurationError, match=shown):
        ExactCode(group_size=5, compression=3).encode(gradient, slot)


# Implementation


def test_shares_of_the_chunks_are_views() -> None:
    code = ExactCode(group_size=5, compression=3)
    gradient = torch.randn(12, generator=seeded(1))
    for slot in range(3):
        assert code.encode(gradient, slot).data_ptr() == gradient[4 * slot :].data_ptr()


@pytest.mark.parametrize("slot", range(5))
def test_strided_gradients_are_left_as_they_are(slot: int) -> None:
    code = ExactCode(group_size=5, compression=3)
    whole = any_gradient(2, 41).view(41).requires_grad_()
    before = whole.detach().clone()
    share = code.encode(whole[::2], slot)
    assert not share.requires_grad
    assert share.is_contiguous()
    assert_same_bits(share, code.encode(before[::2].clone(), slot))
    assert_same_bits(whole.detach(), before)


@pytest.mark.slow
def test_groups_may_be_as_large_as_one_likes() -> None:
    decoder = exact_decoder(byzantine=470, compression=50, stragglers=10)
    gradient = any_gradient(4, 2 * 50 - 3)
    order = np.random.default_rng(5).permutation(1000).tolist()
    shares = {slot: decoder.code.encode(gradient, slot) for slot in order[:250]}
    liars = order[:100]
    shares |= {slot: any_gradient(slot, 2, nan=False) for slot in liars}
    decoded = decoder.decode(shares, dim=len(gradient))
    assert_same_bits(decoded.gradient, gradient)
    assert decoded.different_slots == tuple(sorted(liars))


def test_repr_shows_every_parameter() -> None:
    assert repr(ExactCode(group_size=9, compression=2)) == "ExactCode(group_size=9, compression=2)"
