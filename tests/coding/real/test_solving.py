"""Solving: interpolation through k shares, and least squares over all kept shares."""

import math
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import DecodeStatus, RealDecoder
from solon_fl.coding.real import solving
from solon_fl.coding.sections import Sections
from tests.coding.real.problems import decode, error_of, fourier_decoder, seeded, shares_of
from tests.coding.real.received import assert_within_bound, decoders, dtypes, kinds, receive, seeds, sizes


def test_an_honest_round_of_a_systematic_code_returns_the_received_bits() -> None:
    decoder = fourier_decoder(byzantine=5, compression=10)
    gradient = torch.randn(997, generator=seeded(3))
    assert torch.equal(cast(Tensor, decoder.decode(shares_of(decoder.code, gradient), dim=997).gradient), gradient)


@pytest.fixture
def blocks_of_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "CPU_COLUMNS", 8)


@pytest.mark.usefixtures("blocks_of_8")
@pytest.mark.parametrize("value", [5.0, 1e-3, 1e30, math.nan, math.inf])
@pytest.mark.parametrize("byzantine", [1, 2, 5])
def test_liars_who_lie_in_different_columns_are_all_named(byzantine: int, value: float) -> None:
    """With s = 5 there are more such liars than guesses, so all columns are projected."""
    decoder = fourier_decoder(byzantine=byzantine, compression=10)
    gradient = torch.randn(1000, generator=seeded(byzantine))
    shares = shares_of(decoder.code, gradient)
    liars = tuple(range(1, 2 * byzantine, 2)) if value < 1e20 else tuple(range(byzantine))
    for number, slot in enumerate(liars):
        shares[slot] = shares[slot].clone()
        shares[slot][8 * number + 50 + number] = value
    decoded = decoder.decode(shares, dim=1000)
    assert_within_bound(decoded, gradient)
    assert (decoded.corrupt_slots + decoded.erased_slots) == liars
    assert error_of(decoded, gradient) < 1e-5 * float(gradient.norm())


@pytest.mark.usefixtures("blocks_of_8")
@pytest.mark.parametrize("num_liars", [3, 4])
def test_too_many_liars_are_too_many_though_they_take_turns(num_liars: int) -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    shares = shares_of(decoder.code, torch.randn(300, generator=seeded(1)))
    for slot in range(num_liars):
        shares[slot] = shares[slot].clone()
        shares[slot][20 * slot] = 9.0
    assert decoder.decode(shares).status is DecodeStatus.UNDECODABLE


def test_rounding_that_may_hide_a_residual_is_in_the_bound() -> None:
    decoder = fourier_decoder(byzantine=5, compression=10)
    shares = shares_of(decoder.code, torch.randn(1000, generator=seeded(1)))
    fast, exact = (decode(decoder, shares, looking=looking) for looking in (False, True))
    assert 1.5 * exact.error_bound < fast.error_bound < 5 * exact.error_bound


