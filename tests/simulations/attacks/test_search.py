"""Attacks that search for the largest lie that passes."""

import math

import pytest
import torch
from torch import Tensor

from solon_fl.baselines.rules.bulyan import krum_scores
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import attacks as a

LIARS = [1, 4, 8]


def gradients(scale: float = 1.0, num_nodes: int = 12, dim: int = 40) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    common = torch.randn(dim, generator=rng, dtype=torch.float64)
    return scale * (common + torch.randn(num_nodes, dim, generator=rng, dtype=torch.float64))


def lies_of(attack: a.Attack, vectors: Tensor) -> Tensor:
    return attack.lies(vectors, LIARS, torch.Generator().manual_seed(0))


def honest_of(vectors: Tensor) -> Tensor:
    return vectors[[row for row in range(len(vectors)) if row not in LIARS]]


def trimmed(vectors: Tensor) -> Tensor:
    return vectors.sort(0).values[3:-3].mean(0)


SEARCHING: list[a.Attack] = [
    *(kind(deviation) for kind in (a.MinMax, a.MinSum) for deviation in ("unit", "std", "sign")),
    a.MinMax(aggregate=trimmed),
    a.FangKrum(),
    a.FangTrimmedMean(),
    a.TunedAlie(trimmed),
]


@pytest.mark.parametrize(
    "attack", SEARCHING, ids=[f"{type(attack).__name__}-{n}" for n, attack in enumerate(SEARCHING)]
)
def test_gradients_of_any_length_are_attacked_alike(attack: a.Attack) -> None:
    expected = lies_of(attack, gradients())
    assert (expected[0] - honest_of(gradients()).mean(0)).norm() > 0.5
    for scale in (1e-8, 1e-4, 1e4, 1e8):
        torch.testing.assert_close(lies_of(attack, gradients(scale)) / scale, expected, rtol=1e-5, atol=1e-6)
        in_float32 = lies_of(attack, gradients(scale).float()).double() / scale
        torch.testing.assert_close(in_float32, expected, rtol=1e-3, atol=1e-3)


def krums_choice(vectors: Tensor, lie: Tensor) -> int:
    attacked = vectors.clone()
    attacked[LIARS] = lie
    return int(krum_scores(torch.cdist(attacked, attacked).square(), len(LIARS)).argmin())


def test_fang_on_krum_is_the_farthest_lie_against_the_honest_sign_that_krum_chooses() -> None:
    vectors = gradients()
    lie = lies_of(a.FangKrum(), vectors)[0]
    size = float(lie.abs().max())
    torch.testing.assert_close(lie, -size * honest_of(vectors).mean(0).sign())
    assert krums_choice(vectors, lie) in LIARS
    assert krums_choice(vectors, 2 * lie) not in LIARS


def test_fang_on_the_trimmed_mean_stands_just_outside_the_honest_values() -> None:
    vectors = gradients()
    vectors[:, 0] = 0.0
    lies, honest = lies_of(a.FangTrimmedMean(), vectors), honest_of(vectors)
    for coordinate in range(1, vectors.shape[1]):
        values, told = honest[:, coordinate], lies[:, coordinate]
        if values.mean() > 0:
            least = float(values.min())
            assert min(least / 2, least * 2) <= told.min() <= told.max() <= least
        else:
            most = float(values.max())
            assert most <= told.min() <= told.max() <= max(most / 2, most * 2)
        assert len(set(told.tolist())) == 3
    assert lies[:, 0].tolist() == [0, 0, 0]
    with pytest.raises(ConfigurationError, match=r"factor=1\.0"):
        a.FangTrimmedMean(1.0)


def test_tuned_alie_moves_every_coordinate_against_its_sign_by_the_worst_shift() -> None:
    vectors = gradients()
    honest = honest_of(vectors)
    mean, deviation = honest.mean(0), honest.std(0, correction=0)

    def shift_against(aggregate: a.Aggregate) -> float:
        shifts = (mean - lies_of(a.TunedAlie(aggregate, (0.5, 1.0, 3.0)), vectors)[0]) / (deviation * mean.sign())
        torch.testing.assert_close(shifts, shifts[0].expand_as(shifts))
        return float(shifts[0])

    def near(received: Tensor) -> Tensor:  # drops vectors that are anywhere more than two deviations off
        kept = ((received - mean).abs() <= 2 * deviation + 1e-9).all(dim=1)
        return received[kept].mean(0) if kept.any() else mean

    assert shift_against(lambda received: received.mean(0)) == pytest.approx(3.0)
    assert shift_against(near) == pytest.approx(1.0)
    for candidates in ((), (0.0, 1.0), (math.inf,)):
        with pytest.raises(ConfigurationError, match=r"candidates=\("):
            a.TunedAlie(trimmed, candidates)
