"""Properties of `RealDecoder.decode`: its inputs, its guarantees and their limits, and its symmetries."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import (
    CertificateWarning,
    ConfigurationError,
    DecodeStatus,
    FourierCode,
    RealCode,
    RealDecoder,
    VandermondeCode,
)
from solon_fl.coding import smallest_group
from tests.coding.real.problems import decode, error_of, fourier_decoder, seeded, shares_of, smallest_decoder
from tests.coding.real.received import (
    DECODERS,
    assert_within_bound,
    decoders,
    dtypes,
    kinds,
    large_lies,
    receive,
    seeds,
    sizes,
)
from tests.oracles import decode_by_subsets

KINDS: list[type[RealCode]] = [FourierCode, VandermondeCode]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


# Parameters


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_group_is_the_smallest_that_is_accepted(kind: type[RealCode]) -> None:
    assert smallest_group(byzantine=2, compression=3, stragglers=4) == 11
    decoder = RealDecoder(kind(group_size=11, compression=3), byzantine=2, stragglers=4)
    assert (decoder.code.group_size, decoder.byzantine, decoder.stragglers) == (11, 2, 4)
    with pytest.raises(ConfigurationError, match=r"group_size=10, byzantine=2, stragglers=4.*raise group_size to 11"):
        RealDecoder(kind(group_size=10, compression=3), byzantine=2, stragglers=4)


@pytest.mark.parametrize(("name", "value"), [("byzantine", -1), ("stragglers", -2), ("byzantine", 1.0)])
def test_faults_are_counted_in_whole_numbers(name: str, value: object) -> None:
    arguments: dict[str, object] = {"byzantine": 1, name: value}
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number >= 0; got {name}={value!r}"):
        RealDecoder(FourierCode(group_size=5, compression=1), **arguments)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("name", "value"),
    [("byzantine", -1), ("compression", 0), ("stragglers", -2), ("byzantine", 1.0), ("compression", True)],
)
def test_counts_must_be_whole_numbers_in_range(name: str, value: object) -> None:
    arguments: dict[str, object] = {"byzantine": 1, "compression": 1, name: value}
    with pytest.raises(ConfigurationError, match=f"{name}={value!r}"):
        smallest_group(**arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_group_must_be_large_enough() -> None:
    code = FourierCode(group_size=5, compression=1)
    with pytest.raises(ConfigurationError, match=r"group_size=5, byzantine=2.*raise group_size to 6"):
        RealDecoder(code, byzantine=2, stragglers=1)


@pytest.mark.parametrize("rtol", [0.0, 1.0, -1e-6, math.nan])
def test_rtol_must_be_between_0_and_1(rtol: float) -> None:
    with pytest.raises(ConfigurationError, match=f"rtol={rtol!r}"):
        fourier_decoder(byzantine=1, compression=1, rtol=rtol)


@pytest.mark.parametrize("kind", KINDS)
def test_a_void_certificate_warns_with_the_numbers(kind: type[RealCode]) -> None:
    with pytest.warns(CertificateWarning, match=r"byzantine=8.*but should be below 1.*rtol=1e-06"):
        smallest_decoder(kind, byzantine=8, compression=10)


def test_a_smaller_rtol_makes_the_certificate_valid() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fourier_decoder(byzantine=8, compression=8, rtol=1e-10).certificate < 1


def test_repr_shows_every_parameter() -> None:
    decoder = RealDecoder(VandermondeCode(group_size=9, compression=2), byzantine=1, stragglers=3, rtol=1e-5)
    expected = "RealDecoder(VandermondeCode(group_size=9, compression=2), byzantine=1, stragglers=3, rtol=1e-05)"
    assert repr(decoder) == expected


def test_a_decoder_can_be_sent_to_another_process() -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    shares = shares_of(decoder.code, draw(8, 30)) | {3: draw(9, 10)}
    decoder.decode(shares)  # fills its caches, which are pickled too
    copy = pickle.loads(pickle.dumps(decoder))
    assert repr(copy) == repr(decoder)
    assert copy.decode(shares).corrupt_slots == (3,)


# Inputs of decode


def test_shares_may_be_one_matrix() -> None:
    decoder = fourier_decoder(byzantine=1, compression=3)
    gradient = draw(3, 6)
    decoded = decoder.decode(torch.stack(list(shares_of(decoder.code, gradient).values())))
    torch.testing.assert_close(decoded.gradient, gradient)


@pytest.mark.parametrize("shape", [(4, 2), (5,), (5, 2, 1)])
def test_a_matrix_of_shares_has_a_row_for_every_slot(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=rf"shape=\({shape[0]},"):
        fourier_decoder(byzantine=1, compression=3).decode(torch.ones(shape))


def test_unknown_slots_are_refused() -> None:
    decoder = fourier_decoder(byzantine=1, compression=3)
    with pytest.raises(ConfigurationError, match=r"slots=\[-1, 5\]"):
        decoder.decode(dict.fromkeys([5, 1, -1], torch.ones(2)))


def test_a_gradient_has_at_least_one_entry() -> None:
    with pytest.raises(ConfigurationError, match="dim=0"):
        fourier_decoder(byzantine=1, compression=3).decode({}, dim=0)


@pytest.mark.parametrize("given_dim", [True, False])
@pytest.mark.parametrize(
    "odd_share",
    [
        torch.ones(3),
        torch.ones(2, dtype=torch.float64),
        torch.ones(2, dtype=torch.int32),
        torch.ones(2, 1),
        torch.ones(0),
    ],
)
def test_shares_unlike_the_others_are_erasures(odd_share: torch.Tensor, given_dim: bool) -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    gradient = draw(4, 6).float()
    shares = shares_of(decoder.code, gradient) | {0: odd_share, 4: odd_share}
    decoded = decoder.decode(shares, dim=6 if given_dim else None)
    assert decoded.erased_slots == (0, 4)
    assert decoded.corrupt_slots == ()
    torch.testing.assert_close(decoded.gradient, gradient)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float16, torch.complex64])
def test_shares_are_float32_or_float64(dtype: torch.dtype) -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    assert decoder.decode(torch.ones(7, 2, dtype=dtype)).status is DecodeStatus.TOO_FEW_SHARES


def test_with_dim_given_even_most_shares_may_be_of_another_length() -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    shares = {slot: torch.ones(5) for slot in range(7)}
    assert decoder.decode(shares, dim=6).status is DecodeStatus.TOO_FEW_SHARES


def test_the_order_in_which_shares_arrive_does_not_matter() -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    shares = shares_of(decoder.code, draw(5, 30)) | {3: draw(6, 10)}
    backwards = dict(reversed(shares.items()))
    results = [decoder.decode(s, generator=torch.Generator().manual_seed(0)) for s in (shares, backwards)]
    assert results[0].corrupt_slots == results[1].corrupt_slots == (3,)
    torch.testing.assert_close(results[0].gradient, results[1].gradient, rtol=0, atol=0)


def test_decoding_leaves_the_shares_as_they_are() -> None:
    decoder = fourier_decoder(byzantine=1, compression=3)
    shares = shares_of(decoder.code, draw(7, 30)) | {3: torch.full((10,), torch.nan, dtype=torch.float64)}
    before = {slot: share.clone() for slot, share in shares.items()}
    decoder.decode(shares)
    for slot, share in shares.items():
        torch.testing.assert_close(share, before[slot], rtol=0, atol=0, equal_nan=True)


# Honest shares


@given(decoder=decoders, seed=seeds, dim=st.integers(1, 60), dtype=dtypes, looking=st.booleans())
def test_round_trip(decoder: RealDecoder, seed: int, dim: int, dtype: torch.dtype, looking: bool) -> None:
    case = receive(decoder, "random", 0, seed, num_liars=0, dim=dim, dtype=dtype)
    decoded = decode(decoder, case.received, dim=dim, looking=looking)
    assert decoded.status is DecodeStatus.CLEAN
    assert decoded.gradient is not None
    assert decoded.gradient.dtype == dtype
    assert (decoded.corrupt_slots, decoded.erased_slots) == ((), ())
    assert_within_bound(decoded, case.gradient)
    precision = 1e-6 if dtype == torch.float32 else 1e-14
    assert error_of(decoded, case.gradient) <= precision * float(case.gradient.norm())


@given(decoder=decoders, seed=seeds, noise=st.floats(0, 1), looking=st.booleans())
def test_noise_up_to_rtol_accuses_nobody(decoder: RealDecoder, seed: int, noise: float, looking: bool) -> None:
    case = receive(decoder, "random", 0, seed, num_liars=0, dtype=torch.float64)
    rng = seeded(seed)
    smallest = sorted(float(share.norm()) for share in case.received.values())[decoder.code.compression - 1]
    for slot, share in case.received.items():
        direction = torch.randn(share.shape, generator=rng, dtype=torch.float64)
        case.received[slot] = share + noise * decoder.rtol * smallest * direction / direction.norm()
    decoded = decode(decoder, case.received, dim=40, looking=looking)
    assert decoded.status is DecodeStatus.CLEAN
    assert_within_bound(decoded, case.gradient)


@pytest.mark.parametrize("seed", range(10))
def test_noise_far_above_rtol_is_reported(seed: int) -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    case = receive(decoder, "random", 0, seed, num_liars=0)
    for slot, share in case.received.items():
        case.received[slot] = share * (1 + 1e-3 * torch.randn(share.shape, generator=seeded(seed + slot)))
    assert decoder.decode(case.received).status is DecodeStatus.UNDECODABLE
    tolerant = fourier_decoder(byzantine=2, compression=3, rtol=3e-3)
    assert tolerant.decode(case.received).status is DecodeStatus.CLEAN


# Any behaviour of s liars


@pytest.mark.slow
@given(decoder=decoders, kind=kinds, size=sizes, seed=seeds, dtype=dtypes, data=st.data(), looking=st.booleans())
@settings(max_examples=100)
def test_no_corruption_of_s_shares_leaves_the_error_bound(
    decoder: RealDecoder, kind: str, size: float, seed: int, dtype: torch.dtype, data: st.DataObject, looking: bool
) -> None:
    num_liars = data.draw(st.integers(0, decoder.byzantine), label="num_liars")
    num_missing = data.draw(st.integers(0, decoder.stragglers), label="num_missing")
    case = receive(decoder, kind, size, seed, num_liars, num_missing, dtype=dtype)
    decoded = decode(decoder, case.received, dim=40, looking=looking)
    assert_within_bound(decoded, case.gradient)
    named = {*decoded.corrupt_slots, *decoded.erased_slots}
    assert large_lies(case) | set(case.missing) <= named <= {*case.liars, *case.missing}
    accused = decoded.corrupt_slots + decoded.suspect_slots
    expected = DecodeStatus.CORRECTED if accused else DecodeStatus.CLEAN
    assert decoded.status is expected


@given(decoder=decoders, kind=kinds, size=sizes, seed=seeds, data=st.data(), looking=st.booleans())
@settings(max_examples=60)
def test_errors_cost_two_and_erasures_one(
    decoder: RealDecoder, kind: str, size: float, seed: int, data: st.DataObject, looking: bool
) -> None:
    assume(decoder.byzantine > 0 or kind != "near-codeword")  # that attack needs 2 s slots
    checks = decoder.code.group_size - decoder.code.compression
    num_missing = data.draw(st.integers(0, checks), label="num_missing")
    num_liars = data.draw(st.integers(0, (checks - num_missing) // 2), label="num_liars")
    case = receive(decoder, kind, size, seed, num_liars, num_missing)
    assert_within_bound(decode(decoder, case.received, dim=40, looking=looking), case.gradient)


@given(decoder=decoders, kind=kinds, size=sizes, seed=seeds, data=st.data(), looking=st.booleans())
@settings(max_examples=60)
def test_k_plus_s_shares_that_agree_are_right_however_many_are_missing(
    decoder: RealDecoder, kind: str, size: float, seed: int, data: st.DataObject, looking: bool
) -> None:
    num_liars = data.draw(st.integers(0, decoder.byzantine), label="num_liars")
    num_missing = data.draw(st.integers(0, decoder.code.group_size - num_liars), label="num_missing")
    case = receive(decoder, kind, size, seed, num_liars, num_missing)
    decoded = decode(decoder, case.received, dim=40, looking=looking)
    if decoded.num_agreeing >= decoder.code.compression + decoder.byzantine:
        assert_within_bound(decoded, case.gradient)


@pytest.mark.parametrize("seed", range(30))
def test_s_liars_among_s_plus_k_shares_are_not_agreed_with_by_enough(seed: int) -> None:
    decoder = fourier_decoder(byzantine=3, compression=4)
    case = receive(decoder, "other-gradient", 1.0, seed, num_liars=3, num_missing=3)
    decoded = decoder.decode(case.received, dim=40)
    assert decoded.num_agreeing < decoder.byzantine + decoder.code.compression


def test_s_liars_among_too_few_shares_can_win_which_num_agreeing_tells() -> None:
    """So `SolonStrategy` requires k + s. Here three liars forge a result that has the budget of one lie."""
    decoder = fourier_decoder(byzantine=3, compression=4)
    cases = [receive(decoder, "other-gradient", 1.0, seed, num_liars=3, num_missing=3) for seed in range(30)]
    outcomes = [(case, decoder.decode(case.received)) for case in cases]
    wrong = [d for case, d in outcomes if d.ok and error_of(d, case.gradient) > d.error_bound]
    assert wrong
    assert all(decoded.num_agreeing < 7 for decoded in wrong)


@pytest.mark.parametrize("arrived", [0, 1, 2])
def test_fewer_than_k_shares_are_too_few(arrived: int) -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    shares = dict(list(shares_of(decoder.code, torch.ones(6)).items())[:arrived])
    decoded = decoder.decode(shares, dim=6)
    assert decoded.status is DecodeStatus.TOO_FEW_SHARES
    assert not decoded.ok
    assert decoded.gradient is None
    assert decoded.erased_slots == tuple(range(arrived, 7))
    assert (decoded.error_bound, decoded.residual, decoded.num_agreeing) == (math.inf, math.inf, 0)


def test_without_liars_exactly_k_shares_are_enough() -> None:
    decoder = fourier_decoder(byzantine=0, compression=3, stragglers=2)
    gradient = torch.arange(6.0)
    shares = shares_of(decoder.code, gradient)
    del shares[1], shares[4]
    decoded = decoder.decode(shares)
    assert decoded.status is DecodeStatus.CLEAN
    assert_within_bound(decoded, gradient)


def test_all_shares_not_finite_are_too_few() -> None:
    decoder = fourier_decoder(byzantine=1, compression=3)
    shares = shares_of(decoder.code, torch.full((6,), math.nan))
    decoded = decoder.decode(shares)
    assert decoded.status is DecodeStatus.TOO_FEW_SHARES
    assert decoded.erased_slots == (0, 1, 2, 3, 4)


# Beyond the guarantee


@pytest.mark.parametrize("decoder", [one for one in DECODERS if one.code.compression > 1], ids=repr)
@pytest.mark.parametrize("seed", range(5))
def test_one_liar_too_many_is_reported(decoder: RealDecoder, seed: int) -> None:
    code = decoder.code
    if code.group_size == code.compression:
        pytest.skip("without redundancy nothing can be detected")
    case = receive(decoder, "random", 1.0, seed, (code.group_size - code.compression) // 2 + 1)
    assert decoder.decode(case.received, dim=40).status is DecodeStatus.UNDECODABLE


@pytest.mark.parametrize("seed", range(10))
def test_s_plus_1_liars_can_pass_off_another_gradient(seed: int) -> None:
    """This can't be detected, because their gradient explains s + k shares, as does the true one."""
    decoder = fourier_decoder(byzantine=2, compression=4)
    case = receive(decoder, "other-gradient", 1.0, seed, num_liars=3)
    decoded = decoder.decode(case.received, dim=40)
    assert decoded.ok
    assert error_of(decoded, case.gradient) > 0.01 * float(case.gradient.norm()) > decoded.error_bound
    assert not set(decoded.corrupt_slots) & set(case.liars)


