"""Attacks against the code and the decoder."""

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from torch import Tensor

from solon_fl.coding import FourierCode, RealDecoder
from solon_fl.coding.real.projection import Projector
from solon_fl.simulations import attacks as a
from tests.simulations.attacks.vectors import CODE, DECODER, coded_shares, seeded, vectors_like_gradients
from tests.support import without_address


def deviations(attack: a.Attack, liars: list[int]) -> Tensor:
    shares = coded_shares()
    return attack.lies(shares, liars, seeded()) - shares[liars]


def typical_norm() -> float:
    return float(coded_shares().norm(dim=1).median())


def test_same_lie_adds_one_vector() -> None:
    added = deviations(a.SameLie(size=0.5), [1, 4])
    torch.testing.assert_close(added[0], added[1])
    assert float(added[0].norm()) == pytest.approx(0.5 * typical_norm(), rel=1e-6)


@pytest.mark.parametrize(
    ("attack", "malicious"),
    [
        (a.Constant(), lambda gradient: torch.full_like(gradient, -100)),
        (a.Reverse(), lambda gradient: -100 * gradient),
        (a.SignFlip(), lambda gradient: -gradient),
    ],
    ids=["constant", "reverse", "sign-flip"],
)
def test_encoded_sends_the_own_share_of_the_malicious_gradient(
    attack: a.Attack, malicious: Callable[[Tensor], Tensor]
) -> None:
    gradient = torch.randn(60, generator=seeded(2), dtype=torch.float64)  # the gradient of coded_shares
    lies = a.Encoded(CODE, attack).lies(coded_shares(), [1, 4], seeded())
    expected = torch.stack([CODE.encode(malicious(gradient), slot) for slot in (1, 4)])
    torch.testing.assert_close(lies, expected)


def test_near_codeword_is_nearly_explained_by_other_nodes() -> None:
    code = FourierCode(group_size=10, compression=4)
    shares = torch.stack([code.encode(torch.arange(40.0).double(), slot) for slot in range(10)])
    attack = a.NearCodeword(RealDecoder(code, byzantine=3), size=0.5)
    liars = attack.best_liars()
    assert len(liars) == 3
    crafted = attack.lies(shares, liars, seeded()) - shares[liars]
    assert int(torch.linalg.matrix_rank(crafted, rtol=1e-9)) == 1
    typical = float(shares.norm(dim=1).median())
    assert float(crafted.norm(dim=1).square().mean().sqrt()) == pytest.approx(0.5 * typical)
    plain = a.RandomGaussian().lies(shares, liars, seeded())
    assert unexplained(code, liars, crafted) < 0.1 < 0.4 < unexplained(code, liars, plain)


def unexplained(code: FourierCode, liars: list[int], added: Tensor) -> float:
    """Return the part of the lies' syndromes that the best s other rows cannot explain."""
    syndromes = code.parity[:, liars] @ added.numpy()
    others = [row for row in range(code.group_size) if row not in liars]
    parts = []
    for rows in combinations(others, len(liars)):
        columns = code.parity[:, rows]
        rest = syndromes - columns @ np.linalg.lstsq(columns, syndromes, rcond=None)[0]
        parts.append(float(np.linalg.norm(rest) / np.linalg.norm(syndromes)))
    return min(parts)


def test_other_gradient_agrees_with_k_minus_1_honest_shares() -> None:
    liars = [1, 4]
    received = coded_shares()
    received[liars] = a.OtherGradient(CODE, size=0.5).lies(received, liars, seeded())
    rows = [0, 1, 2, 4]  # the liars, and the first k - 1 honest rows: k + 1 equations for k unknowns
    matrix = torch.from_numpy(CODE.generator[rows])
    chunks = torch.linalg.lstsq(matrix, received[rows]).solution
    torch.testing.assert_close(matrix @ chunks, received[rows])
    added = received[liars] - coded_shares()[liars]
    assert float(added.norm(dim=1).square().mean().sqrt()) == pytest.approx(0.5 * typical_norm())


def test_partial_collusion_whispers_with_the_one_half_and_shouts_with_the_other() -> None:
    norms = deviations(a.PartialCollusion(DECODER, size=50), [1, 4]).norm(dim=1) / typical_norm()
    assert norms.tolist() == pytest.approx([3e-6, 50], rel=1e-3)


@pytest.mark.parametrize("liars", [[3], [1, 4], [0, 1, 2, 3]])
def test_below_tolerance_is_the_worst_of_the_lies_that_leave_the_residual_of_noise(liars: list[int]) -> None:
    shares = coded_shares()
    added = deviations(a.BelowTolerance(DECODER, size=0.7), liars).numpy()
    assert np.linalg.matrix_rank(added, rtol=1e-6) == 1
    scale = sorted(shares.norm(dim=1).tolist())[2 + 3 - 1]
    checks = CODE.parity[:, liars]
    assert np.linalg.norm(checks @ added) == pytest.approx(0.7 * math.sqrt(7) * 1e-6 * scale, rel=1e-6)
    solver = np.linalg.pinv(CODE.generator)[:, liars]
    # The largest ratio |solver w|^2 / |checks w|^2 is a generalised eigenvalue.
    largest = eigh(solver.T @ solver, checks.T @ checks, eigvals_only=True)[-1]
    ratio = float(np.linalg.norm(solver @ added) / np.linalg.norm(checks @ added))
    assert ratio == pytest.approx(math.sqrt(largest), rel=1e-6)


def test_projection_aware_is_invisible_to_the_projection_that_it_expects() -> None:
    lie = deviations(a.ProjectionAware(seed=3, size=2), [1])[0]
    assert float(lie.norm()) == pytest.approx(2 * typical_norm())
    expected, _ = Projector(seeded(3)).project([lie])
    fresh, _ = Projector().project([lie])
    assert np.linalg.norm(expected) < 1e-9 * float(lie.norm())
    assert np.linalg.norm(fresh) > 0.1 * float(lie.norm())


def test_projection_aware_has_nowhere_to_hide_in_16_columns() -> None:
    vectors = vectors_like_gradients(dim=16)
    torch.testing.assert_close(a.ProjectionAware().lies(vectors, [2], seeded()), vectors[[2]], rtol=0, atol=0)


# Their effect on a decode that trusts every share


def trusting_error(attack: a.Attack, liars: list[int]) -> float:
    """Return the relative error of the least-squares gradient of all shares."""
    honest = coded_shares()
    received = honest.clone()
    received[liars] = attack.lies(honest, liars, seeded())
    solver = np.linalg.pinv(CODE.generator)
    return float(np.linalg.norm(solver @ (received - honest).numpy()) / np.linalg.norm(solver @ honest.numpy()))


@pytest.mark.parametrize(
    "attack",
    [a.SameLie(), a.NearCodeword(DECODER), a.OtherGradient(CODE), a.PartialCollusion(DECODER), a.ProjectionAware()],
    ids=without_address,
)
def test_lies_to_the_decoder_ruin_one_that_trusts(attack: a.Attack) -> None:
    assert trusting_error(attack, [1, 4]) > 0.1


def test_below_tolerance_does_a_trusting_decoder_only_the_harm_that_noise_does() -> None:
    error = trusting_error(a.BelowTolerance(DECODER), [1, 4])
    assert DECODER.rtol < error <= DECODER.certificate
