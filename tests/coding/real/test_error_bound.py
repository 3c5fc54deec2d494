"""The error bounds: `Decoded.error_bound` for any shares, and `RealDecoder.certificate`, known in advance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solon_fl import DecodeStatus, FourierCode, RealCode, RealDecoder, VandermondeCode
from tests.coding.real.problems import decode, error_of, fourier_decoder, seeded, shares_of, smallest_decoder
from tests.coding.real.received import assert_within_bound, decoders, receive, seeds, typical_norm


@pytest.mark.slow
@given(
    decoder=decoders.filter(lambda one: one.byzantine > 0),
    seed=seeds,
    decade=st.floats(-7.5, -3),
    looking=st.booleans(),
)
@settings(max_examples=60)
def test_lies_about_as_small_as_the_tolerance_do_no_more_than_the_certificate(
    decoder: RealDecoder, seed: int, decade: float, looking: bool
) -> None:
    case = receive(decoder, "near-codeword", 10**decade, seed, decoder.byzantine)
    decoded = decode(decoder, case.received, dim=40, looking=looking)
    assert_within_bound(decoded, case.gradient)
    assert error_of(decoded, case.gradient) <= decoder.certificate * float(case.gradient.norm())


KINDS: list[type[RealCode]] = [FourierCode, VandermondeCode]
LYING_DECODERS = [
    smallest_decoder(kind, byzantine=s, compression=k) for kind in KINDS for s, k in [(1, 1), (1, 3), (2, 3), (3, 4)]
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("decoder", LYING_DECODERS, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_lies_below_the_tolerance_pass_and_do_what_noise_may(
    decoder: RealDecoder, dtype: torch.dtype, seed: int
) -> None:
    case = receive(decoder, "below-tolerance", 0.9, seed, decoder.byzantine, dtype=dtype)
    decoded = decoder.decode(case.received, dim=40)
    assert decoded.status is DecodeStatus.CLEAN
    assert_within_bound(decoded, case.gradient)
    size = float(case.gradient.norm())
    assert 0.1 * decoder.rtol * size < error_of(decoded, case.gradient) <= decoder.certificate * size


@pytest.mark.parametrize("decoder", LYING_DECODERS, ids=repr)
@pytest.mark.parametrize("size", [1.2, 2.0, 5.0, 30.0])
@pytest.mark.parametrize("seed", range(3))
def test_lies_just_above_the_tolerance_are_noticed_and_stay_in_the_bound(
    decoder: RealDecoder, size: float, seed: int
) -> None:
    case = receive(decoder, "below-tolerance", size, seed, decoder.byzantine)
    decoded = decoder.decode(case.received, dim=40)
    accused = {*decoded.corrupt_slots, *decoded.suspect_slots}
    assert accused
    assert accused <= set(case.liars)
    assert_within_bound(decoded, case.gradient)


@pytest.mark.parametrize("decoder", LYING_DECODERS, ids=repr)
@pytest.mark.parametrize("size", [1e3, 1e5])
@pytest.mark.parametrize("seed", range(3))
def test_lies_well_above_the_tolerance_are_located(decoder: RealDecoder, size: float, seed: int) -> None:
    case = receive(decoder, "below-tolerance", size, seed, decoder.byzantine)
    decoded = decoder.decode(case.received, dim=40)
    assert decoded.corrupt_slots == case.liars
    assert_within_bound(decoded, case.gradient)
    assert error_of(decoded, case.gradient) <= 1e-6 * float(case.gradient.norm())


@pytest.mark.parametrize("seed", range(20))
def test_what_disagrees_by_more_than_noise_is_looked_at_again(seed: int) -> None:
    """Less than three times the noise passes at first, but then turns out to be more than noise."""
    decoder = fourier_decoder(byzantine=2, compression=3)
    gradient = torch.randn(300, generator=seeded(seed), dtype=torch.float64)
    shares = shares_of(decoder.code, gradient)
    noise = math.sqrt(7) * decoder.rtol * typical_norm(shares)
    shares[4] = shares[4] + 3 * noise * torch.nn.functional.normalize(torch.randn(100, generator=seeded(9)), dim=0)
    decoded = decoder.decode(shares, generator=seeded(seed))
    assert decoded.corrupt_slots == (4,)
    assert error_of(decoded, gradient) < 1e-12


@pytest.mark.parametrize("sizes", [(), (1.0,), (1e-4, 1.0), (1e-5, 3e-5), (1e-6, 1e-6)], ids=str)
@pytest.mark.parametrize("looking", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_error_bound_is_the_documented_one(sizes: tuple[float, ...], seed: int, looking: bool) -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    code = decoder.code
    gradient = torch.randn(30, generator=seeded(seed), dtype=torch.float64)
    matrix = torch.stack(list(shares_of(code, gradient).values())).numpy()
    for slot, size in zip((5, 2), sizes, strict=False):
        direction = np.random.default_rng(seed).normal(size=10)
        matrix[slot] += size * direction / np.linalg.norm(direction)
    decoded = decode(decoder, dict(enumerate(torch.from_numpy(matrix))), looking=looking)

    accused = sorted(decoded.corrupt_slots + decoded.suspect_slots)
    kept = [slot for slot in range(7) if slot not in accused]
    assert decoded.gradient is not None
    chunks = decoded.gradient.reshape(-1, 3).T.numpy()
    if looking:
        expected = np.linalg.lstsq(code.generator[kept], matrix[kept], rcond=None)[0]
        np.testing.assert_allclose(chunks, expected, rtol=1e-12)
    deviations = np.linalg.norm(matrix - code.generator @ chunks, axis=1)
    scale = np.sort(np.linalg.norm(matrix, axis=1))[2 + 3 - 1]  # the (s + k)-th smallest
    noise = math.sqrt(7) * decoder.rtol * scale
    residual = np.linalg.norm(deviations[kept])
    first = code.worst_amplification(len(kept) - 2) * (residual + noise)
    doubtful = deviations[[slot for slot in accused if deviations[slot] <= first + noise]]
    second = code.worst_amplification(7 - 2) * (residual + noise + np.linalg.norm(doubtful))
    rounding = np.finfo(np.float64).eps * np.linalg.norm(chunks)
    assert decoded.residual == pytest.approx(residual, rel=1e-6, abs=1e-12)
    assert decoded.error_bound == pytest.approx(min(first, second) + rounding, rel=1e-6)


def test_s_lies_below_the_tolerance_stay_in_the_bound_if_only_s_plus_k_shares_are_there() -> None:
    """The lies exceed the budget, but all shares agree. So the bound assumes only that k shares are honest."""
    decoder = fourier_decoder(byzantine=3, compression=4)
    code = decoder.code
    gradient = torch.randn(40, generator=seeded(1), dtype=torch.float64)
    honest, liars = [0, 1, 2, 3], [5, 6, 7]
    shares = {slot: share for slot, share in shares_of(code, gradient).items() if slot in honest + liars}
    noise = math.sqrt(7) * decoder.rtol * typical_norm(shares)
    hidden = np.linalg.svd(code.generator[honest])[2][-1]  # hardly changes the shares of four neighbours
    size = 0.9 * noise * code.amplification
    direction = torch.nn.functional.normalize(torch.randn(10, generator=seeded(2), dtype=torch.float64), dim=0)
    for slot in liars:
        shares[slot] = shares[slot] + size * float(code.generator[slot] @ hidden) * direction
    decoded = decoder.decode(shares)
    assert decoded.num_agreeing == 7
    assert_within_bound(decoded, gradient)
    assert error_of(decoded, gradient) > code.worst_amplification(6) * (decoded.residual + noise)


@pytest.mark.parametrize("looking", [False, True])
def test_the_rounding_of_the_result_is_in_the_bound(looking: bool) -> None:
    decoder = fourier_decoder(byzantine=0, compression=3, stragglers=1, rtol=1e-12)
    shares = {slot: torch.linspace(1, slot + 2, 50) for slot in range(1, 4)}  # float32 can't hold their gradient
    rows = torch.from_numpy(decoder.code.generator[1:])
    gradient = torch.linalg.solve(rows, torch.stack(list(shares.values())).double())
    decoded = decode(decoder, shares, looking=looking)
    assert decoded.residual < 1e-12
    assert 1e-8 < error_of(decoded, gradient.T.reshape(-1)) <= decoded.error_bound
