"""The decoder's laws. `receive` builds what a server receives; sizes of lies are in norms of a typical share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import Decoded, DecodeStatus, FourierCode, LinearCode, LocatingProblem, VandermondeCode
from solon_fl.coding import solving
from solon_fl.coding.decoder import _without_absurd_rows
from solon_fl.coding.locating import Support
from solon_fl.simulations.attacks import (
    Attack,
    BelowTolerance,
    NearCodeword,
    OtherGradient,
    PartialCollusion,
    ProjectionAware,
)
from tests.coding.problems import without_comparing
from tests.oracles import decode_by_subsets


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares_of(code: LinearCode, gradient: Tensor) -> dict[int, Tensor]:
    return {slot: code.encode(gradient, slot) for slot in range(code.group_size)}


def decode(
    code: LinearCode, shares: dict[int, Tensor], *, looking: bool, dim: int | None = None, seed: int | None = None
) -> Decoded:
    """Decode; if `looking`, by projection and least squares at once, without trying what is mostly enough."""
    generator = None if seed is None else seeded(seed)
    with without_comparing(looking):
        return code.decode(shares, dim=dim, generator=generator)


def typical_norm(shares: dict[int, Tensor]) -> float:
    return float(np.median([float(share.double().norm()) for share in shares.values()]))


def error_of(decoded: Decoded, gradient: Tensor) -> float:
    assert decoded.gradient is not None
    assert decoded.gradient.shape == gradient.shape
    error = decoded.gradient.double() - gradient.double()
    largest = error.abs().max().clamp_min(5e-324)  # the squares of small errors underflow
    return float((error / largest).norm() * largest)


def assert_within_bound(decoded: Decoded, gradient: Tensor) -> None:
    assert decoded.ok, decoded
    assert error_of(decoded, gradient) <= decoded.error_bound
    assert decoded.residual <= decoded.tolerance


@dataclass(frozen=True)
class Case:
    code: LinearCode
    gradient: Tensor
    liars: tuple[int, ...]
    missing: tuple[int, ...]
    received: dict[int, Tensor]


CODES = [
    FourierCode(byzantine=s, compression=k, stragglers=e)
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
] + [FourierCode(byzantine=5, compression=10)]
CRAFTED: dict[str, Callable[[LinearCode, float], Attack]] = {
    "near-codeword": NearCodeword,
    "other-gradient": OtherGradient,
    "partial-collusion": PartialCollusion,
    "below-tolerance": BelowTolerance,  # `size` in units of what is tolerated
}
KINDS = ["random", "same", *CRAFTED, "constant", "mixed", "nan", "inf", "zero", "as-another"]


def lies_of(kind: str, case: Case, size: float, seed: int) -> Tensor:
    """Return the liars' shares; deviations are `size` typical norms."""
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
        return CRAFTED[kind](case.code, size).lies(shares, liars, rng)
    constants = {"nan": math.nan, "inf": -math.inf, "constant": -100.0 * size, "zero": 0.0}
    if kind in constants:
        return torch.full_like(honest, constants[kind])
    if kind == "as-another":
        return shares[[(slot + 1) % case.code.group_size for slot in liars]]
    return honest + size * typical * noise


def receive(
    code: LinearCode,
    kind: str,
    size: float,
    seed: int,
    num_liars: int,
    num_missing: int = 0,
    dim: int = 40,
    dtype: torch.dtype = torch.float32,
) -> Case:
    rng = seeded(seed)
    gradient = torch.randn(dim, generator=rng, dtype=torch.float64).to(dtype)
    order = torch.randperm(code.group_size, generator=rng).tolist()
    liars = tuple(sorted(order[:num_liars]))
    missing = tuple(sorted(order[num_liars : num_liars + num_missing]))
    case = Case(code, gradient, liars, missing, shares_of(code, gradient))
    if liars:
        lies = lies_of(kind, case, size, seed).to(dtype)
        case.received.update(zip(liars, lies, strict=True))
    for slot in missing:
        del case.received[slot]
    return case


def large_lies(case: Case) -> set[int]:
    """Return the slots of lies of at least 1e-3 typical norms."""
    honest = shares_of(case.code, case.gradient)
    smallest = 1e-3 * typical_norm(honest)
    return {
        slot
        for slot in case.liars
        if not float((case.received[slot].double() - honest[slot].double()).norm()) < smallest
    }


codes = st.sampled_from(CODES)
code_kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**32)
dtypes = st.sampled_from([torch.float32, torch.float64])
sizes = st.floats(-3, 30).map(lambda decade: float(10**decade))


# What holds for honest shares


