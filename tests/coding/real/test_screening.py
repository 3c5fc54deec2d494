"""Shares that are too large to be honest, and numbers whose squares overflow or underflow."""

import numpy as np
import pytest
import torch

from solon_fl import DecodeStatus, FourierCode, RealCode, RealDecoder, VandermondeCode
from solon_fl.coding._types import FloatArray
from solon_fl.coding.real.screening import screen
from tests.coding.real.problems import fourier_decoder, seeded, shares_of, smallest_decoder
from tests.coding.real.received import assert_within_bound, receive


def test_no_row_is_absurd_that_s_small_lies_could_make_look_so() -> None:
    decoder = fourier_decoder(byzantine=3, compression=4)
    norms = np.array([0, 0, 0, 1, 1, 1, 1e9])  # the zeros may be the lies
    assert _rows_and_scale(decoder, norms) == ([0, 1, 2, 3, 4, 5, 6], 1e9)


def test_every_absurd_row_leaves_one_liar_less() -> None:
    decoder = fourier_decoder(byzantine=3, compression=4)
    norms = np.array([1, 1, 1, 1e12, 1e4, 1, 1, 1])  # 1e4 is absurd unless two of the small norms may be lies
    assert _rows_and_scale(decoder, norms) == ([0, 1, 2, 5, 6, 7], 1.0)


def test_a_row_that_is_absurd_in_one_class_of_tensors_is_absurd() -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    norms = np.array([[1, 1, 1, 1, 1, 1, 1], [1e9, 1e9, 1e9, 1e9, 1e9, 1e16, 1e9]])
    screened = screen(decoder.code, list(range(7)), norms, np.zeros(2), rtol=1e-6, byzantine=2)
    assert screened.alive == [0, 1, 2, 3, 4, 6]
    np.testing.assert_allclose(screened.noise, np.sqrt(7) * 1e-6 * np.array([1, 1e9]))


def _rows_and_scale(decoder: RealDecoder, norms: FloatArray) -> tuple[list[int], float]:
    rows = list(range(len(norms)))
    screened = screen(decoder.code, rows, norms[None], np.zeros(1), rtol=decoder.rtol, byzantine=decoder.byzantine)
    return screened.alive, round(float(screened.noise[0]) / np.sqrt(decoder.code.group_size) / decoder.rtol, 6)


def test_a_lie_screened_by_its_size_costs_as_little_as_a_missing_share() -> None:
    decoder = fourier_decoder(byzantine=3, compression=4)
    case = receive(decoder, "random", 1.0, 0, num_liars=3, num_missing=1)  # leaves room to correct two lies
    assert decoder.decode(case.received, dim=40).status is DecodeStatus.UNDECODABLE
    case.received[case.liars[1]] *= 1e9
    decoded = decoder.decode(case.received, dim=40)
    assert decoded.corrupt_slots == case.liars
    assert_within_bound(decoded, case.gradient)


# Numbers at the limits of their dtype


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_gradients_shorter_than_k(dim: int) -> None:
    decoder = fourier_decoder(byzantine=2, compression=6)
    case = receive(decoder, "random", 1.0, 3, 2, dim=dim)
    decoded = decoder.decode(case.received, dim=dim)
    assert decoded.corrupt_slots == case.liars
    assert_within_bound(decoded, case.gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lie", [0.0, 1e-30, 1.0, 1e30])
def test_a_gradient_of_zeros(dtype: torch.dtype, lie: float) -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    shares = shares_of(decoder.code, torch.zeros(9, dtype=dtype))
    shares[1] += lie
    shares[5] -= lie
    decoded = decoder.decode(shares)
    assert decoded.corrupt_slots == ((1, 5) if lie else ())
    torch.testing.assert_close(decoded.gradient, torch.zeros(9, dtype=dtype), rtol=0, atol=0)
    assert decoded.error_bound < 1e-40


@pytest.mark.parametrize("seed", range(10))
def test_a_gradient_of_denormal_numbers(seed: int) -> None:
    decoder = fourier_decoder(byzantine=2, compression=6)
    gradient = torch.randint(-4, 5, (60,), generator=seeded(seed)).float() * 2.0**-149
    shares = shares_of(decoder.code, gradient)
    shares[3] = torch.full((10,), 1e-20)
    decoded = decoder.decode(shares)
    assert decoded.corrupt_slots == (3,)
    assert_within_bound(decoded, gradient)


def test_shares_of_which_most_are_rounded_to_zero() -> None:
    decoder = fourier_decoder(byzantine=1, compression=4, stragglers=1)
    gradient = torch.tensor([0.0, 0.0, 0.0, 2.0**-149])
    shares = shares_of(decoder.code, gradient)
    assert [float(share) for share in shares.values()] == [0, 0, 0, 0, 2.0**-149, 2.0**-149, 2.0**-149]
    decoded = decoder.decode(shares)
    assert decoded.status is DecodeStatus.CLEAN
    assert_within_bound(decoded, gradient)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-100, 1e100, 1e140])
