import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from solon_fl.errors import ConfigurationError
from solon_fl.simulations import attacks as a
from tests.simulations.attacks.vectors import CODE, DECODER, coded_shares, seeded, vectors_like_gradients
from tests.support import without_address


def mean_of(vectors: Tensor) -> Tensor:
    return vectors.mean(0)


def median_of(vectors: Tensor) -> Tensor:
    return vectors.median(0).values


def closest_to_the_others(vectors: Tensor) -> Tensor:
    """Krum for two liars: the vector with the smallest sum of squared distances to its n - 4 nearest others."""
    distances = torch.cdist(vectors, vectors).square().sort(dim=1).values[:, 1 : len(vectors) - 3]
    return vectors[int(distances.sum(1).argmin())]


ALL: list[a.Attack] = [
    a.Reverse(),
    a.SignFlip(),
    a.Constant(),
    a.RandomGaussian(),
    a.RandomGaussian(3.0, relative=True),
    a.NotFinite(),
    a.BitFlip(),
    a.Alie(),
    a.InnerProduct(),
    a.FallOfEmpires(mean_of),
    a.TunedAlie(mean_of),
    a.FangKrum(),
    a.FangTrimmedMean(),
    a.Mimic(),
    a.MinMax(),
    a.MinMax(aggregate=mean_of),
    a.MinSum(),
    a.MinSum(aggregate=mean_of),
    a.SameLie(),
    a.NearCodeword(DECODER),
    a.OtherGradient(CODE),
    a.PartialCollusion(DECODER),
    a.ProjectionAware(),
    a.BelowTolerance(DECODER),
    a.Encoded(CODE, a.Reverse()),
]


# All attacks


@pytest.mark.parametrize("attack", ALL, ids=without_address)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("liars", [[], [4], [1, 4]])
def test_a_lie_is_like_the_vectors_and_leaves_them_alone(
    attack: a.Attack, dtype: torch.dtype, liars: list[int]
) -> None:
    vectors = vectors_like_gradients(dtype=dtype)
    before = vectors.clone()
    lies = attack.lies(vectors, liars, seeded())
    assert lies.shape == (len(liars), 30)
    assert lies.dtype == dtype
    torch.testing.assert_close(vectors, before, rtol=0, atol=0)