@pytest.mark.usefixtures("blocks_of_8")
@given(decoder=decoders, kind=kinds, size=sizes, seed=seeds, dtype=dtypes, first=st.integers(0, 12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lies_that_start_late_stay_in_the_bound(
    decoder: RealDecoder, kind: str, size: float, seed: int, dtype: torch.dtype, first: int
) -> None:
    dim = 100 * decoder.code.compression
    case = receive(decoder, kind, size, seed, decoder.byzantine, dim=dim, dtype=dtype)
    honest = shares_of(decoder.code, case.gradient)
    for slot in case.liars:
        case.received[slot] = torch.cat([honest[slot][: 8 * first], case.received[slot][8 * first :]])
    assert_within_bound(decoder.decode(case.received, dim=dim), case.gradient)


def test_a_device_that_multiplies_in_less_than_float32_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    gradient = torch.randn(300, generator=seeded(0))
    generator, shares = decoder.code.generator, shares_of(decoder.code, gradient)
    multiply, columns = Tensor.addmm_, Sections.whole(100)

    def rounding(self: Tensor, a: Tensor, b: Tensor, *, alpha: float) -> Tensor:
        return multiply(self, a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype), alpha=alpha)

    assert isinstance(solving.interpolate(generator, (), list(shares.values()), 300, columns, 1e-4), solving.Solution)
    monkeypatch.setattr(Tensor, "addmm_", rounding)
    assert solving.interpolate(generator, (), list(shares.values()), 300, columns, 1e-4) is None
    k_rows = list(shares.values())[:3]  # nothing to compare, but the result is a product, too
    assert solving.interpolate(generator[:3], (), k_rows, 300, columns, 1e-4) is None
    shares[2], shares[5] = -shares[2], 2 * shares[5]
    decoded = decoder.decode(shares)
    assert decoded.corrupt_slots == (2, 5)
    assert_within_bound(decoded, gradient)
    assert error_of(decoded, gradient) < 1e-6 * float(gradient.norm())


def test_an_accused_row_that_is_honest_makes_the_guess_void() -> None:
    """The gradient is tiny in the first columns, where noise looks loud although it is not over all columns."""
    decoder = fourier_decoder(byzantine=2, compression=3)
    gradient = torch.randn(1000, 3, generator=seeded(0))
    gradient[:10] *= 1e-6
    shares = shares_of(decoder.code, gradient.reshape(-1))
    shares[3][:10] *= 1.01
    with pytest.MonkeyPatch.context() as patch_columns:
        patch_columns.setattr(solving, "CPU_COLUMNS", 10)
        decoded = decoder.decode(shares)
    assert decoded.status is DecodeStatus.CLEAN
    assert_within_bound(decoded, gradient.reshape(-1))


@pytest.mark.parametrize("size", [1e-15, 1e-19, 1e-22, 1e-24, 1e-32])
@pytest.mark.parametrize("missing", [0, 2, 4])
def test_gradients_whose_squares_vanish_in_float32_stay_within_the_bound(size: float, missing: int) -> None:
    """Honest shares are off by as much as rtol allows. With four missing, only k are left, without a comparison."""
    decoder = fourier_decoder(byzantine=2, compression=6)
    rng = np.random.default_rng(missing)
    for _ in range(10):
        gradient = (rng.normal(size=600) * size).astype(np.float32).astype(np.float64)
        rows = decoder.code.generator @ gradient.reshape(100, 6).T
        kept = rng.permutation(10)[missing:]
        noise = rng.normal(size=rows.shape)
        allowed = 0.9 * decoder.rtol * np.sort(np.linalg.norm(rows[kept], axis=1))[5]
        rows += allowed * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        shares = {int(slot): torch.from_numpy(rows[slot].astype(np.float32)) for slot in kept}
        decoded = decoder.decode(shares, dim=600)
        assert decoded.gradient is not None
        error = np.linalg.norm(decoded.gradient.double().numpy() - gradient)
        assert error <= decoded.error_bound


@pytest.mark.parametrize("liars", [(), (1,)])
@pytest.mark.parametrize("seed", range(5))
def test_a_gradient_of_the_largest_floats_stays_finite(liars: tuple[int, ...], seed: int) -> None:
    """Rounding must not overflow. One chunk of every column holds such a number, so that all shares are finite."""
    decoder, largest = fourier_decoder(byzantine=2, compression=5), torch.finfo(torch.float32).max
    columns = torch.arange(20)
    chunks = torch.zeros(5, 20, dtype=torch.float64)
    signs = torch.randint(0, 2, (20,), generator=seeded(seed)) * 2.0 - 1
    chunks[columns % 5, columns] = largest * signs.double()
    exact = torch.from_numpy(decoder.code.generator) @ chunks
    noise = torch.randn(exact.shape, generator=seeded(seed), dtype=torch.float64)
    noise *= 0.9e-6 * exact.norm(dim=1).min() / noise.norm(dim=1, keepdim=True)
    shares = dict(enumerate((exact + noise).clamp(-largest, largest).float()))
    for liar in liars:
        shares[liar] = -shares[liar]
    decoded = decoder.decode(shares)
    assert decoded.gradient is not None
    assert decoded.gradient.isfinite().all()
    assert error_of(decoded, chunks.T.reshape(-1)) <= decoded.error_bound