@given(code=codes, seed=seeds, dim=st.integers(1, 60), dtype=dtypes, looking=st.booleans())
def test_round_trip(code: FourierCode, seed: int, dim: int, dtype: torch.dtype, looking: bool) -> None:
    case = receive(code, "random", 0, seed, num_liars=0, dim=dim, dtype=dtype)
    decoded = decode(code, case.received, dim=dim, looking=looking)
    assert decoded.status is DecodeStatus.CLEAN
    assert decoded.gradient is not None
    assert decoded.gradient.dtype == dtype
    assert (decoded.corrupt_slots, decoded.erased_slots) == ((), ())
    assert_within_bound(decoded, case.gradient)
    precision = 1e-6 if dtype == torch.float32 else 1e-14
    assert error_of(decoded, case.gradient) <= precision * float(case.gradient.norm())


@given(code=codes, seed=seeds, noise=st.floats(0, 1), looking=st.booleans())
def test_noise_up_to_rtol_accuses_nobody(code: FourierCode, seed: int, noise: float, looking: bool) -> None:
    case = receive(code, "random", 0, seed, num_liars=0, dtype=torch.float64)
    rng = seeded(seed)
    smallest = sorted(float(share.norm()) for share in case.received.values())[code.compression - 1]
    for slot, share in case.received.items():
        direction = torch.randn(share.shape, generator=rng, dtype=torch.float64)
        case.received[slot] = share + noise * code.rtol * smallest * direction / direction.norm()
    decoded = decode(code, case.received, dim=40, looking=looking)
    assert decoded.status is DecodeStatus.CLEAN
    assert_within_bound(decoded, case.gradient)


@pytest.mark.parametrize("seed", range(10))
def test_noise_far_above_rtol_is_reported(seed: int) -> None:
    code = FourierCode(byzantine=2, compression=3)
    case = receive(code, "random", 0, seed, num_liars=0)
    for slot, share in case.received.items():
        case.received[slot] = share * (1 + 1e-3 * torch.randn(share.shape, generator=seeded(seed + slot)))
    assert code.decode(case.received).status is DecodeStatus.UNDECODABLE
    tolerant = FourierCode(byzantine=2, compression=3, rtol=3e-3)
    assert tolerant.decode(case.received).status is DecodeStatus.CLEAN


# What holds whatever s liars do


@pytest.mark.slow
@given(code=codes, kind=code_kinds, size=sizes, seed=seeds, dtype=dtypes, data=st.data(), looking=st.booleans())
@settings(max_examples=400)
def test_no_corruption_of_s_shares_leaves_the_error_bound(
    code: FourierCode, kind: str, size: float, seed: int, dtype: torch.dtype, data: st.DataObject, looking: bool
) -> None:
    num_liars = data.draw(st.integers(0, code.byzantine), label="num_liars")
    num_missing = data.draw(st.integers(0, code.stragglers), label="num_missing")
    case = receive(code, kind, size, seed, num_liars, num_missing, dtype=dtype)
    decoded = decode(code, case.received, dim=40, looking=looking)
    assert_within_bound(decoded, case.gradient)
    named = {*decoded.corrupt_slots, *decoded.erased_slots}
    assert large_lies(case) | set(case.missing) <= named <= {*case.liars, *case.missing}
    expected = DecodeStatus.CORRECTED if decoded.corrupt_slots else DecodeStatus.CLEAN
    assert decoded.status is expected


