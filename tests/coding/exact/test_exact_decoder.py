"""Properties of `ExactDecoder.decode`: the lies that it finds, its results, and its failures."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import ConfigurationError, DecodeStatus, ExactCode, ExactDecoder
from solon_fl.coding.exact import decoder as module
from solon_fl.coding.exact.field import LARGEST, P
from solon_fl.coding.exact.locating import lying_places
from tests.coding.exact.problems import (
    any_gradient,
    assert_same_bits,
    blocks_of,
    exact_decoder,
    numbers_of,
    of_bits,
    seeded,
    shares_of,
)
from tests.coding.exact.received import (
    KINDS,
    Case,
    assert_right,
    assert_supported,
    different,
    flip,
    kinds,
    receive,
    seeds,
)

budgets = st.fixed_dictionaries(
    {
        "byzantine": st.integers(0, 4),
        "compression": st.integers(1, 6),
        "stragglers": st.integers(0, 3),
        "extra": st.integers(0, 3),
    }
)


@contextmanager
def without_chance(wanted: bool) -> Iterator[None]:
    """If wanted, make all lies cancel in every combination of columns that the decoder draws."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if wanted:
            monkeypatch.setattr(module, "_combination", lambda words, random: np.zeros(len(words), dtype=np.uint64))
        yield


@contextmanager
def by_halves(wanted: bool) -> Iterator[None]:
    """If wanted, let no check have integer weights."""
    if wanted:
        with patch("solon_fl.coding.exact.checks._whole_weights", return_value=None):
            yield
    else:
        yield


# Parameters


def test_group_must_be_large_enough() -> None:
    with pytest.raises(ConfigurationError, match=r"group_size=5, byzantine=2.*raise group_size to 6"):
        ExactDecoder(ExactCode(group_size=5, compression=1), byzantine=2, stragglers=1)


def test_nothing_is_uncertain() -> None:
    decoder = exact_decoder(byzantine=40, compression=300)
    assert decoder.certificate == 0.0
    assert decoder.expected_error(350) == 0.0


def test_a_decoder_can_be_sent_to_another_process() -> None:
    decoder = exact_decoder(byzantine=2, compression=3, stragglers=1)
    assert repr(decoder) == "ExactDecoder(ExactCode(group_size=8, compression=3), byzantine=2, stragglers=1)"
    case = receive(decoder, "one-bit", 1, num_liars=2)
    decoder.decode(case.received)
    copy = pickle.loads(pickle.dumps(decoder))
    assert repr(copy) == repr(decoder)
    assert_right(copy.decode(case.received), case)


# Within the budget


