"""beyond_bound="accept": the only gradient that k + 1 or more shares agree with."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import Decoded, DecodeStatus, ExactDecoder
from solon_fl.coding import subsets
from solon_fl.coding.exact import beyond as module
from solon_fl.coding.exact.beyond import only_supporting_rows
from tests.coding.exact.problems import (
    any_gradient,
    assert_same_bits,
    exact_decoder,
    of_bits,
    seeded,
    shares_of,
)
from tests.coding.exact.received import flip, seeds


def noise(seed: int, length: int) -> Tensor:
    return any_gradient(seed, length, nan=False)


def accepting(**budget: Any) -> ExactDecoder:
    return exact_decoder(**budget, beyond_bound="accept")


def assert_accepted(decoded: Decoded, gradient: Tensor, left_out: tuple[int, ...]) -> None:
    assert_same_bits(decoded.gradient, gradient)
    assert decoded.status is DecodeStatus.BEYOND_BOUND
    assert (decoded.different_slots, decoded.suspect_slots) == ((), left_out)
    assert (decoded.error_bound, decoded.residual) == (0.0, 0.0)


@settings(max_examples=15)
@given(k=st.integers(1, 4), s=st.integers(1, 4), data=st.data())
def test_k_plus_1_honest_shares_are_enough(k: int, s: int, data: st.DataObject) -> None:
    decoder = accepting(byzantine=s, compression=k, extra=data.draw(st.integers(0, 2)))
    size, seed = decoder.code.group_size, data.draw(seeds)
    gradient = any_gradient(seed, 3 * k)
    num_liars = data.draw(st.integers((size - k) // 2 + 1, max(size - k - 1, (size - k) // 2 + 1)))
    order = torch.randperm(size, generator=seeded(seed)).tolist()
    liars = tuple(sorted(order[:num_liars]))
    shares = shares_of(decoder.code, gradient) | {slot: noise(seed + slot + 1, 3) for slot in liars}
    decoded = decoder.decode(shares)
    if num_liars < size - k:
        assert_accepted(decoded, gradient, liars)
        assert decoded.num_agreeing == size - num_liars
    else:
        assert decoded.status is DecodeStatus.UNDECODABLE
    assert not decoder.decode(shares, last=False).ok
    assert not exact_decoder(byzantine=s, compression=k, extra=size - 2 * s - k).decode(shares).ok


@settings(max_examples=15)
@given(k=st.integers(1, 3), seed=seeds, last_column_only=st.booleans())
def test_two_gradients_that_k_plus_1_shares_agree_with_are_none(k: int, seed: int, last_column_only: bool) -> None:
    """Also if they differ in the last column only."""
    decoder = accepting(byzantine=k + 2, compression=k)
    gradient = any_gradient(seed, 3 * k)
    other = torch.randn(3 * k, generator=seeded(seed))
    if last_column_only:
        other.view(k, 3)[:, :2] = gradient.view(k, 3)[:, :2]
    order = torch.randperm(decoder.code.group_size, generator=seeded(seed)).tolist()
    lying, others = order[k + 2 : 2 * k + 3], order[2 * k + 3 :]
    shares = shares_of(decoder.code, gradient) | {slot: noise(seed + slot + 1, 3) for slot in lying + others}
    expected = tuple(sorted(lying + others))
    assert_accepted(decoder.decode(shares), gradient, expected)
    second = shares | {slot: decoder.code.encode(other, slot) for slot in lying}
    assert decoder.decode(second).status is DecodeStatus.UNDECODABLE
    second[lying[0]] = shares[lying[0]]
    assert_accepted(decoder.decode(second), gradient, expected)


@pytest.mark.parametrize("more_lies", [2, 3, 4, 5])
def test_another_name_of_a_number_supports_no_gradient(more_lies: int) -> None:
    """Modulo p such shares agree with the honest ones; they must neither be kept nor spoil the result."""
    decoder = accepting(byzantine=3, compression=2, extra=1)
    gradient = of_bits([-(2**31), 5, 6, -(2**31), 7, 8])
    shares = shares_of(decoder.code, gradient)
    shares[0] = of_bits([2**31 - 5, 5, 6])
    shares |= {slot: noise(slot, 3) for slot in range(1, 1 + more_lies)}
    decoded = decoder.decode(shares)
    assert_same_bits(decoded.gradient, gradient)
    assert {*decoded.different_slots, *decoded.suspect_slots} == set(range(1 + more_lies))
    all_such = shares | {slot: of_bits([2**31 - 5] * 3) for slot in range(6)}
    assert_accepted(decoder.decode(all_such), gradient, tuple(range(6)))


@pytest.mark.parametrize("honest", [0, 1, 2])
def test_no_gradient_is_made_of_shares_that_no_honest_node_sends(honest: int) -> None:
    decoder = accepting(byzantine=1, compression=2)
    shares = {slot: of_bits([0 if slot < honest else 2**31 - 1] * 3) for slot in range(4)}
    assert decoder.decode(shares).status is DecodeStatus.UNDECODABLE


def test_k_plus_s_plus_1_shares_must_be_there() -> None:
    """Else s liars and one honest share could make a gradient up."""
    decoder = accepting(byzantine=3, compression=2, stragglers=2)
    gradient = any_gradient(1, 6)
    shares = shares_of(decoder.code, gradient) | {slot: noise(slot, 3) for slot in (0, 4, 7)}
    enough = {slot: shares[slot] for slot in (0, 1, 2, 3, 4, 7)}
    assert_accepted(decoder.decode(enough), gradient, (0, 4, 7))
    del enough[7]
    assert not decoder.decode(enough, needed=5).ok


def test_lies_in_the_last_column_alone_are_seen() -> None:
    """All columns are combined, however many blocks they make up."""
    decoder = accepting(byzantine=2, compression=2)
    length = 2 * module.BLOCK + 3
    gradient = any_gradient(2, 2 * length)
    shares = shares_of(decoder.code, gradient)
    for slot, bit in [(0, 0), (2, 1), (5, 2)]:
        shares[slot] = flip(shares[slot].view(torch.int32), length - 1, bit).view(torch.float32)
    assert_accepted(decoder.decode(shares), gradient, (0, 2, 5))


def test_too_many_sets_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = accepting(byzantine=2, compression=2)
    gradient = any_gradient(3, 6)
    shares = shares_of(decoder.code, gradient) | {slot: noise(slot, 3) for slot in range(3)}
    monkeypatch.setattr(subsets, "SETS_AT_ONCE", 7)
    monkeypatch.setattr(module, "MAX_SETS", 20)
    assert_accepted(decoder.decode(shares), gradient, (0, 1, 2))
    monkeypatch.setattr(module, "MAX_SETS", 19)
    assert decoder.decode(shares).status is DecodeStatus.UNDECODABLE


def test_few_sets_of_many_shares_are_not_tried_either() -> None:
    """C(303, 301) = 45,753 sets took a minute."""
    decoder = accepting(byzantine=1, compression=300, extra=1)
    shares = shares_of(decoder.code, any_gradient(0, 300)) | {slot: noise(slot, 1) for slot in range(2)}
    assert decoder.decode(shares).status is DecodeStatus.UNDECODABLE


@given(seed=seeds, k=st.integers(1, 4), num_right=st.integers(0, 8))
def test_supporting_rows_are_those_that_agree(seed: int, k: int, num_right: int) -> None:
    code = exact_decoder(byzantine=4, compression=k).code
    gradient = any_gradient(seed, 4 * k)
    slots = sorted(torch.randperm(code.group_size, generator=seeded(seed))[: k + 6].tolist())
    right = set(slots[::-1][:num_right])
    rows = [code.encode(gradient, slot) if slot in right else noise(seed + slot + 1, 4) for slot in slots]
    found = only_supporting_rows(
        code, slots, [row.view(torch.int32) for row in rows], np.random.default_rng(seed % 1000)
    )
    assert found == (right if len(right) > k else None)
