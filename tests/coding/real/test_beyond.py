"""More faults than the guarantee covers: up to n - k - 1 lies are located, or the decode fails."""

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import ConfigurationError, Decoded, DecodeStatus, RealCode, RealDecoder, VandermondeCode
from solon_fl.coding._types import IntArray
from solon_fl.coding.real import beyond
from solon_fl.coding.real.beyond import _checks, supporting_rows
from solon_fl.coding.real.locating import parity_of
from solon_fl.simulations.attacks import Attack, NearCodeword, OtherGradient, SameLie
from tests.coding.real.problems import error_of, fourier_decoder, seeded, shares_of, smallest_decoder

SMALL = fourier_decoder(byzantine=2, compression=3, beyond_bound="accept")
SPARE = fourier_decoder(byzantine=2, compression=3, stragglers=1, beyond_bound="accept")
EVEN = fourier_decoder(byzantine=2, compression=4, stragglers=1, beyond_bound="accept")
REAL_NODES = smallest_decoder(VandermondeCode, byzantine=2, compression=3, beyond_bound="accept")
LARGE = fourier_decoder(byzantine=5, compression=10, beyond_bound="accept")
DECODERS = [SMALL, SPARE, EVEN, REAL_NODES]
DIM = 120


def draw(
    code: RealCode, seed: int, num_liars: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, list[int]]:
    """Return a gradient, its shares and who is to lie."""
    rng = seeded(seed)
    gradient = torch.randn(DIM, generator=rng, dtype=torch.float64).to(dtype)
    shares = torch.stack(list(shares_of(code, gradient).values()))
    return gradient, shares, sorted(torch.randperm(code.group_size, generator=rng)[:num_liars].tolist())


def random_lies(num_liars: int, length: int, rng: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(num_liars, length, generator=rng, dtype=torch.float64), dim=1)


def framing(code: RealCode, liars: list[int], rng: torch.Generator, length: int) -> Tensor:
    """Return lies whose syndromes are as near as can be to those of one lie of an honest node."""
    honest = [slot for slot in range(code.group_size) if slot not in liars]
    framed = honest[int(torch.randint(len(honest), (1,), generator=rng))]
    weights = np.linalg.lstsq(code.parity[:, liars], code.parity[:, framed], rcond=None)[0]
    return torch.from_numpy(weights)[:, None] * random_lies(1, length, rng)