@given(code=codes, kind=code_kinds, size=sizes, seed=seeds, data=st.data(), looking=st.booleans())
@settings(max_examples=200)
def test_errors_cost_two_and_erasures_one(
    code: FourierCode, kind: str, size: float, seed: int, data: st.DataObject, looking: bool
) -> None:
    assume(code.byzantine > 0 or kind != "near-codeword")  # which is about 2 s slots
    checks = code.group_size - code.compression
    num_missing = data.draw(st.integers(0, checks), label="num_missing")
    num_liars = data.draw(st.integers(0, (checks - num_missing) // 2), label="num_liars")
    case = receive(code, kind, size, seed, num_liars, num_missing)
    assert_within_bound(decode(code, case.received, dim=40, looking=looking), case.gradient)


@given(code=codes, kind=code_kinds, size=sizes, seed=seeds, data=st.data(), looking=st.booleans())
@settings(max_examples=200)
def test_k_plus_s_shares_that_agree_are_right_however_many_are_missing(
    code: FourierCode, kind: str, size: float, seed: int, data: st.DataObject, looking: bool
) -> None:
    num_liars = data.draw(st.integers(0, code.byzantine), label="num_liars")
    num_missing = data.draw(st.integers(0, code.group_size - num_liars), label="num_missing")
    case = receive(code, kind, size, seed, num_liars, num_missing)
    decoded = decode(code, case.received, dim=40, looking=looking)
    if decoded.num_agreeing >= code.compression + code.byzantine:
        assert_within_bound(decoded, case.gradient)


@pytest.mark.parametrize("seed", range(30))
def test_s_liars_among_s_plus_k_shares_are_not_agreed_with_by_enough(seed: int) -> None:
    code = FourierCode(byzantine=3, compression=4)
    case = receive(code, "other-gradient", 1.0, seed, num_liars=3, num_missing=3)
    decoded = code.decode(case.received, dim=40)
    assert decoded.num_agreeing < code.byzantine + code.compression


def test_s_liars_among_too_few_shares_can_win_which_num_agreeing_tells() -> None:
    """Why `SolonStrategy` asks for k + s: within the budget for one lie, three liars made this one up."""
    code = FourierCode(byzantine=3, compression=4)
    outcomes = [
        (case := receive(code, "other-gradient", 1.0, seed, num_liars=3, num_missing=3), code.decode(case.received))
        for seed in range(30)
    ]
    wrong = [d for case, d in outcomes if d.ok and error_of(d, case.gradient) > d.error_bound]
    assert wrong
    assert all(decoded.num_agreeing < 7 for decoded in wrong)


@pytest.mark.parametrize("arrived", [0, 1, 2])
def test_fewer_than_k_shares_are_too_few(arrived: int) -> None:
    code = FourierCode(byzantine=2, compression=3)
    shares = dict(list(shares_of(code, torch.ones(6)).items())[:arrived])
    decoded = code.decode(shares, dim=6)
    assert decoded.status is DecodeStatus.TOO_FEW_SHARES
    assert not decoded.ok
    assert decoded.gradient is None
    assert decoded.erased_slots == tuple(range(arrived, 7))
    assert (decoded.error_bound, decoded.residual, decoded.num_agreeing) == (math.inf, math.inf, 0)


def test_without_liars_exactly_k_shares_are_enough() -> None:
    code = FourierCode(byzantine=0, compression=3, stragglers=2)
    gradient = torch.arange(6.0)
    shares = shares_of(code, gradient)
    del shares[1], shares[4]
    decoded = code.decode(shares)
    assert decoded.status is DecodeStatus.CLEAN
    assert_within_bound(decoded, gradient)


def test_all_shares_not_finite_are_too_few() -> None:
    code = FourierCode(byzantine=1, compression=3)
    shares = shares_of(code, torch.full((6,), math.nan))
    decoded = code.decode(shares)
    assert decoded.status is DecodeStatus.TOO_FEW_SHARES
    assert decoded.erased_slots == (0, 1, 2, 3, 4)


@pytest.mark.slow
@given(
    code=codes.filter(lambda code: code.byzantine > 0), seed=seeds, decade=st.floats(-7.5, -3), looking=st.booleans()
)
@settings(max_examples=200)
def test_lies_about_as_small_as_the_tolerance_do_no_more_than_the_certificate(
    code: FourierCode, seed: int, decade: float, looking: bool
) -> None:
    case = receive(code, "near-codeword", 10**decade, seed, code.byzantine)
    decoded = decode(code, case.received, dim=40, looking=looking)
    assert_within_bound(decoded, case.gradient)
    assert error_of(decoded, case.gradient) <= code.certificate * float(case.gradient.norm())


LYING_CODES: list[LinearCode] = [
    kind(byzantine=s, compression=k)
    for kind in (FourierCode, VandermondeCode)
    for s, k in [(1, 1), (1, 3), (2, 3), (3, 4)]
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("code", LYING_CODES, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_lies_below_the_tolerance_pass_and_do_what_noise_may(
    code: LinearCode, dtype: torch.dtype, seed: int
) -> None:
    case = receive(code, "below-tolerance", 0.9, seed, code.byzantine, dtype=dtype)
    decoded = code.decode(case.received, dim=40)
    assert decoded.status is DecodeStatus.CLEAN
    assert_within_bound(decoded, case.gradient)
    size = float(case.gradient.norm())
    assert 0.1 * code.rtol * size < error_of(decoded, case.gradient) <= code.certificate * size


@pytest.mark.parametrize("code", LYING_CODES, ids=repr)
@pytest.mark.parametrize("size", [1.2, 2.0, 5.0, 30.0])
@pytest.mark.parametrize("seed", range(3))
def test_lies_just_above_the_tolerance_are_noticed_and_stay_in_the_bound(
    code: LinearCode, size: float, seed: int
) -> None:
    case = receive(code, "below-tolerance", size, seed, code.byzantine)
    decoded = code.decode(case.received, dim=40)
    assert decoded.corrupt_slots
    assert set(decoded.corrupt_slots) <= set(case.liars)
    assert_within_bound(decoded, case.gradient)


@pytest.mark.parametrize("code", LYING_CODES, ids=repr)
@pytest.mark.parametrize("size", [1e3, 1e5])
@pytest.mark.parametrize("seed", range(3))
def test_lies_well_above_the_tolerance_are_located(code: LinearCode, size: float, seed: int) -> None:
    case = receive(code, "below-tolerance", size, seed, code.byzantine)
    decoded = code.decode(case.received, dim=40)
    assert decoded.corrupt_slots == case.liars
    assert_within_bound(decoded, case.gradient)
    assert error_of(decoded, case.gradient) <= 1e-6 * float(case.gradient.norm())


@pytest.mark.parametrize("seed", range(20))
def test_what_disagrees_by_more_than_noise_is_looked_at_again(seed: int) -> None:
    """Less than three times the noise is let pass at first, but then it turns out to be more than noise."""
    code = FourierCode(byzantine=2, compression=3)
    gradient = torch.randn(300, generator=seeded(seed), dtype=torch.float64)
    shares = shares_of(code, gradient)
    noise = math.sqrt(7) * code.rtol * typical_norm(shares)
    shares[4] = shares[4] + 3 * noise * torch.nn.functional.normalize(torch.randn(100, generator=seeded(9)), dim=0)
    decoded = code.decode(shares, generator=seeded(seed))
    assert decoded.corrupt_slots == (4,)
    assert error_of(decoded, gradient) < 1e-12


@pytest.mark.parametrize("sizes", [(), (1.0,), (1e-4, 1.0), (1e-5, 3e-5), (1e-6, 1e-6)], ids=str)
@pytest.mark.parametrize("looking", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_error_bound_is_the_documented_one(sizes: tuple[float, ...], seed: int, looking: bool) -> None:
    code = FourierCode(byzantine=2, compression=3)
    gradient = torch.randn(30, generator=seeded(seed), dtype=torch.float64)
    matrix = torch.stack(list(shares_of(code, gradient).values())).numpy()
    for slot, size in zip((5, 2), sizes, strict=False):
        direction = np.random.default_rng(seed).normal(size=10)
        matrix[slot] += size * direction / np.linalg.norm(direction)
    decoded = decode(code, dict(enumerate(torch.from_numpy(matrix))), looking=looking)

    accused = list(decoded.corrupt_slots)
    kept = [slot for slot in range(7) if slot not in accused]
    assert decoded.gradient is not None
    chunks = decoded.gradient.reshape(3, -1).numpy()
    if looking:
        np.testing.assert_allclose(
            chunks, np.linalg.lstsq(code.generator[kept], matrix[kept], rcond=None)[0], rtol=1e-12
        )
    deviations = np.linalg.norm(matrix - code.generator @ chunks, axis=1)
    scale = np.sort(np.linalg.norm(matrix, axis=1))[2 + 3 - 1]  # s + k smallest
    noise = math.sqrt(7) * code.rtol * scale
    residual = np.linalg.norm(deviations[kept])
    first = code.worst_amplification(len(kept) - 2) * (residual + noise)
    doubtful = deviations[[slot for slot in accused if deviations[slot] <= first + noise]]
    second = code.worst_amplification(7 - 2) * (residual + noise + np.linalg.norm(doubtful))
    rounding = np.finfo(np.float64).eps * np.linalg.norm(chunks)
    assert decoded.residual == pytest.approx(residual, rel=1e-6, abs=1e-12)
    assert decoded.error_bound == pytest.approx(min(first, second) + rounding, rel=1e-6)


def test_s_lies_below_the_tolerance_stay_in_the_bound_if_only_s_plus_k_shares_are_there() -> None:
    """More than fit the budget, but all shares agree, so the bound counts on the k honest ones alone: the worst k."""
    code = FourierCode(byzantine=3, compression=4)
    gradient = torch.randn(40, generator=seeded(1), dtype=torch.float64)
    honest, liars = [0, 1, 2, 3], [5, 6, 7]
    shares = {slot: share for slot, share in shares_of(code, gradient).items() if slot in honest + liars}
    noise = math.sqrt(7) * code.rtol * typical_norm(shares)
    hidden = np.linalg.svd(code.generator[honest])[2][-1]  # a change of the gradient that four neighbours hardly see
    size = 0.9 * noise * code.amplification
    direction = torch.nn.functional.normalize(torch.randn(10, generator=seeded(2), dtype=torch.float64), dim=0)
    for slot in liars:
        shares[slot] = shares[slot] + size * float(code.generator[slot] @ hidden) * direction
    decoded = code.decode(shares)
    assert decoded.num_agreeing == 7
    assert_within_bound(decoded, gradient)
    assert error_of(decoded, gradient) > code.worst_amplification(6) * (decoded.residual + noise)


def test_no_row_is_absurd_that_s_small_lies_could_make_look_so() -> None:
    code = FourierCode(byzantine=3, compression=4)
    norms = np.array([0, 0, 0, 1, 1, 1, 1e9])  # perhaps the zeros are the lies
    assert _without_absurd_rows(code, norms, 0.0) == ([0, 1, 2, 3, 4, 5, 6], 1e9)


def test_every_absurd_row_leaves_one_liar_less() -> None:
    code = FourierCode(byzantine=3, compression=4)
    norms = np.array([1, 1, 1, 1e12, 1e4, 1, 1, 1])  # 1e4 is absurd only if it can't be two lies that are small
    assert _without_absurd_rows(code, norms, 0.0) == ([0, 1, 2, 5, 6, 7], 1.0)


def test_a_lie_screened_by_its_size_costs_as_little_as_a_missing_share() -> None:
    code = FourierCode(byzantine=3, compression=4)
    case = receive(code, "random", 1.0, 0, num_liars=3, num_missing=1)  # leaves room to correct two lies
    assert code.decode(case.received, dim=40).status is DecodeStatus.UNDECODABLE
    case.received[case.liars[1]] *= 1e9
    decoded = code.decode(case.received, dim=40)
    assert decoded.corrupt_slots == case.liars
    assert_within_bound(decoded, case.gradient)


# Beyond the guarantee


@pytest.mark.parametrize("code", [code for code in CODES if code.compression > 1], ids=repr)
@pytest.mark.parametrize("seed", range(5))
def test_one_liar_too_many_is_reported(code: FourierCode, seed: int) -> None:
    if code.group_size == code.compression:
        pytest.skip("without any redundancy nothing can be noticed")
    case = receive(code, "random", 1.0, seed, (code.group_size - code.compression) // 2 + 1)
    assert code.decode(case.received, dim=40).status is DecodeStatus.UNDECODABLE


@pytest.mark.parametrize("seed", range(10))
def test_s_plus_1_liars_can_pass_off_another_gradient(seed: int) -> None:
    """Nothing can detect it: their gradient explains s + k shares, as the true one does."""
    code = FourierCode(byzantine=2, compression=4)
    case = receive(code, "other-gradient", 1.0, seed, num_liars=3)
    decoded = code.decode(case.received, dim=40)
    assert decoded.ok
    assert error_of(decoded, case.gradient) > 0.01 * float(case.gradient.norm()) > decoded.error_bound
    assert not set(decoded.corrupt_slots) & set(case.liars)


def test_stragglers_who_answer_leave_room_for_more_liars() -> None:
    code = FourierCode(byzantine=2, compression=4, stragglers=2)
    for num_liars, right in [(3, True), (4, False)]:
        case = receive(code, "other-gradient", 1.0, 0, num_liars)
        decoded = code.decode(case.received, dim=40)
        assert decoded.status is DecodeStatus.CORRECTED
        assert (error_of(decoded, case.gradient) <= decoded.error_bound) is right


# Symmetries


@given(code=codes, kind=st.sampled_from(["random", "same", "near-codeword"]), seed=seeds, exponent=st.integers(-30, 60))
def test_scaling_by_a_power_of_two_scales_the_result(code: FourierCode, kind: str, seed: int, exponent: int) -> None:
    case = receive(code, kind, 1.0, seed, code.byzantine)
    scaled = {slot: share * 2.0**exponent for slot, share in case.received.items()}
    plain = code.decode(case.received, generator=seeded(seed))
    result = code.decode(scaled, generator=seeded(seed))
    assert (result.status, result.corrupt_slots) == (plain.status, plain.corrupt_slots)
    assert result.gradient is not None
    assert plain.gradient is not None
    torch.testing.assert_close(result.gradient, plain.gradient * 2.0**exponent, rtol=0, atol=0)
    assert result.error_bound == pytest.approx(plain.error_bound * 2.0**exponent, rel=1e-3)


@given(code=codes, seed=seeds, factor=st.sampled_from([1e-6, 1e6]), looking=st.booleans())
def test_scaling_by_a_million_scales_the_result(code: FourierCode, seed: int, factor: float, looking: bool) -> None:
    case = receive(code, "random", 1.0, seed, code.byzantine)
    decoded = code.decode({slot: share * factor for slot, share in case.received.items()}, dim=40)
    assert decoded.corrupt_slots == case.liars
    assert_within_bound(decoded, case.gradient * factor)


@given(code=codes, seed=seeds, turn=st.integers(1, 12), looking=st.booleans())
def test_turning_the_slots_turns_the_verdict(code: FourierCode, seed: int, turn: int, looking: bool) -> None:
    case = receive(code, "random", 1.0, seed, code.byzantine)
    size = code.group_size
    turned = {}
    for slot, share in case.received.items():
        laps, target = divmod(slot + turn, size)
        # Half frequencies change sign with every lap around the circle.
        turned[target] = share * (-1) ** (laps * (code.compression % 2 == 0))
    decoded = code.decode(turned)
    plain = decode(code, case.received, looking=looking)
    assert decoded.corrupt_slots == tuple(sorted((slot + turn) % size for slot in case.liars))
    assert decoded.gradient is not None
    assert plain.gradient is not None
    assert float(decoded.gradient.norm()) == pytest.approx(float(plain.gradient.norm()), rel=1e-5)


@given(
    seed=seeds,
    num_liars=st.integers(0, 2),
    kind=st.sampled_from(["random", "same", "near-codeword"]),
    looking=st.booleans(),
)
@settings(max_examples=40)
def test_the_verdict_is_that_of_the_oracle(seed: int, num_liars: int, kind: str, looking: bool) -> None:
    code = FourierCode(byzantine=2, compression=3)
    case = receive(code, kind, 0.1, seed, num_liars, dim=15, dtype=torch.float64)
    received = torch.stack(list(case.received.values())).numpy()
    expected = decode_by_subsets(code.generator, received, 2, tolerance=1e-6)
    assert expected is not None
    decoded = decode(code, case.received, looking=looking)
    assert decoded.corrupt_slots == expected[1]
    assert decoded.gradient is not None
    np.testing.assert_allclose(decoded.gradient.numpy(), expected[0].reshape(-1), atol=1e-9)


# Numbers at the edge


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_gradients_shorter_than_k(dim: int) -> None:
    code = FourierCode(byzantine=2, compression=6)
    case = receive(code, "random", 1.0, 3, 2, dim=dim)
    decoded = code.decode(case.received, dim=dim)
    assert decoded.corrupt_slots == case.liars
    assert_within_bound(decoded, case.gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lie", [0.0, 1e-30, 1.0, 1e30])
def test_a_gradient_of_zeros(dtype: torch.dtype, lie: float) -> None:
    code = FourierCode(byzantine=2, compression=3)
    shares = shares_of(code, torch.zeros(9, dtype=dtype))
    shares[1] += lie
    shares[5] -= lie
    decoded = code.decode(shares)
    assert decoded.corrupt_slots == ((1, 5) if lie else ())
    torch.testing.assert_close(decoded.gradient, torch.zeros(9, dtype=dtype), rtol=0, atol=0)
    assert decoded.error_bound < 1e-40


@pytest.mark.parametrize("seed", range(10))
def test_a_gradient_of_denormal_numbers(seed: int) -> None:
    code = FourierCode(byzantine=2, compression=6)
    gradient = torch.randint(-4, 5, (60,), generator=seeded(seed)).float() * 2.0**-149
    shares = shares_of(code, gradient)
    shares[3] = torch.full((10,), 1e-20)
    decoded = code.decode(shares)
    assert decoded.corrupt_slots == (3,)
    assert_within_bound(decoded, gradient)


def test_shares_of_which_most_are_rounded_to_zero() -> None:
    code = FourierCode(byzantine=1, compression=4, stragglers=1)
    gradient = torch.tensor([2.0**-149, 0.0, 0.0, 0.0])
    shares = shares_of(code, gradient)
    assert [float(share) for share in shares.values()] == [2.0**-149, 2.0**-149, 0, 0, 0, 0, -(2.0**-149)]
    decoded = code.decode(shares)
    assert decoded.status is DecodeStatus.CLEAN
    assert_within_bound(decoded, gradient)


@pytest.mark.parametrize("looking", [False, True])
def test_the_rounding_of_the_result_is_in_the_bound(looking: bool) -> None:
    code = FourierCode(byzantine=0, compression=3, stragglers=1, rtol=1e-12)
    shares = {slot: torch.linspace(1, slot + 2, 50) for slot in range(3)}  # float32 can't hold what they mean
    gradient = torch.linalg.solve(torch.from_numpy(code.generator[:3]), torch.stack(list(shares.values())).double())
    decoded = decode(code, shares, looking=looking)
    assert decoded.residual < 1e-12
    assert 1e-8 < error_of(decoded, gradient.reshape(-1)) <= decoded.error_bound


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-100, 1e100, 1e140])
def test_float64_gradients_of_any_size(scale: float) -> None:
    code = FourierCode(byzantine=2, compression=3)
    gradient = scale * torch.linspace(-1, 1, 30, dtype=torch.float64)
    decoded = code.decode(shares_of(code, gradient) | {2: torch.full((10,), 1e149, dtype=torch.float64)})
    assert decoded.corrupt_slots == (2,)
    assert_within_bound(decoded, gradient)


def test_float64_lies_among_numbers_whose_squares_underflow() -> None:
    code = FourierCode(byzantine=2, compression=3)
    gradient = 1e-165 * torch.linspace(-1, 1, 30, dtype=torch.float64)
    shares = shares_of(code, gradient)
    assert_within_bound(code.decode(shares | {2: shares[2] + 1e-164, 4: -shares[4]}), gradient)


def test_float64_gradients_whose_squares_overflow_are_reported() -> None:
    code = FourierCode(byzantine=2, compression=3)
    shares = shares_of(code, 1e152 * torch.linspace(-1, 1, 30, dtype=torch.float64))
    assert code.decode(shares).status is DecodeStatus.TOO_FEW_SHARES


@pytest.mark.parametrize("lie", [1e155, 1e308])
def test_float64_shares_near_overflow_are_erasures(lie: float) -> None:
    code = FourierCode(byzantine=2, compression=3)
    gradient = torch.linspace(-1, 1, 30, dtype=torch.float64)
    shares = shares_of(code, gradient)
    shares[2], shares[4] = torch.full((10,), lie, dtype=torch.float64), shares[4] + 1
    decoded = code.decode(shares)
    assert (decoded.erased_slots, decoded.corrupt_slots) == ((2,), (4,))
    assert_within_bound(decoded, gradient)


@pytest.mark.parametrize("kind", [FourierCode, VandermondeCode])
@pytest.mark.parametrize("start", range(7))
def test_k_minus_1_shares_of_zeros_and_liars_who_send_zeros(kind: type[LinearCode], start: int) -> None:
    code = kind(byzantine=2, compression=3)
    zero_slots = [start, (start + 1) % 7]
    null_vector = torch.from_numpy(np.linalg.svd(code.generator[zero_slots])[2][-1])
    gradient = torch.outer(null_vector, torch.linspace(1, 2, 10, dtype=torch.float64)).reshape(-1)
    shares = shares_of(code, gradient)
    for slot in zero_slots:
        torch.testing.assert_close(shares[slot], torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-14)
    liars = tuple(sorted({(start + 3) % 7, (start + 5) % 7}))
    decoded = code.decode(shares | dict.fromkeys(liars, torch.zeros(10, dtype=torch.float64)))
    assert decoded.corrupt_slots == liars
    assert_within_bound(decoded, gradient)


@pytest.mark.parametrize("exponent", [3, 8, 30])
def test_one_huge_lie_does_not_hide_a_small_one(exponent: int) -> None:
    code = FourierCode(byzantine=2, compression=6)
    case = receive(code, "random", 1e-3, 1, 2)
    case.received[case.liars[0]] = torch.full_like(case.received[0], 10.0**exponent)
    decoded = code.decode(case.received, dim=40)
    assert decoded.corrupt_slots == case.liars
    assert_within_bound(decoded, case.gradient)


def test_more_huge_lies_than_the_budget_are_reported() -> None:
    code = FourierCode(byzantine=2, compression=6)
    for num_liars in range(3, code.group_size + 1):
        case = receive(code, "random", 1e20, 1, num_liars)
        assert code.decode(case.received, dim=40).status is DecodeStatus.UNDECODABLE


# Guessing from the first columns that disagree


def test_an_honest_round_of_a_systematic_code_returns_the_received_bits() -> None:
    code = FourierCode(byzantine=5, compression=10)
    gradient = torch.randn(997, generator=seeded(3))
    assert torch.equal(cast(Tensor, code.decode(shares_of(code, gradient), dim=997).gradient), gradient)


@pytest.fixture
def blocks_of_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "CPU_COLUMNS", 8)


@pytest.mark.usefixtures("blocks_of_8")
@pytest.mark.parametrize("value", [5.0, 1e-3, 1e30, math.nan, math.inf])
@pytest.mark.parametrize("byzantine", [1, 2, 5])
def test_liars_who_lie_in_different_columns_are_all_named(byzantine: int, value: float) -> None:
    """With s = 5 there are more of them than guesses: then all columns are projected."""
    code = FourierCode(byzantine=byzantine, compression=10)
    gradient = torch.randn(1000, generator=seeded(byzantine))
    shares = shares_of(code, gradient)
    liars = tuple(range(1, 2 * byzantine, 2)) if value < 1e20 else tuple(range(byzantine))
    for number, slot in enumerate(liars):
        shares[slot] = shares[slot].clone()
        shares[slot][8 * number + 50 + number] = value
    decoded = code.decode(shares, dim=1000)
    assert_within_bound(decoded, gradient)
    assert (decoded.corrupt_slots + decoded.erased_slots) == liars
    assert error_of(decoded, gradient) < 1e-5 * float(gradient.norm())


@pytest.mark.usefixtures("blocks_of_8")
@pytest.mark.parametrize("num_liars", [3, 4])
def test_too_many_liars_are_too_many_though_they_take_turns(num_liars: int) -> None:
    code = FourierCode(byzantine=2, compression=3)
    shares = shares_of(code, torch.randn(300, generator=seeded(1)))
    for slot in range(num_liars):
        shares[slot] = shares[slot].clone()
        shares[slot][20 * slot] = 9.0
    assert code.decode(shares).status is DecodeStatus.UNDECODABLE


def test_rounding_that_may_hide_a_residual_is_in_the_bound() -> None:
    code = FourierCode(byzantine=5, compression=10)
    shares = shares_of(code, torch.randn(1000, generator=seeded(1)))
    fast, exact = (decode(code, shares, looking=looking) for looking in (False, True))
    assert 1.5 * exact.error_bound < fast.error_bound < 5 * exact.error_bound


@pytest.mark.usefixtures("blocks_of_8")
@given(code=codes, kind=code_kinds, size=sizes, seed=seeds, dtype=dtypes, first=st.integers(0, 12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lies_that_start_late_stay_in_the_bound(
    code: FourierCode, kind: str, size: float, seed: int, dtype: torch.dtype, first: int
) -> None:
    dim = 100 * code.compression
    case = receive(code, kind, size, seed, code.byzantine, dim=dim, dtype=dtype)
    honest = shares_of(code, case.gradient)
    for slot in case.liars:
        case.received[slot] = torch.cat([honest[slot][: 8 * first], case.received[slot][8 * first :]])
    assert_within_bound(code.decode(case.received, dim=dim), case.gradient)


def test_a_device_that_multiplies_in_less_than_float32_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    code = FourierCode(byzantine=2, compression=3)
    gradient = torch.randn(300, generator=seeded(0))
    shares = shares_of(code, gradient)
    multiply = Tensor.addmm_

    def rounding(self: Tensor, a: Tensor, b: Tensor, *, alpha: float) -> Tensor:
        return multiply(self, a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype), alpha=alpha)

    assert isinstance(solving.interpolate(code.generator, (), list(shares.values()), 300, 1e-4), solving.Solution)
    monkeypatch.setattr(Tensor, "addmm_", rounding)
    assert solving.interpolate(code.generator, (), list(shares.values()), 300, 1e-4) is None
    k_rows = list(shares.values())[:3]  # nothing is compared, but the result is a product too
    assert solving.interpolate(code.generator[:3], (), k_rows, 300, 1e-4) is None
    shares[2], shares[5] = -shares[2], 2 * shares[5]
    decoded = code.decode(shares)
    assert decoded.corrupt_slots == (2, 5)
    assert_within_bound(decoded, gradient)
    assert error_of(decoded, gradient) < 1e-6 * float(gradient.norm())


def test_an_accused_row_that_is_honest_makes_the_guess_void() -> None:
    """A gradient that hardly is in the first columns: there, noise looks loud, but it is not over all columns."""
    code = FourierCode(byzantine=2, compression=3)
    gradient = torch.randn(3, 1000, generator=seeded(0))
    gradient[:, :10] *= 1e-6
    shares = shares_of(code, gradient.reshape(-1))
    shares[3][:10] *= 1.01
    with pytest.MonkeyPatch.context() as patch_columns:
        patch_columns.setattr(solving, "CPU_COLUMNS", 10)
        decoded = code.decode(shares)
    assert decoded.status is DecodeStatus.CLEAN
    assert_within_bound(decoded, gradient.reshape(-1))


# The projection


def test_the_default_projection_cannot_be_foreseen() -> None:
    code = FourierCode(byzantine=2, compression=3)
    gradient = torch.randn(300, generator=seeded(0))
    shares = shares_of(code, gradient)
    liars = [1, 4]
    lies = ProjectionAware(seed=11).lies(torch.stack(list(shares.values())), liars, seeded(1))
    shares.update(zip(liars, lies, strict=True))
    for _ in range(20):
        decoded = code.decode(shares)
        assert decoded.corrupt_slots == (1, 4)
        assert_within_bound(decoded, gradient)


def test_a_lie_that_foresaw_the_projection_is_not_located_but_noticed() -> None:
    code = FourierCode(byzantine=2, compression=3)
    gradient = torch.randn(300, generator=seeded(0), dtype=torch.float64)
    shares = shares_of(code, gradient)
    liars = [1, 4]
    lies = ProjectionAware(seed=11).lies(torch.stack(list(shares.values())), liars, seeded(1))
    shares.update(zip(liars, lies, strict=True))
    decoded = decode(code, shares, looking=True, seed=11)
    assert decoded.status is DecodeStatus.UNDECODABLE
    assert decoded.corrupt_slots == ()
    assert decode(code, shares, looking=False, seed=11).corrupt_slots == (1, 4)  # the second projection is another


def test_a_generator_reproduces_a_decode() -> None:
    code = FourierCode(byzantine=2, compression=3)
    case = receive(code, "random", 1.0, 0, 2)
    a, b = (code.decode(case.received, generator=seeded(3)) for _ in range(2))
    torch.testing.assert_close(a.gradient, b.gradient, rtol=0, atol=0)
    assert (a.residual, a.error_bound) == (b.residual, b.error_bound)


# Whatever a locator says


class Says:
    """A locator that always gives the same answer."""

    def __init__(self, *rows: int) -> None:
        self.rows = rows

    def locate(self, problem: LocatingProblem) -> Support:
        return self.rows


@pytest.mark.parametrize("rows", [(), (0,), (0, 1), (0, 1, 2, 3), (3, 3), (2, 5, 6)])
def test_a_wrong_locator_makes_a_failure_not_a_wrong_result(rows: tuple[int, ...]) -> None:
    code = FourierCode(byzantine=2, compression=3, locator=Says(*rows))
    shares = shares_of(code, torch.arange(6.0))
    shares[2], shares[5] = shares[2] + 1, shares[5] - 3
    assert code.decode(shares).status is DecodeStatus.UNDECODABLE


def test_a_locator_in_disorder_is_understood() -> None:
    code = FourierCode(byzantine=2, compression=3, locator=Says(5, 2))
    shares = shares_of(code, torch.arange(6.0))
    shares[2], shares[5] = shares[2] + 1, shares[5] - 3
    assert code.decode(shares).corrupt_slots == (2, 5)


def test_needless_accusations_are_dropped() -> None:
    code = FourierCode(byzantine=2, compression=3, locator=Says(2, 5))
    shares = shares_of(code, torch.arange(6.0))
    shares[5] = shares[5] - 3
    assert code.decode(shares).corrupt_slots == (5,)