@pytest.mark.parametrize("attack", ALL, ids=without_address)
def test_a_default_device_changes_no_lie(attack: a.Attack) -> None:
    vectors = vectors_like_gradients()
    expected = attack.lies(vectors, [0, 3], seeded(5))
    rng = seeded(5)
    torch.set_default_device("meta")
    try:
        torch.testing.assert_close(attack.lies(vectors, [0, 3], rng), expected, equal_nan=True)
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("attack", ALL, ids=without_address)
def test_a_seed_reproduces_a_lie(attack: a.Attack) -> None:
    vectors = vectors_like_gradients()
    first, second = (attack.lies(vectors, [0, 3], seeded(5)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("attack", [attack for attack in ALL if not attack.omniscient], ids=without_address)
def test_attacks_that_are_not_omniscient_need_their_own_vector_only(attack: a.Attack) -> None:
    vectors = vectors_like_gradients()
    alone = attack.lies(vectors[3:4], [0], seeded())
    torch.testing.assert_close(attack.lies(vectors, [3], seeded()), alone, rtol=0, atol=0, equal_nan=True)


# Formulas


def test_reverse_is_minus_c_times_the_own_vector() -> None:
    vectors = vectors_like_gradients()
    torch.testing.assert_close(a.Reverse().lies(vectors, [2], seeded())[0], -100 * vectors[2])
    torch.testing.assert_close(a.Reverse(factor=3).lies(vectors, [2], seeded())[0], -3 * vectors[2])


def test_sign_flip_is_minus_the_own_vector() -> None:
    vectors = vectors_like_gradients()
    torch.testing.assert_close(a.SignFlip().lies(vectors, [2, 5], seeded()), -vectors[[2, 5]])


def test_constant_is_the_same_everywhere() -> None:
    assert (a.Constant().lies(vectors_like_gradients(), [2, 5], seeded()) == -100).all()
    assert (a.Constant(7).lies(vectors_like_gradients(), [2, 5], seeded()) == 7).all()


def test_random_is_gaussian_of_deviation_200_and_differs_between_liars() -> None:
    lies = a.RandomGaussian().lies(vectors_like_gradients(dim=20_000), [2, 5], seeded())
    assert float(lies.std()) == pytest.approx(200, rel=0.02)
    assert abs(float(lies.mean())) < 5
    assert abs(float(torch.corrcoef(lies)[0, 1])) < 0.05


def test_random_relative_to_the_own_vector_has_its_norm() -> None:
    vectors = vectors_like_gradients(dim=20_000)
    vectors[2] *= 5
    absolute = a.RandomGaussian(3.0).lies(vectors, [2, 5], seeded())
    relative = a.RandomGaussian(3.0, relative=True).lies(vectors, [2, 5], seeded())
    own = vectors[[2, 5]].norm(dim=1, keepdim=True)
    torch.testing.assert_close(relative, absolute * own / math.sqrt(20_000))
    assert (relative.norm(dim=1) / own[:, 0]).tolist() == pytest.approx([3, 3], rel=0.02)


def test_not_finite_is_what_it_says() -> None:
    assert a.NotFinite().lies(vectors_like_gradients(), [2], seeded()).isnan().all()
    assert (a.NotFinite(math.inf).lies(vectors_like_gradients(), [2], seeded()) == math.inf).all()


@given(seed=st.integers(0, 2**32), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_bit_flip_flips_one_bit_of_each_liar(seed: int, dtype: torch.dtype) -> None:
    vectors = vectors_like_gradients(dtype=dtype)
    lies = a.BitFlip().lies(vectors, [1, 4], seeded(seed))
    changed = lies.numpy().view(np.uint8) ^ vectors[[1, 4]].numpy().view(np.uint8)
    assert np.unpackbits(changed, axis=1).sum(axis=1).tolist() == [1, 1]


@pytest.mark.parametrize(("convention", "shift"), [("supporters", 0.336), ("fraction", 0.583)])
def test_alie_shift_is_the_published_one(convention: str, shift: float) -> None:
    attack = a.Alie(convention=convention)  # type: ignore[arg-type]  # a str, one of the literals
    assert attack.shift(50, 12) == pytest.approx(shift, abs=5e-4)


@given(num_nodes=st.integers(3, 60), data=st.data())
def test_alie_shift_is_its_formula(num_nodes: int, data: st.DataObject) -> None:
    num_liars = data.draw(st.integers(1, (num_nodes - 1) // 2))
    supporters = num_nodes // 2 + 1 - num_liars
    honest = num_nodes - num_liars
    expected = NormalDist().inv_cdf((honest - supporters) / honest) if honest > supporters else 0.0
    assert a.Alie().shift(num_nodes, num_liars) == pytest.approx(expected)


@pytest.mark.parametrize("convention", ["supporters", "fraction"])
def test_alie_does_not_shift_where_liars_are_the_majority(convention: str) -> None:
    assert a.Alie(convention=convention).shift(5, 4) == 0  # type: ignore[arg-type]  # a str, one of the literals


def test_alie_with_a_fixed_shift_ignores_the_number_of_liars() -> None:
    vectors = vectors_like_gradients(num_nodes=9)
    honest = np.delete(vectors.numpy(), [0], axis=0)
    lies = a.Alie(fixed_shift=1.5).lies(vectors, [0], seeded())
    np.testing.assert_allclose(lies.numpy()[0], honest.mean(axis=0) - 1.5 * honest.std(axis=0))


@pytest.mark.parametrize("sign", [-1, 1])
def test_alie_is_mean_and_shift_times_deviation_of_the_honest(sign: int) -> None:
    vectors = vectors_like_gradients(num_nodes=9)
    lies = a.Alie(sign=sign).lies(vectors, [0, 4], seeded())  # type: ignore[arg-type]  # an int, one of the literals
    honest = np.delete(vectors.numpy(), [0, 4], axis=0)
    mean = honest.sum(axis=0) / 7
    deviation = np.sqrt(((honest - mean) ** 2).sum(axis=0) / 7)
    shift = NormalDist().inv_cdf((7 - 3) / 7)  # h = 9 // 2 + 1 - 2 = 3
    np.testing.assert_allclose(lies.numpy(), np.stack([mean + sign * shift * deviation] * 2))


@pytest.mark.parametrize("eps", [0.1, 5.0])
def test_inner_product_is_minus_eps_times_the_honest_mean(eps: float) -> None:
    vectors = vectors_like_gradients()
    lies = a.InnerProduct(eps).lies(vectors, [1, 6], seeded())
    expected = -eps * (vectors.sum(0) - vectors[1] - vectors[6]) / 5
    torch.testing.assert_close(lies, torch.stack([expected, expected]))


def change_by(aggregate: a.Aggregate, vectors: Tensor, liars: list[int], lie: Tensor) -> float:
    """Return |aggregate with the lie - aggregate without| / |aggregate without|."""
    attacked = vectors.clone()
    attacked[liars] = lie
    honest = aggregate(vectors)
    return float((aggregate(attacked) - honest).norm() / honest.norm())


AGGREGATES = [mean_of, median_of, closest_to_the_others]


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_fall_of_empires_is_the_inner_product_with_the_worst_eps(aggregate: a.Aggregate) -> None:
    vectors, liars = vectors_like_gradients(num_nodes=9, spread=2.0), [1, 6]
    lies = a.FallOfEmpires(aggregate).lies(vectors, liars, seeded())
    grid = [10 ** (step / 4) for step in range(-4, 13)]
    expected = [-eps * np.delete(vectors.numpy(), liars, axis=0).mean(axis=0) for eps in grid]
    damages = [change_by(aggregate, vectors, liars, torch.from_numpy(lie)) for lie in expected]
    torch.testing.assert_close(
        lies, torch.from_numpy(expected[int(np.argmax(damages))]).expand(2, -1), rtol=0.01, atol=0
    )
    assert change_by(aggregate, vectors, liars, lies[0]) > 1e-3


def test_fall_of_empires_goes_for_the_largest_eps_against_a_mean_and_a_smaller_one_against_krum() -> None:
    vectors, liars = vectors_like_gradients(num_nodes=9, spread=2.0), [1, 6]
    mean = np.delete(vectors.numpy(), liars, axis=0).mean(axis=0)

    def eps_against(aggregate: a.Aggregate) -> float:
        lie = a.FallOfEmpires(aggregate, candidates=(0.1, 0.5, 20.0)).lies(vectors, liars, seeded())[0].numpy()
        return float(-(lie @ mean) / (mean @ mean))

    def plain_if_near(received: Tensor) -> Tensor:  # drops vectors that are far longer than most
        norms = received.norm(dim=1)
        return received[norms < 2 * norms.median()].mean(0)

    assert eps_against(mean_of) == pytest.approx(20)
    assert eps_against(plain_if_near) == pytest.approx(0.5)


@pytest.mark.parametrize("result", [math.nan, math.inf, "raises"])
def test_to_stop_an_aggregator_is_the_greatest_damage(result: float | str) -> None:
    def breaks_at_1(vectors: Tensor) -> Tensor:
        if not bool(0.9 < vectors[1].abs().mean() < 1.1):
            return vectors.mean(0)
        if isinstance(result, str):
            raise ZeroDivisionError
        return vectors.mean(0) * result

    vectors = torch.full((5, 3), 2.0)
    lies = a.FallOfEmpires(breaks_at_1, candidates=(0.1, 0.5, 100.0)).lies(vectors, [1], seeded())
    torch.testing.assert_close(lies, torch.full((1, 3), -1.0))
    attacked = vectors.clone()
    attacked[1] = -1.0
    assert a.damage(breaks_at_1, attacked, vectors.mean(0)) == math.inf


def test_damage_is_the_distance_from_the_honest_result_relative_to_its_norm() -> None:
    reference = torch.tensor([3.0, 4.0])
    attacked = torch.tensor([[3.0, 4.0], [3.0, 5.0]])
    assert a.damage(mean_of, attacked, reference) == pytest.approx(0.5 / 5)


def decoded(shares: Tensor) -> Tensor:
    gradient = DECODER.decode(shares, generator=seeded()).gradient
    assert gradient is not None
    return gradient


@pytest.mark.parametrize(
    ("tuned", "plain"),
    [
        (a.FallOfEmpires(decoded), a.InnerProduct(0.1)),
        (a.MinMax("sign", decoded), a.MinMax("sign")),
        (a.MinSum("unit", decoded), a.MinSum("unit")),
    ],
    ids=["foe", "min-max", "min-sum"],
)
def test_where_nothing_does_damage_the_stealthy_lie_is_told(tuned: a.Attack, plain: a.Attack) -> None:
    shares = coded_shares()
    lies = tuned.lies(shares, [1, 4], seeded())
    torch.testing.assert_close(lies, plain.lies(shares, [1, 4], seeded()))


@pytest.mark.parametrize("candidates", [(), (0.1, -1.0), (math.inf,)])
def test_fall_of_empires_refuses_candidates_that_are_none(candidates: tuple[float, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"candidates=\("):
        a.FallOfEmpires(mean_of, candidates)


def test_mimic_copies_the_first_honest_node() -> None:
    vectors = vectors_like_gradients()
    torch.testing.assert_close(a.Mimic().lies(vectors, [0, 2], seeded()), vectors[[1, 1]])


def direction_of(honest: np.ndarray, deviation: str) -> np.ndarray:
    mean = honest.mean(axis=0)
    return np.asarray(
        {"unit": -mean / np.linalg.norm(mean), "std": -honest.std(axis=0), "sign": -np.sign(mean)}[deviation]
    )


@pytest.mark.parametrize("deviation", ["unit", "std", "sign"])
@pytest.mark.parametrize("kind", [a.MinMax, a.MinSum])
def test_min_max_and_min_sum_go_as_far_as_they_may(kind: type[a.MinMax] | type[a.MinSum], deviation: str) -> None:
    vectors = vectors_like_gradients()
    lies = kind(deviation).lies(vectors, [1, 4], seeded()).numpy()  # type: ignore[arg-type]  # a str, one of the literals
    honest = np.delete(vectors.numpy(), [1, 4], axis=0)
    mean, direction = honest.mean(axis=0), direction_of(honest, deviation)
    pairs = np.array([[np.linalg.norm(x - y) for y in honest] for x in honest])

    def excess(gamma: float) -> float:
        distances = np.linalg.norm(honest - (mean + gamma * direction), axis=1)
        if kind is a.MinMax:
            return float(distances.max() - pairs.max())
        return float((distances**2).sum() - (pairs**2).sum(axis=1).min())

    gamma = float((lies[0] - mean) @ direction / (direction @ direction))
    np.testing.assert_allclose(lies, np.stack([mean + gamma * direction] * 2), rtol=1e-9)
    assert gamma > 0
    assert excess(gamma) <= 0 < excess(1.001 * gamma)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("kind", [a.MinMax, a.MinSum])
def test_min_max_and_min_sum_take_the_worst_deviation_and_fraction(
    kind: type[a.MinMax] | type[a.MinSum], aggregate: a.Aggregate
) -> None:
    vectors, liars = vectors_like_gradients(num_nodes=9), [1, 6]
    mean = torch.from_numpy(np.delete(vectors.numpy(), liars, axis=0).mean(axis=0))
    farthest = [kind(deviation).lies(vectors, liars, seeded())[0] for deviation in ("std", "unit", "sign")]
    options = [mean + part * (lie - mean) for lie in farthest for part in (1, 0.75, 0.5, 0.25)]
    damages = [change_by(aggregate, vectors, liars, option) for option in options]
    lies = kind(aggregate=aggregate).lies(vectors, liars, seeded())
    torch.testing.assert_close(lies, options[int(np.argmax(damages))].expand(2, -1))
    assert len({round(one, 9) for one in damages}) > 1


@pytest.mark.parametrize("kind", [a.MinMax, a.MinSum])
def test_min_max_and_min_sum_stay_where_the_honest_agree(kind: type[a.MinMax] | type[a.MinSum]) -> None:
    vectors = torch.ones(6, 10)
    lies = kind("unit").lies(vectors, [0], seeded())
    torch.testing.assert_close(lies, torch.ones(1, 10), rtol=0, atol=1e-5)


# Their effect on a mean without a defence


def mean_under(attack: a.Attack, liars: list[int]) -> tuple[Tensor, Tensor]:
    """Return the honest mean and the mean of all."""
    vectors = vectors_like_gradients(num_nodes=15, dim=200)
    received = vectors.clone()
    received[liars] = attack.lies(vectors, liars, seeded())
    honest = [row for row in range(15) if row not in liars]
    return vectors[honest].mean(0), received.mean(0)


@pytest.mark.parametrize(
    "attack",
    [
        a.Reverse(),
        a.Constant(),
        a.RandomGaussian(),
        a.RandomGaussian(20.0, relative=True),
        a.InnerProduct(eps=10),
        a.FallOfEmpires(mean_of),
        a.SameLie(size=100),
    ],
    ids=without_address,
)
def test_gross_lies_ruin_the_mean(attack: a.Attack) -> None:
    honest, received = mean_under(attack, [0, 1, 2])
    assert float((received - honest).norm()) > float(honest.norm())


@pytest.mark.parametrize(
    "attack", [a.Reverse(), a.InnerProduct(eps=4.1), a.FallOfEmpires(mean_of)], ids=without_address
)
def test_reversing_attacks_turn_the_mean_around(attack: a.Attack) -> None:
    honest, received = mean_under(attack, [0, 1, 2])  # eps > (n - m) / m = 4
    assert float(honest @ received) < 0


def test_sign_flips_take_2_m_of_n_from_the_mean() -> None:
    honest, received = mean_under(a.SignFlip(), [0, 1, 2])
    assert float(honest @ received / honest.square().sum()) == pytest.approx(1 - 2 * 3 / 15, rel=0.05)


@pytest.mark.parametrize(
    "attack",
    [
        a.Alie(),
        a.Alie(convention="fraction"),
        a.InnerProduct(),
        a.MinMax(),
        a.MinMax(aggregate=mean_of),
        a.MinSum(),
        a.MinSum(aggregate=mean_of),
        a.Mimic(),
    ],
    ids=without_address,
)
def test_stealthy_lies_bend_the_mean_while_looking_honest(attack: a.Attack) -> None:
    honest, received = mean_under(attack, [0, 1, 2])
    assert float((received - honest).norm()) > 1e-3 * float(honest.norm())
    assert float(honest @ received) > 0


def test_one_nan_makes_the_mean_nan() -> None:
    assert mean_under(a.NotFinite(), [3])[1].isnan().all()


@pytest.mark.parametrize("kind", [a.MinMax, a.MinSum])
def test_tuned_to_the_mean_they_move_it_farther(kind: type[a.MinMax] | type[a.MinSum]) -> None:
    moved = {}
    for attack in (kind("std"), kind("std", mean_of)):
        honest, received = mean_under(attack, [0, 1, 2])
        moved[attack.aggregate] = float((received - honest).norm())
    assert moved[mean_of] >= moved[None] * (1 - 1e-9)


def test_some_flips_of_a_bit_ruin_the_mean() -> None:
    vectors = vectors_like_gradients(num_nodes=15, dim=200, dtype=torch.float32)
    ruined = 0
    for seed in range(100):
        received = vectors.clone()
        received[[3]] = a.BitFlip().lies(vectors, [3], seeded(seed))
        error = float((received.mean(0) - vectors.mean(0)).norm() / vectors.mean(0).norm())
        ruined += not error < 1
    assert 0 < ruined < 50