@pytest.mark.slow
@settings(max_examples=60)
@given(
    budget=budgets,
    kind=kinds,
    seed=seeds,
    share_dim=st.integers(1, 12),
    block=st.integers(1, 12),
    halves=st.booleans(),
    cancelling=st.booleans(),
    data=st.data(),
)
def test_lies_and_missing_shares_within_the_budget_change_nothing(
    budget: dict[str, int],
    kind: str,
    seed: int,
    share_dim: int,
    block: int,
    halves: bool,
    cancelling: bool,
    data: st.DataObject,
) -> None:
    """This holds for any lies in any block, even if the liars predicted the random combinations."""
    decoder = exact_decoder(**budget)
    spare = decoder.code.group_size - decoder.code.compression
    num_liars = data.draw(st.integers(0, spare // 2))
    num_missing = data.draw(st.integers(0, spare - 2 * num_liars))
    case = receive(decoder, kind, seed, num_liars=num_liars, num_missing=num_missing, share_dim=share_dim)
    with blocks_of(min(block, share_dim)), by_halves(halves), without_chance(cancelling):
        assert_right(decoder.decode(case.received), case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("byzantine", "compression"), [(10, 30), (20, 10), (12, 1), (1, 40)])
def test_large_groups(byzantine: int, compression: int, kind: str) -> None:
    decoder = exact_decoder(byzantine=byzantine, compression=compression, stragglers=2)
    case = receive(decoder, kind, 3, num_liars=byzantine, num_missing=2, share_dim=30)
    assert different(case) or kind == "as-another"
    with blocks_of(7):
        assert_right(decoder.decode(case.received), case)


@given(kind=kinds, seed=seeds, halves=st.booleans())
@settings(max_examples=30)
def test_blocks_of_the_usual_size(kind: str, seed: int, halves: bool) -> None:
    decoder = exact_decoder(byzantine=3, compression=2)
    with patch("solon_fl.coding.exact.code.CPU_NUMBERS", 1), by_halves(halves):
        case = receive(decoder, kind, seed, num_liars=3, share_dim=2 * 1024 + 5)
        assert_right(decoder.decode(case.received), case)


@pytest.mark.parametrize("place", [0, 1023, 1024, 2047, 2048, 2052])
@pytest.mark.parametrize("bit", [0, 22, 23, 30, 31])
@pytest.mark.parametrize("slot", [0, 6])
def test_one_bit_is_seen_wherever_it_is(slot: int, bit: int, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solon_fl.coding.exact.code.CPU_NUMBERS", 1)  # blocks of 1024
    decoder = exact_decoder(byzantine=2, compression=3)
    gradient = any_gradient(5, 3 * 2053)
    shares = shares_of(decoder.code, gradient)
    shares[slot] = flip(shares[slot].view(torch.int32), place, bit).view(torch.float32)
    decoded = decoder.decode(shares)
    assert_same_bits(decoded.gradient, gradient)
    assert decoded.different_slots == (slot,)


@pytest.mark.parametrize("liars", [(0,), (1, 6), (0, 5, 6)])
@pytest.mark.parametrize("offset", range(5))
def test_bits_that_are_another_name_of_the_same_number_are_lies(offset: int, liars: tuple[int, ...]) -> None:
    """-0.0, the element -2^31, has other bits too: a NaN that no honest node sends and that is the same element."""
    decoder = exact_decoder(byzantine=3, compression=2)
    number = -(2**31) + offset
    gradient = of_bits([number] * 6)
    shares = shares_of(decoder.code, gradient)
    for slot in liars:
        assert shares[slot].view(torch.int32).tolist() == [number] * 3
        shares[slot] = of_bits([number, number + P, number])
        assert numbers_of(shares[slot]) == [number % P] * 3
        assert number + P == LARGEST + 1 + offset
    decoded = decoder.decode(shares)
    assert_same_bits(decoded.gradient, gradient)
    assert decoded.different_slots == liars


def test_such_bits_beside_other_lies_beyond_the_budget_are_not_returned() -> None:
    decoder = exact_decoder(byzantine=1, compression=2)
    gradient = of_bits([-(2**31)] * 4)
    shares = shares_of(decoder.code, gradient) | {0: of_bits([LARGEST + 1] * 2), 1: of_bits([LARGEST + 1] * 2)}
    assert decoder.decode(shares).status is DecodeStatus.UNDECODABLE


@given(seed=seeds, cut=st.integers(0, 2))
def test_the_gradient_has_the_length_that_is_asked_for(seed: int, cut: int) -> None:
    decoder = exact_decoder(byzantine=1, compression=3)
    gradient = any_gradient(seed, 12 - cut)
    shares = shares_of(decoder.code, gradient) | {4: of_bits([seed % 2**31] * 4)}
    assert_same_bits(decoder.decode(shares, dim=12 - cut).gradient, gradient)
    padded = torch.cat([gradient, torch.zeros(cut)])
    assert_same_bits(decoder.decode(shares).gradient, padded)


@settings(max_examples=30)
@given(seed=seeds, kind=kinds, order=st.permutations(range(9)))
def test_the_order_in_which_shares_are_given_does_not_matter(seed: int, kind: str, order: list[int]) -> None:
    case = receive(exact_decoder(byzantine=3, compression=3), kind, seed, num_liars=3)
    assert_right(case.decoder.decode({slot: case.received[slot] for slot in order}), case)
    assert_right(case.decoder.decode(torch.stack([case.received[slot] for slot in range(9)])), case)


@pytest.mark.parametrize("kind", KINDS)
def test_shares_are_left_as_they_are(kind: str) -> None:
    case = receive(exact_decoder(byzantine=3, compression=3), kind, 4, num_liars=3)
    before = {slot: share.clone() for slot, share in case.received.items()}
    case.decoder.decode(case.received)
    for slot, share in case.received.items():
        assert_same_bits(share, before[slot])


def test_shares_may_be_strided_and_need_a_gradient() -> None:
    case = receive(exact_decoder(byzantine=2, compression=3), "noise", 4, num_liars=2)
    columns = torch.stack([case.received[slot] for slot in range(7)], dim=1)
    assert_right(case.decoder.decode(columns.T), case)
    assert_right(case.decoder.decode(columns.T.requires_grad_()), case)


@pytest.mark.parametrize("kind", ["noise", "bit-elsewhere"])
def test_the_number_of_threads_changes_nothing(kind: str) -> None:
    case = receive(exact_decoder(byzantine=3, compression=5, extra=2), kind, 10, num_liars=3, share_dim=3000)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert_right(case.decoder.decode(case.received), case)
            for slot in set(range(case.code.group_size)) - set(case.liars):
                assert_same_bits(case.code.encode(case.gradient, slot), case.received[slot])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("halves", [False, True])
def test_the_default_device_is_not_used(halves: bool) -> None:
    case = receive(exact_decoder(byzantine=3, compression=5), "mixed", 2, num_liars=3)
    with torch.device("meta"), by_halves(halves):
        for slot in range(case.code.group_size):
            assert_same_bits(case.code.encode(case.gradient, slot), case.honest[slot])
        decoded = case.decoder.decode(case.received)
    assert_right(decoded, case)


# Invalid shares


@pytest.mark.parametrize("given_dim", [True, False])
@pytest.mark.parametrize(
    "odd_share",
    [
        torch.ones(3),
        torch.ones(2, dtype=torch.float64),
        torch.ones(2, dtype=torch.int32),
        torch.ones(2, dtype=torch.float16),
        torch.ones(2, 1),
        torch.ones(0),
        torch.tensor(1.0),
    ],
)
def test_shares_unlike_the_others_are_erasures(odd_share: Tensor, given_dim: bool) -> None:
    decoder = exact_decoder(byzantine=2, compression=3)
    gradient = any_gradient(4, 6)
    shares = shares_of(decoder.code, gradient) | {0: odd_share, 4: odd_share}
    decoded = decoder.decode(shares, dim=6 if given_dim else None)
    assert decoded.erased_slots == (0, 4)
    assert decoded.different_slots == ()
    assert_same_bits(decoded.gradient, gradient)


def test_float64_shares_are_none() -> None:
    decoder = exact_decoder(byzantine=1, compression=2)
    decoded = decoder.decode(torch.ones(4, 3, dtype=torch.float64))
    assert decoded.status is DecodeStatus.TOO_FEW_SHARES
    assert decoded.erased_slots == (0, 1, 2, 3)


@pytest.mark.parametrize("present", [0, 1, 2])
def test_fewer_than_k_shares_are_too_few(present: int) -> None:
    case = receive(exact_decoder(byzantine=2, compression=3), "noise", 1, num_liars=0, num_missing=7 - present)
    decoded = case.decoder.decode(case.received)
    assert decoded.status is DecodeStatus.TOO_FEW_SHARES
    assert decoded.erased_slots == case.missing
    assert decoded.gradient is None


# While shares arrive


@settings(max_examples=40)
@given(budget=budgets, kind=kinds, seed=seeds, data=st.data())
def test_k_plus_s_shares_that_agree_are_enough_whatever_is_missing(
    budget: dict[str, int], kind: str, seed: int, data: st.DataObject
) -> None:
    """With fewer, s liars can't forge a result."""
    decoder = exact_decoder(**budget)
    s, needed = decoder.byzantine, decoder.code.compression + decoder.byzantine
    num_liars = data.draw(st.integers(0, s))
    case = receive(decoder, kind, seed, num_liars=num_liars)
    liars, honest = different(case), [slot for slot in case.received if slot not in different(case)]
    order = data.draw(st.permutations(honest))
    received = {slot: case.received[slot] for slot in (*order[:needed], *liars)}
    missing = tuple(sorted(order[needed:]))
    enough = replace(case, liars=liars, missing=missing, received=received)
    assert_right(decoder.decode(received, needed=needed), enough)
    del received[order[0]]
    assert not decoder.decode(received, needed=needed).ok


@pytest.mark.parametrize(
    ("arrived", "lies", "status"),
    [
        (4, 0, "too-few-shares"),
        (5, 0, "clean"),
        (5, 1, "too-few-shares"),  # a sixth share would decide
        (5, 2, "too-few-shares"),
        (6, 1, "corrected"),
        (6, 2, "undecodable"),
        (7, 2, "corrected"),
        (7, 3, "undecodable"),
    ],
)
def test_a_failure_says_whether_more_shares_would_have_helped(arrived: int, lies: int, status: str) -> None:
    decoder = exact_decoder(byzantine=2, compression=3)
    gradient = any_gradient(2, 12)
    lying = {slot: any_gradient(slot + 3, 4) for slot in range(1, 1 + lies)}
    shares = {slot: (shares_of(decoder.code, gradient) | lying)[slot] for slot in range(arrived)}
    decoded = decoder.decode(shares, needed=5)
    assert decoded.status == status
    assert decoded.erased_slots == tuple(range(arrived, 7))


@settings(max_examples=25)
@given(budget=budgets, kind=kinds, seed=seeds, block=st.integers(1, 6), data=st.data())
def test_what_is_remembered_changes_no_result(
    budget: dict[str, int], kind: str, seed: int, block: int, data: st.DataObject
) -> None:
    decoder = exact_decoder(**budget)
    case = receive(decoder, kind, seed, num_liars=data.draw(st.integers(0, decoder.byzantine)))
    order = data.draw(st.permutations(sorted(case.received)))
    needed, memory, arrived = decoder.code.compression + decoder.byzantine, decoder.new_memory(), {}
    with blocks_of(block):
        for slot in order:
            arrived[slot] = case.received[slot]
            remembered = decoder.decode(arrived, needed=needed, memory=memory)
            fresh = decoder.decode(arrived, needed=needed)
            assert essence(remembered) == essence(fresh)
    assert remembered.ok


def essence(decoded: Any) -> tuple[Any, ...]:
    gradient = None if decoded.gradient is None else decoded.gradient.view(torch.int32).tolist()
    return gradient, decoded.status, decoded.different_slots, decoded.erased_slots, decoded.num_agreeing


def test_where_shares_disagreed_is_looked_at_first() -> None:
    """This holds although blocks become smaller with more shares."""
    decoder = exact_decoder(byzantine=3, compression=2)
    shares = shares_of(decoder.code, any_gradient(6, 200))
    shares[1] = flip(shares[1].view(torch.int32), 80, 3).view(torch.float32)
    memory, looked_at = decoder.new_memory(), []
    columns_of = module._Kept.columns_of

    def noting(kept: Any, parts: list[Tensor]) -> Tensor:
        looked_at.append(parts[0])
        return columns_of(kept, parts)

    with blocks_of(20):
        assert not decoder.decode({slot: shares[slot] for slot in range(3)}, memory=memory).ok
    with blocks_of(10), patch.object(module._Kept, "columns_of", noting):
        assert decoder.decode({slot: shares[slot] for slot in range(4)}, memory=memory).different_slots == (1,)
    assert looked_at[0].data_ptr() == shares[0][80:].data_ptr()
    assert len(looked_at) == 11  # ten blocks, one of them twice


def test_what_is_remembered_of_longer_shares_does_no_harm() -> None:
    """Liars may reply first and be the majority."""
    decoder = exact_decoder(byzantine=3, compression=2)
    gradient = any_gradient(7, 8)
    shares = shares_of(decoder.code, gradient)
    long = {slot: torch.zeros(30) for slot in range(2)} | {2: torch.ones(30)}
    long[2][:-1] = 0.0
    memory = decoder.new_memory()
    with blocks_of(2):
        assert not decoder.decode(long, memory=memory).ok
        decoded = decoder.decode(shares | long, memory=memory)
    assert_same_bits(decoded.gradient, gradient)
    assert decoded.erased_slots == (0, 1, 2)


# Lies of nodes that know the random numbers


@pytest.mark.parametrize("liars", [(2,), (0, 6)])
def test_lies_that_foresee_the_combination_are_found_in_a_single_column(liars: tuple[int, ...]) -> None:
    decoder = exact_decoder(byzantine=2, compression=3)
    gradient = any_gradient(8, 12)
    shares = shares_of(decoder.code, gradient)
    random = decoder.new_memory(seeded(7)).random
    first, second = random.permutation(2).tolist()  # the columns in which they lie are combined in this order
    factors = random.integers(P, size=2, dtype=np.uint64).tolist()
    for slot in liars:
        numbers = numbers_of(shares[slot])
        numbers[first] += (slot + 1) * factors[1]
        numbers[second] -= (slot + 1) * factors[0]
        shares[slot] = of_bits([(number + 2**31) % P - 2**31 for number in numbers])
    found = []

    def noting(*args: Any) -> list[int] | None:
        found.append(lying_places(*args))
        return found[-1]

    with patch.object(module, "lying_places", noting):
        decoded = decoder.decode(shares, generator=seeded(7))
    assert_same_bits(decoded.gradient, gradient)
    assert decoded.different_slots == liars
    assert found == [[], list(liars)]


def test_more_lying_columns_than_are_combined() -> None:
    """Liars that lie in few of these columns are found later."""
    decoder = exact_decoder(byzantine=3, compression=2)
    gradient = any_gradient(9, 2 * 3000)
    shares = shares_of(decoder.code, gradient)
    for slot, every in [(0, 1), (3, 1000), (6, 2999)]:
        bits = shares[slot].view(torch.int32).clone()
        bits[::every] ^= 1
        shares[slot] = bits.view(torch.float32)
    for seed in range(5):
        decoded = decoder.decode(shares, generator=seeded(seed))
        assert_same_bits(decoded.gradient, gradient)
        assert decoded.different_slots == (0, 3, 6)


@given(kind=kinds, seed=seeds)
@settings(max_examples=20)
def test_a_seed_makes_decodes_alike(kind: str, seed: int) -> None:
    """This holds beyond the bound, too, where the result depends on the combination."""
    case = receive(exact_decoder(byzantine=2, compression=3), kind, seed, num_liars=3)
    first, second = (case.decoder.decode(case.received, generator=seeded(seed)) for _ in range(2))
    assert essence(first) == essence(second)


# Beyond the budget


@pytest.mark.slow
@settings(max_examples=50)
@given(
    budget=budgets, kind=kinds, seed=seeds, block=st.integers(1, 6), data=st.data(),
)  # fmt: skip
def test_whatever_is_returned_is_what_all_shares_hold_but_those_that_are_named(
    budget: dict[str, int], kind: str, seed: int, block: int, data: st.DataObject
) -> None:
    """This holds for any number of lies. So the result is right as long as k honest shares are among those agreeing."""
    decoder = exact_decoder(**budget)
    size, k = decoder.code.group_size, decoder.code.compression
    num_liars = data.draw(st.integers((size - k) // 2, size))
    num_missing = data.draw(st.integers(0, min(2, size - num_liars)))
    case = receive(decoder, kind, seed, num_liars=num_liars, num_missing=num_missing, share_dim=4)
    with blocks_of(block):
        decoded = decoder.decode(case.received)
    if not decoded.ok:
        assert decoded.num_agreeing == 0
        return
    assert_supported(decoded, case)
    named = {*decoded.different_slots, *decoded.suspect_slots}
    honest = [slot for slot in case.received if slot not in case.liars]
    if len(set(honest) - named) >= k:
        assert_same_bits(decoded.gradient, case.gradient)
        assert not named & set(honest)


@given(k=st.integers(1, 5), s=st.integers(1, 4), kind=st.sampled_from(["noise", "one-bit"]), seed=seeds)
def test_one_lie_too_many_is_reported(k: int, s: int, kind: str, seed: int) -> None:
    decoder = exact_decoder(byzantine=s, compression=k)
    case = receive(decoder, kind, seed, num_liars=s + 1)
    if len(different(case)) > s and not (k == 1 and agree_by_chance(case)):
        assert decoder.decode(case.received).status is DecodeStatus.UNDECODABLE


def agree_by_chance(case: Case) -> bool:
    lies = {tuple(case.received[slot].view(torch.int32).tolist()) for slot in case.liars}
    return len(lies) < len(case.liars)


@given(
    seed=st.integers(0, 2**32),
    shape=st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (4, 1)]),
    colluding=st.booleans(),
)
def test_arrivals_are_never_waited_for_in_vain(seed: int, shape: tuple[int, int], colluding: bool) -> None:
    """Liars reply first. Once k + s honest shares have arrived, the decode is right, whatever was tried before."""
    byzantine, compression = shape
    code = ExactCode(group_size=2 * byzantine + compression, compression=compression)
    decoder, rng = ExactDecoder(code, byzantine=byzantine), torch.Generator().manual_seed(seed)
    gradient, other = (torch.randn(compression * 3, generator=rng) for _ in range(2))
    order = torch.randperm(code.group_size, generator=rng).tolist()
    shares = {slot: code.encode(gradient, slot).clone() for slot in order}
    for number, liar in enumerate(order[:byzantine]):
        if colluding:
            shares[liar] = code.encode(other, liar)
        else:
            shares[liar].view(torch.int32)[number % 3] ^= 1
    memory, needed = decoder.new_memory(), byzantine + compression
    for count in range(needed, code.group_size + 1):
        arrived = {slot: shares[slot] for slot in order[:count]}
        decoded = decoder.decode(arrived, last=False, needed=needed, memory=memory)
        if count - byzantine >= needed:
            assert decoded.gradient is not None
            assert decoded.gradient.equal(gradient)
            assert set(decoded.different_slots) == set(order[:byzantine])
        else:
            assert not decoded.ok