def test_stragglers_who_answer_leave_room_for_more_liars() -> None:
    decoder = fourier_decoder(byzantine=2, compression=4, stragglers=2)
    for num_liars, right in [(3, True), (4, False)]:
        case = receive(decoder, "other-gradient", 1.0, 0, num_liars)
        decoded = decoder.decode(case.received, dim=40)
        assert decoded.status is DecodeStatus.CORRECTED
        assert (error_of(decoded, case.gradient) <= decoded.error_bound) is right


# Symmetries


@given(
    decoder=decoders,
    kind=st.sampled_from(["random", "same", "near-codeword"]),
    seed=seeds,
    exponent=st.integers(-30, 60),
)
def test_scaling_by_a_power_of_two_scales_the_result(decoder: RealDecoder, kind: str, seed: int, exponent: int) -> None:
    case = receive(decoder, kind, 1.0, seed, decoder.byzantine)
    scaled = {slot: share * 2.0**exponent for slot, share in case.received.items()}
    plain = decoder.decode(case.received, generator=seeded(seed))
    result = decoder.decode(scaled, generator=seeded(seed))
    assert (result.status, result.corrupt_slots) == (plain.status, plain.corrupt_slots)
    assert result.gradient is not None
    assert plain.gradient is not None
    torch.testing.assert_close(result.gradient, plain.gradient * 2.0**exponent, rtol=0, atol=0)
    assert result.error_bound == pytest.approx(plain.error_bound * 2.0**exponent, rel=1e-3)