def lies(
    decoder: RealDecoder, kind: str, size: float, shares: Tensor, liars: list[int], rng: torch.Generator
) -> Tensor:
    """Return what the liars send; `size` in norms of a typical share."""
    code = decoder.code
    honest, length, count = shares[liars].double(), shares.shape[1], len(liars)
    typical = float(shares.double().norm(dim=1).median())
    if kind == "zero":
        return torch.zeros_like(honest)
    if kind == "as-another":
        return shares[[(slot + 1) % len(shares) for slot in liars]].double()
    attacks: dict[str, Attack] = {
        "same": SameLie(size),
        "other-gradient": OtherGradient(code, size),
        "near-codeword": NearCodeword(decoder, size),
    }
    if kind in attacks:
        return attacks[kind].lies(shares.double(), liars, rng)
    added = random_lies(count, length, rng)
    if kind == "mixed-sizes":
        added *= 10 ** (30 * torch.rand(count, 1, generator=rng, dtype=torch.float64) - 5) / size
    elif kind == "low-rank":
        rank = int(torch.randint(1, max(2, count), (1,), generator=rng))
        added = torch.randn(count, rank, generator=rng, dtype=torch.float64) @ random_lies(rank, length, rng)
    elif kind == "framing":
        added = framing(code, liars, rng, length)
    elif kind == "framing-and-loud":
        added[count // 2 :] = 1e3 * framing(code, liars[count // 2 :], rng, length)
    elif kind == "two-gradients":  # of two camps
        for camp in (slice(0, count // 2), slice(count // 2, count)):
            if liars[camp]:
                added[camp] = OtherGradient(code, 1).lies(shares.double(), liars[camp], rng) - honest[camp]
                added[camp] /= typical
    return honest + size * typical * added


KINDS = ["random", "same", "other-gradient", "near-codeword", "mixed-sizes", "low-rank", "framing"]
KINDS += ["framing-and-loud", "two-gradients", "zero", "as-another"]


def attacked(
    decoder: RealDecoder,
    kind: str,
    size: float,
    seed: int,
    num_liars: int,
    num_missing: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, dict[int, Tensor], list[int]]:
    code = decoder.code
    gradient, shares, liars = draw(code, seed, num_liars, dtype)
    received = shares.clone()
    if liars:
        received[liars] = lies(decoder, kind, size, shares, liars, seeded(seed)).to(dtype)
    honest = [slot for slot in range(code.group_size) if slot not in liars]
    return (
        gradient,
        {slot: received[slot] for slot in range(code.group_size) if slot not in honest[:num_missing]},
        liars,
    )


def assert_right(decoded: Decoded, gradient: Tensor, liars: list[int]) -> None:
    assert decoded.status is DecodeStatus.BEYOND_BOUND
    assert decoded.ok
    assert decoded.residual <= decoded.tolerance
    assert error_of(decoded, gradient) <= decoded.error_bound < math.inf
    assert decoded.corrupt_slots == ()
    assert set(decoded.suspect_slots) <= set(liars)


seeds = st.integers(0, 2**32)


# Up to n - k - 1 lies


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
@given(seed=seeds, data=st.data())
def test_more_than_s_random_lies_are_located(decoder: RealDecoder, seed: int, data: st.DataObject) -> None:
    code = decoder.code
    most = code.group_size - code.compression - 1
    num_liars = data.draw(st.integers((most + 1) // 2 + 1, most), label="num_liars")
    size = 10 ** data.draw(st.floats(-1, 20), label="decade")
    gradient, received, liars = attacked(decoder, "random", size, seed, num_liars)
    decoded = decoder.decode(received)
    if decoded.status is not DecodeStatus.CORRECTED:  # where the screen dropped huge ones, the others were within it
        assert_right(decoded, gradient, liars)
    assert tuple(sorted(decoded.corrupt_slots + decoded.suspect_slots)) == tuple(liars)
    assert decoded.num_agreeing == code.group_size - num_liars
    assert error_of(decoded, gradient) <= 1e-5 * float(gradient.norm())


@pytest.mark.slow
@pytest.mark.parametrize("num_liars", [6, 7, 8, 9])
@pytest.mark.parametrize("seed", range(2))
def test_up_to_nine_random_lies_of_twenty_are_located(num_liars: int, seed: int) -> None:
    gradient, received, liars = attacked(LARGE, "random", 1.0, seed, num_liars)
    decoded = LARGE.decode(received)
    assert_right(decoded, gradient, liars)
    assert decoded.suspect_slots == tuple(liars)


@given(
    decoder=st.sampled_from(DECODERS),
    kind=st.sampled_from(KINDS),
    decade=st.floats(-8, 12),
    seed=seeds,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
@settings(max_examples=500)
def test_a_result_beyond_the_bound_is_never_wrong_while_k_plus_1_shares_are_honest(
    decoder: RealDecoder, kind: str, decade: float, seed: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    num_missing = data.draw(st.integers(0, 2), label="num_missing")
    most = decoder.code.group_size - num_missing - decoder.code.compression - 1
    num_liars = data.draw(st.integers(1, most), label="num_liars")
    gradient, received, liars = attacked(decoder, kind, 10**decade, seed, num_liars, num_missing, dtype)
    decoded = decoder.decode(received, dim=DIM)
    if decoded.status is DecodeStatus.BEYOND_BOUND:
        assert_right(decoded, gradient, liars)


@pytest.mark.slow
@given(kind=st.sampled_from(KINDS), decade=st.floats(-7, 6), seed=seeds, num_liars=st.integers(6, 9))
@settings(max_examples=30)
def test_colluders_of_a_large_group_do_not_make_a_result_wrong(
    kind: str, decade: float, seed: int, num_liars: int
) -> None:
    gradient, received, liars = attacked(LARGE, kind, 10**decade, seed, num_liars)
    decoded = LARGE.decode(received, dim=DIM)
    if decoded.status is DecodeStatus.BEYOND_BOUND:
        assert_right(decoded, gradient, liars)


@given(
    decoder=st.sampled_from(DECODERS), kind=st.sampled_from(KINDS), decade=st.floats(-8, 12), seed=seeds, data=st.data()
)
def test_s_liars_can_make_up_nothing_however_many_are_missing(
    decoder: RealDecoder, kind: str, decade: float, seed: int, data: st.DataObject
) -> None:
    num_liars = data.draw(st.integers(0, decoder.byzantine), label="num_liars")
    num_missing = data.draw(st.integers(0, decoder.code.group_size - num_liars), label="num_missing")
    gradient, received, liars = attacked(decoder, kind, 10**decade, seed, num_liars, num_missing)
    decoded = decoder.decode(received, dim=DIM)
    if (
        decoded.status is DecodeStatus.BEYOND_BOUND
        or decoded.num_agreeing >= decoder.code.compression + decoder.byzantine
    ):
        assert error_of(decoded, gradient) <= decoded.error_bound
        assert set(decoded.corrupt_slots) <= set(liars)
        if decoded.status is DecodeStatus.BEYOND_BOUND:
            assert set(decoded.suspect_slots) <= set(liars)


def test_lies_of_one_direction_are_located_unless_they_cancel() -> None:
    gradient, received, liars = attacked(SMALL, "random", 0.0, 0, 3)
    common = torch.linspace(-1, 1, DIM // 3)
    for weight, slot in zip((1.0, -2.0, 5.0), liars, strict=True):
        received[slot] = received[slot] + weight * common
    assert_right(SMALL.decode(received), gradient, liars)


def test_a_quiet_lie_among_the_rows_kept_stays_in_the_bound() -> None:
    """It is hidden where the honest rows tell little: more than noise does where all rows kept are honest."""
    decoder = fourier_decoder(byzantine=3, compression=4, beyond_bound="accept")
    code = decoder.code
    gradient = torch.randn(DIM, generator=seeded(1), dtype=torch.float64)
    shares = torch.stack(list(shares_of(code, gradient).values()))
    kept, quiet, loud = [0, 1, 2, 3, 4, 7], 5, [5, 6, 8, 9]
    noise = math.sqrt(len(kept)) * decoder.rtol * float(shares[kept].norm(dim=1).sort().values[-2])
    lie = 0.9 * noise / float(np.linalg.norm(parity_of(code.generator[kept])[:, quiet]))
    shares[kept[quiet]] += lie * random_lies(1, shares.shape[1], seeded(2))[0]
    shares[loud] += 1e3 * random_lies(len(loud), shares.shape[1], seeded(3))
    decoded = decoder.decode(shares)
    assert_right(decoded, gradient, loud)
    all_honest = 1 / float(np.linalg.svd(code.generator[kept], compute_uv=False)[-1])
    assert error_of(decoded, gradient) > all_honest * (decoded.residual + decoded.tolerance)


@pytest.mark.parametrize("seed", range(20))
def test_two_gradients_with_k_plus_1_shares_each_are_reported(seed: int) -> None:
    _, received, _ = attacked(SPARE, "other-gradient", 1.0, seed, 3)  # five shares fit the one, five the other
    assert SPARE.decode(received).status is DecodeStatus.UNDECODABLE


@pytest.mark.parametrize("size", [1e3, 1e12, 1e30])
def test_huge_lies_do_not_hide_small_ones(size: float) -> None:
    gradient, received, liars = attacked(EVEN, "random", 1e-2, 1, 4)
    for slot in liars[:3]:
        received[slot] = torch.full_like(received[slot], size * (1 + slot))
    received[liars[0]][3] = 0
    received[liars[1]][5] = 0
    decoded = EVEN.decode(received)
    assert_right(decoded, gradient, liars)
    assert decoded.suspect_slots == tuple(liars)
    assert error_of(decoded, gradient) <= 1e-5 * float(gradient.norm())
    assert decoded.error_bound <= 1e-3 * float(gradient.norm())


def test_missing_and_not_finite_shares_are_erasures() -> None:
    gradient, received, liars = attacked(LARGE, "random", 1.0, 0, 6, num_missing=2)
    broken = next(slot for slot in received if slot not in liars)
    received[broken] = torch.full_like(received[broken], math.nan)
    decoded = LARGE.decode(received)
    assert_right(decoded, gradient, liars)
    assert decoded.suspect_slots == tuple(liars)
    assert len(decoded.erased_slots) == 3


# Where it ends


def test_n_minus_k_liars_can_make_a_result_wrong() -> None:
    """Of five liars two side with another gradient that two honest shares fit too: four are k + 1."""
    gradient, shares, _ = draw(SPARE.code, 0, 0)
    received = shares.double()
    other = OtherGradient(SPARE.code).lies(received, [2, 3], seeded(0))
    assert SPARE.code.parity.shape == (5, 8)
    received[[4, 5, 6]] += random_lies(3, received.shape[1], seeded(1))
    received[[2, 3]] = other
    decoded = SPARE.decode(received)
    assert decoded.status is DecodeStatus.BEYOND_BOUND
    assert decoded.suspect_slots == (4, 5, 6, 7)
    assert error_of(decoded, gradient) > decoded.error_bound


@pytest.mark.parametrize("num_liars", [4, 5, 6, 7])
@pytest.mark.parametrize("seed", range(5))
def test_more_random_lies_than_n_minus_k_minus_1_are_reported(num_liars: int, seed: int) -> None:
    _, received, _ = attacked(SMALL, "random", 1.0, seed, num_liars)
    assert SMALL.decode(received).status is DecodeStatus.UNDECODABLE


def test_fewer_than_k_plus_s_plus_1_shares_are_not_enough() -> None:
    gradient, received, liars = attacked(LARGE, "random", 1.0, 0, 3, num_missing=4)
    assert len(received) == 16
    assert_right(LARGE.decode(received), gradient, liars)  # 13 agree: within the bound that is not certain
    del received[next(slot for slot in received if slot not in liars)]
    assert LARGE.decode(received).status is DecodeStatus.UNDECODABLE


def test_nothing_is_tried_while_shares_may_come() -> None:
    _, received, _ = attacked(SMALL, "random", 1.0, 0, 3)
    assert SMALL.decode(received, last=False).status is DecodeStatus.UNDECODABLE


def test_too_many_sets_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    _, received, _ = attacked(SMALL, "random", 1.0, 0, 3)
    monkeypatch.setattr(beyond, "MAX_SETS", 34)  # C(7, 4) = 35
    assert SMALL.decode(received).status is DecodeStatus.UNDECODABLE


@given(kind=st.sampled_from(KINDS), seed=seeds, num_liars=st.integers(0, 4))
def test_by_default_nothing_changes(kind: str, seed: int, num_liars: int) -> None:
    default = fourier_decoder(byzantine=2, compression=3)
    assert default.beyond_bound == "reject"
    _, received, _ = attacked(default, kind, 1.0, seed, num_liars)
    rejecting, accepting = (decoder.decode(received, generator=seeded(seed)) for decoder in (default, SMALL))
    assert rejecting.status is not DecodeStatus.BEYOND_BOUND
    if rejecting.num_agreeing >= 5:
        assert accepting.gradient is not None
        torch.testing.assert_close(accepting.gradient, rejecting.gradient, rtol=0, atol=0)
        assert accepting.status is rejecting.status


def test_an_option_that_does_not_exist() -> None:
    with pytest.raises(ConfigurationError, match="beyond_bound='maybe'"):
        fourier_decoder(byzantine=1, compression=2, beyond_bound="maybe")


# The parts


@pytest.mark.parametrize("code", [decoder.code for decoder in (*DECODERS, LARGE)], ids=repr)
def test_checks_are_unit_vectors_that_honest_rows_of_the_set_satisfy(code: RealCode) -> None:
    sets: IntArray = np.array(list(combinations(range(code.group_size), code.compression + 1))[::7], dtype=np.int64)
    checks = _checks(code.points, code.multipliers, sets)
    np.testing.assert_allclose(checks @ code.generator, 0, atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(checks, axis=1), 1)
    for chosen, check in zip(sets, checks, strict=True):
        assert set(np.flatnonzero(check)) == set(chosen)


@given(code=st.sampled_from([SMALL.code, EVEN.code]), seed=seeds, lying=st.sets(st.integers(0, 6)))
def test_supporting_rows_are_those_of_the_oracle(code: RealCode, seed: int, lying: set[int]) -> None:
    rng = np.random.default_rng(seed)
    projected = code.generator @ rng.normal(size=(code.compression, 16))
    for row in lying:
        projected[row] += rng.normal(size=16)
    expected: set[int] = set()
    for chosen in map(list, combinations(range(code.group_size), code.compression + 1)):
        solved = code.generator[chosen] @ np.linalg.pinv(code.generator[chosen]) @ projected[chosen]
        if np.linalg.norm(projected[chosen] - solved) <= 1e-9:
            expected |= set(chosen)
    tolerances = np.full((2, code.group_size), 1e-9)
    in_another_class = code.generator @ rng.normal(size=(2, code.compression, 16))
    for number in range(2):  # what disagrees in either class of tensors does not agree
        both = np.stack([projected, in_another_class[number]])[[number, 1 - number]]
        found = supporting_rows(code.points, code.multipliers, both, code.compression, tolerances)
        assert found == sorted(expected)


def test_where_the_worst_rows_can_not_be_found_the_code_knows_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient, received, liars = attacked(SMALL, "random", 1.0, 0, 3)
    exact = SMALL.decode(received, generator=seeded(0))
    monkeypatch.setattr(beyond, "worst_amplification", lambda *_: math.inf)
    bounded = SMALL.decode(received, generator=seeded(0))
    assert_right(bounded, gradient, liars)
    assert exact.error_bound <= bounded.error_bound


GRADIENTS: dict[str, Callable[[], Tensor]] = {
    "zeros": lambda: torch.zeros(12),
    "denormal": lambda: torch.arange(12).float() * 2.0**-149,
    "large": lambda: torch.linspace(-1, 1, 12) * 1e30,
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_any_size(name: str) -> None:
    gradient = GRADIENTS[name]()
    shares = shares_of(SMALL.code, gradient)
    for slot in (1, 2, 6):
        shares[slot] = torch.randn(4, generator=seeded(slot)) * max(1.0, float(gradient.abs().max()))
    decoded = SMALL.decode(shares)
    assert_right(decoded, gradient, [1, 2, 6])
    assert decoded.suspect_slots == (1, 2, 6)
