import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import DecodeStatus
from solon_fl.coding.real.projection import BLOCK, NUM_PROJECTIONS, UNDERESTIMATE, Projector
from solon_fl.simulations.attacks import ProjectionAware
from tests.coding.real.problems import decode, fourier_decoder, seeded, shares_of
from tests.coding.real.received import assert_within_bound, receive
from tests.oracles import chernoff_underestimate


def projected_norms(rows: list[Tensor], seed: int) -> np.ndarray:
    return np.asarray(np.linalg.norm(Projector(seeded(seed)).project(rows)[0], axis=1))


@pytest.mark.slow
def test_underestimate_is_what_chernoff_allows() -> None:
    assert chernoff_underestimate(NUM_PROJECTIONS, 1e-9) == pytest.approx(UNDERESTIMATE, abs=0.1)
    assert chernoff_underestimate(NUM_PROJECTIONS, 1e-9) <= UNDERESTIMATE


@pytest.mark.slow
@pytest.mark.parametrize(("probability", "trials"), [(0.1, 500), (0.01, 2000)])
def test_chernoff_bound_holds_in_a_simulation_of_the_worst_case(probability: float, trials: int) -> None:
    row = torch.zeros(20)
    row[7] = 1.0  # rank one
    factor = chernoff_underestimate(NUM_PROJECTIONS, probability)
    norms = np.array([projected_norms([row], seed)[0] for seed in range(trials)])
    hidden = float((norms < 1 / factor).mean())
    assert hidden <= probability
    assert hidden > 0  # the factor is not absurdly large


@pytest.mark.parametrize("share_dim", [1, 100, BLOCK, 5 * BLOCK + 3])
def test_projected_norms_estimate_the_norms(share_dim: int) -> None:
    row = torch.rand(share_dim, generator=seeded(1)) + 0.1
    squares = [projected_norms([row], seed)[0] ** 2 for seed in range(200 if share_dim < BLOCK else 40)]
    # chi-square(16) / 16 times another one (less so over several blocks): a relative deviation of 0.52 at most
    assert np.mean(squares) == pytest.approx(float(row.square().sum()), rel=5 * 0.52 / math.sqrt(len(squares)))


@given(seed=st.integers(0, 2**32), share_dim=st.integers(1, 3 * BLOCK))
def test_norms_are_exact(seed: int, share_dim: int) -> None:
    rows = torch.randn(3, share_dim, generator=seeded(seed))
    _, norms = Projector().project(list(rows))
    np.testing.assert_allclose(norms, rows.double().norm(dim=1).numpy(), rtol=1e-12)


@given(seed=st.integers(0, 2**32), factor=st.floats(-1e6, 1e6))
def test_projection_is_linear(seed: int, factor: float) -> None:
    a, b = torch.randn(2, BLOCK + 9, dtype=torch.float64, generator=seeded(seed))
    projected, _ = Projector(seeded(seed)).project([a, b, a + factor * b])
    np.testing.assert_allclose(projected[2], projected[0] + factor * projected[1], rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_disturbs_no_other(value: float) -> None:
    rows = torch.randn(4, BLOCK + 5, generator=seeded(2))
    clean, clean_norms = Projector(seeded(3)).project(list(rows))
    rows[1, -1] = value
    spoilt, norms = Projector(seeded(3)).project(list(rows))
    assert not np.isfinite(norms[1])
    np.testing.assert_array_equal(np.delete(spoilt, 1, 0), np.delete(clean, 1, 0))
    np.testing.assert_array_equal(np.delete(norms, 1), np.delete(clean_norms, 1))


@pytest.mark.parametrize("seed", range(20))
def test_opposite_lies_in_two_blocks_are_seen(seed: int) -> None:
    lie = torch.zeros(2 * BLOCK)
    lie[17] = 1.0
    lie[BLOCK + 17] = -1.0
    assert projected_norms([lie], seed)[0] > math.sqrt(2) / UNDERESTIMATE


@pytest.mark.parametrize("seed", range(20))
def test_two_opposite_entries_are_seen(seed: int) -> None:
    lie = torch.zeros(100)
    lie[3], lie[70] = 1.0, -1.0
    assert projected_norms([lie], seed)[0] > math.sqrt(2) / UNDERESTIMATE


def test_entropy_is_fresh_by_default() -> None:
    row = torch.ones(10)
    assert not np.array_equal(Projector().project([row])[0], Projector().project([row])[0])


def test_a_generator_reproduces_the_projection() -> None:
    row = torch.ones(10)
    np.testing.assert_array_equal(Projector(seeded(5)).project([row])[0], Projector(seeded(5)).project([row])[0])


def test_fresh_projections_are_drawn_from_the_operating_systems_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed could be guessed, since torch uses only 32 bits of it."""
    calls: list[tuple[object, ...]] = []
    fixed = np.random.Generator(np.random.PCG64(7))

    def default_rng(*arguments: object) -> np.random.Generator:
        calls.append(arguments)
        return fixed

    monkeypatch.setattr("solon_fl.coding.real.projection.np.random.default_rng", default_rng)
    row = torch.ones(10)
    first = Projector().project([row])[0]
    expected = np.random.Generator(np.random.PCG64(7))
    block, mixing = expected.standard_normal((10, NUM_PROJECTIONS)), expected.standard_normal((16, 16))
    np.testing.assert_allclose(first[0], row.numpy() @ block @ mixing / NUM_PROJECTIONS, rtol=1e-12)
    assert calls == [()]


# In a decode


def test_the_default_projection_cannot_be_foreseen() -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    gradient = torch.randn(300, generator=seeded(0))
    shares = shares_of(decoder.code, gradient)
    liars = [1, 4]
    lies = ProjectionAware(seed=11).lies(torch.stack(list(shares.values())), liars, seeded(1))
    shares.update(zip(liars, lies, strict=True))
    for _ in range(20):
        decoded = decoder.decode(shares)
        assert decoded.corrupt_slots == (1, 4)
        assert_within_bound(decoded, gradient)


def test_a_lie_that_foresaw_the_projection_is_noticed() -> None:
    """Only rounding is left of it in the projection, which may or may not reveal the liars."""
    decoder = fourier_decoder(byzantine=2, compression=3)
    gradient = torch.randn(300, generator=seeded(0), dtype=torch.float64)
    shares = shares_of(decoder.code, gradient)
    liars = [1, 4]
    lies = ProjectionAware(seed=11).lies(torch.stack(list(shares.values())), liars, seeded(1))
    seen, _ = Projector(seeded(11)).project([lie - shares[slot] for slot, lie in zip(liars, lies, strict=True)])
    assert np.abs(seen).max() < 1e-12
    shares.update(zip(liars, lies, strict=True))
    decoded = decode(decoder, shares, looking=True, seed=11)
    assert decoded.status is DecodeStatus.UNDECODABLE or decoded.corrupt_slots == (1, 4)
    assert decode(decoder, shares, looking=True, seed=12).corrupt_slots == (1, 4)


def test_a_generator_reproduces_a_decode() -> None:
    decoder = fourier_decoder(byzantine=2, compression=3)
    case = receive(decoder, "random", 1.0, 0, 2)
    a, b = (decoder.decode(case.received, generator=seeded(3)) for _ in range(2))
    torch.testing.assert_close(a.gradient, b.gradient, rtol=0, atol=0)
    assert (a.residual, a.error_bound) == (b.residual, b.error_bound)