@given(decoder=decoders, seed=seeds, factor=st.sampled_from([1e-6, 1e6]), looking=st.booleans())
def test_scaling_by_a_million_scales_the_result(decoder: RealDecoder, seed: int, factor: float, looking: bool) -> None:
    case = receive(decoder, "random", 1.0, seed, decoder.byzantine)
    scaled = {slot: share * factor for slot, share in case.received.items()}
    decoded = decode(decoder, scaled, dim=40, looking=looking)
    assert decoded.corrupt_slots == case.liars
    assert_within_bound(decoded, case.gradient * factor)


@given(decoder=decoders, seed=seeds, turn=st.integers(1, 12), looking=st.booleans())
def test_turning_the_slots_turns_the_verdict(decoder: RealDecoder, seed: int, turn: int, looking: bool) -> None:
    case = receive(decoder, "random", 1.0, seed, decoder.byzantine)
    group_size = decoder.code.group_size
    turned = {}
    for slot, share in case.received.items():
        laps, target = divmod(slot + turn, group_size)
        # Half frequencies change sign with every lap around the circle.
        turned[target] = share * (-1) ** (laps * (decoder.code.compression % 2 == 0))
    decoded = decoder.decode(turned)
    plain = decode(decoder, case.received, looking=looking)
    assert decoded.corrupt_slots == tuple(sorted((slot + turn) % group_size for slot in case.liars))
    turned_size, size = (_size_of_sines(decoder.code, found.gradient) for found in (decoded, plain))
    assert turned_size == pytest.approx(size, rel=1e-5)