def test_float64_gradients_of_any_size(scale: float) -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    gradient = scale * torch.linspace(-1, 1, 30, dtype=torch.float64)
    decoded = decoder.decode(shares_of(decoder.code, gradient) | {2: torch.full((10,), 1e149, dtype=torch.float64)})
    assert decoded.corrupt_slots == (2,)
    assert_within_bound(decoded, gradient)


def test_float64_lies_among_numbers_whose_squares_underflow() -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    gradient = 1e-165 * torch.linspace(-1, 1, 30, dtype=torch.float64)
    shares = shares_of(decoder.code, gradient)
    assert_within_bound(decoder.decode(shares | {2: shares[2] + 1e-164, 4: -shares[4]}), gradient)


def test_float64_gradients_whose_squares_overflow_are_reported() -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    shares = shares_of(decoder.code, 1e152 * torch.linspace(-1, 1, 30, dtype=torch.float64))
    assert decoder.decode(shares).status is DecodeStatus.TOO_FEW_SHARES


@pytest.mark.parametrize("lie", [1e155, 1e308])
def test_float64_shares_near_overflow_are_erasures(lie: float) -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    gradient = torch.linspace(-1, 1, 30, dtype=torch.float64)
    shares = shares_of(decoder.code, gradient)
    shares[2], shares[4] = torch.full((10,), lie, dtype=torch.float64), shares[4] + 1
    decoded = decoder.decode(shares)
    assert (decoded.erased_slots, decoded.corrupt_slots) == ((2,), (4,))
    assert_within_bound(decoded, gradient)


@pytest.mark.parametrize("kind", [FourierCode, VandermondeCode])
@pytest.mark.parametrize("start", range(7))
def test_k_minus_1_shares_of_zeros_and_liars_who_send_zeros(kind: type[RealCode], start: int) -> None:
    decoder = smallest_decoder(kind, byzantine=2, compression=3)
    zero_slots = [start, (start + 1) % 7]
    null_vector = torch.from_numpy(np.linalg.svd(decoder.code.generator[zero_slots])[2][-1])
    gradient = torch.outer(torch.linspace(1, 2, 10, dtype=torch.float64), null_vector).reshape(-1)
    shares = shares_of(decoder.code, gradient)
    for slot in zero_slots:
        torch.testing.assert_close(shares[slot], torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-14)
    liars = tuple(sorted({(start + 3) % 7, (start + 5) % 7}))
    decoded = decoder.decode(shares | dict.fromkeys(liars, torch.zeros(10, dtype=torch.float64)))
    assert decoded.corrupt_slots == liars
    assert_within_bound(decoded, gradient)


@pytest.mark.parametrize("exponent", [3, 8, 30])
def test_one_huge_lie_does_not_hide_a_small_one(exponent: int) -> None:
    decoder = fourier_decoder(byzantine=2, compression=6)
    case = receive(decoder, "random", 1e-3, 1, 2)
    case.received[case.liars[0]] = torch.full_like(case.received[0], 10.0**exponent)
    decoded = decoder.decode(case.received, dim=40)
    assert decoded.corrupt_slots == case.liars
    assert_within_bound(decoded, case.gradient)


def test_more_huge_lies_than_the_budget_are_reported() -> None:
    decoder = fourier_decoder(byzantine=2, compression=6)
    for num_liars in range(3, decoder.code.group_size + 1):
        case = receive(decoder, "random", 1e20, 1, num_liars)
        assert decoder.decode(case.received, dim=40).status is DecodeStatus.UNDECODABLE