def _size_of_sines(code: RealCode, gradient: Tensor | None) -> float:
    """Return the norm of the sines' coefficients, for which all slots are equivalent."""
    assert gradient is not None
    columns = torch.nn.functional.pad(gradient, (0, -len(gradient) % code.compression)).view(-1, code.compression)
    return float(np.linalg.norm(np.linalg.pinv(code.unstretched) @ code.generator @ columns.double().numpy().T))


@given(
    seed=seeds,
    num_liars=st.integers(0, 2),
    kind=st.sampled_from(["random", "same", "near-codeword"]),
    looking=st.booleans(),
)
@settings(max_examples=40)
def test_the_verdict_is_that_of_the_oracle(seed: int, num_liars: int, kind: str, looking: bool) -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    case = receive(decoder, kind, 0.1, seed, num_liars, dim=15, dtype=torch.float64)
    received = torch.stack(list(case.received.values())).numpy()
    expected = decode_by_subsets(decoder.code.generator, received, 2, tolerance=1e-6)
    assert expected is not None
    decoded = decode(decoder, case.received, looking=looking)
    assert decoded.corrupt_slots == expected[1]
    assert decoded.gradient is not None
    np.testing.assert_allclose(decoded.gradient.numpy(), expected[0].T.reshape(-1), atol=1e-9)
