import numpy as np
import pytest
import torch
from torch import Tensor

from solon_fl.baselines.rules import (
    Bucketing,
    Rule,
    bulyan,
    caf,
    centered_clipping,
    dnc,
    geometric_median,
    nnm,
    ready_for,
    trimmed_mean,
)


def random_vectors(rows: int, dim: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_bulyan(vectors: np.ndarray, f: int) -> np.ndarray:
    """A literal implementation of Bulyan."""
    left: list[int] = list(range(len(vectors)))
    chosen: list[int] = []
    while len(chosen) < len(vectors) - 2 * f:
        scores = {}
        for i in left:
            apart = sorted(float(((vectors[i] - vectors[j]) ** 2).sum()) for j in left if j != i)
            scores[i] = sum(apart[: max(1, len(left) - f - 2)])
        chosen.append(min(left, key=lambda i: scores[i]))
        left.remove(chosen[-1])
    result = []
    for column in vectors[chosen].T:
        nearest = sorted(column, key=lambda value: abs(value - np.median(column)))
        result.append(np.mean(nearest[: len(chosen) - 2 * f]))
    return np.array(result)


@pytest.mark.parametrize(("rows", "f"), [(7, 1), (11, 2), (16, 3), (5, 0)])
def test_bulyan_is_that_of_the_paper(rows: int, f: int) -> None:
    for seed in range(5):
        vectors = random_vectors(rows, seed=seed)
        vectors[:f] += 1.5
        np.testing.assert_allclose(bulyan(vectors, f).numpy(), plain_bulyan(vectors.numpy(), f), rtol=1e-12)


def test_bulyan_in_float32_does_not_lose_who_is_near_whom() -> None:
    """The vectors differ by 1e-4 of their length, whose square vanishes in float32's rounding."""
    near = random_vectors(11, 300) * 1e-4 + random_vectors(1, 300, seed=1)
    near[[2, 7]] += 3e-4
    torch.testing.assert_close(bulyan(near.float(), 2).double(), bulyan(near, 2), rtol=0, atol=1e-6)


def test_the_missing_are_the_first_liars() -> None:
    told: list[tuple[int, int]] = []

    def rule(vectors: Tensor, num_liars: int) -> Tensor:
        told.append((len(vectors), num_liars))
        return vectors[0]

    aggregate = ready_for(rule, num_liars=3, num_nodes=10)
    for present in (10, 9, 7, 4):
        aggregate(random_vectors(present))
    assert told == [(10, 3), (9, 2), (7, 0), (4, 0)]


RULES: dict[str, Rule] = {
    "bulyan": bulyan,
    "caf": caf,
    "centered clipping": centered_clipping,
    "dnc": dnc,
    "geometric median": geometric_median,
    "nnm": nnm,
    "trimmed mean": trimmed_mean,
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_vectors_whose_products_overflow_count_as_missing(rule: Rule) -> None:
    vectors = random_vectors(15, 40)
    expected = ready_for(rule, 3, 15)(vectors[2:])
    vectors[0], vectors[1, 7] = 1e200, -1e300
    assert torch.equal(ready_for(rule, 3, 15)(vectors), expected)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_treats_vectors_of_any_length_alike(rule: Rule) -> None:
    vectors = random_vectors(15, 40)
    vectors[[3, 8, 9]] += 2
    expected = rule(vectors, 3)
    for scale in (1e-12, 1e-4, 1e4, 1e12):
        torch.testing.assert_close(rule(scale * vectors, 3) / scale, expected, rtol=1e-9, atol=1e-12)
    assert rule(vectors.float(), 3).dtype == torch.float32


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_liars_however_gross_leave_a_rule_near_the_honest(rule: Rule) -> None:
    vectors = random_vectors(15, 40)
    honest = vectors[3:].mean(0)
    for size in (1e3, 1e9, 1e20, 1e70):
        vectors[:3] = size * random_vectors(3, 40, seed=1)
        vectors[2] *= 1e-3  # vary the norms
        assert (rule(vectors, 3) - honest).norm() < honest.norm() + vectors[3:].norm(dim=1).median()


@pytest.mark.parametrize("name", ["bulyan", "caf", "dnc", "nnm", "trimmed mean"])
def test_without_liars_a_rule_that_knows_it_is_the_mean(name: str) -> None:
    vectors = random_vectors(6)
    torch.testing.assert_close(RULES[name](vectors, 0), vectors.mean(0))


def test_at_the_geometric_median_all_pull_alike() -> None:
    vectors = random_vectors(9, 12)
    towards = vectors - geometric_median(vectors, 0)
    pulls = towards / towards.norm(dim=1, keepdim=True)
    assert float(pulls.sum(0).norm()) < 1e-6
    torch.testing.assert_close(geometric_median(vectors[:, :1], 0), vectors[:, :1].median(0).values, rtol=0, atol=1e-5)
    assert torch.equal(geometric_median(torch.ones(5, 3), 0), torch.ones(3))


@pytest.mark.parametrize("size", [1e20, 3e38])
def test_a_liar_as_gross_as_float32_allows_pulls_no_more_than_another(size: float) -> None:
    vectors = random_vectors(12, 50).float()
    vectors[:2, 7] = size
    towards = vectors.double() - geometric_median(vectors, 2).double()
    pulls = towards / towards.norm(dim=1, keepdim=True)
    assert float(pulls.sum(0).norm()) < 1e-5
    shuffled = Bucketing(geometric_median)
    for _ in range(30):  # some shuffles put both liars into one bucket
        assert shuffled(vectors, 2).norm() < vectors[2:].norm(dim=1).median()


def test_centered_clipping_is_its_formula() -> None:
    vectors = random_vectors(9, 12)
    centre = torch.zeros(12, dtype=torch.float64)
    for _ in range(2):
        apart = vectors - centre
        tau = 0.5 * float(apart.norm(dim=1).median())
        centre = centre + torch.stack([one * min(1.0, tau / float(one.norm())) for one in apart]).mean(0)
    torch.testing.assert_close(centered_clipping(vectors, 2, radius=0.5, steps=2), centre)


def test_nnm_averages_each_with_its_nearest() -> None:
    vectors = random_vectors(9, 4)
    mixed = []
    for vector in vectors:
        nearest = sorted(range(9), key=lambda row, own=vector: float((vectors[row] - own).norm()))  # type: ignore[misc]
        mixed.append(vectors[nearest[:7]].mean(0))
    torch.testing.assert_close(nnm(vectors, 2), trimmed_mean(torch.stack(mixed), 2))


def widest(deviations: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    covariance = (weights[:, None] * deviations).T @ deviations / weights.sum()
    variances, directions = np.linalg.eigh(covariance)
    return (deviations @ directions[:, -1]) ** 2, float(variances[-1])


def test_dnc_leaves_out_who_stands_out_along_the_widest_direction() -> None:
    vectors = random_vectors(11, 6)
    vectors[[2, 7]] += 3
    scores, _ = widest((vectors - vectors.mean(0)).numpy(), np.ones(11))
    kept = sorted(np.argsort(scores)[:9])
    assert {2, 7}.isdisjoint(kept)
    torch.testing.assert_close(dnc(vectors, 2), vectors[kept].mean(0))


def test_caf_is_its_algorithm() -> None:
    for seed in range(5):
        vectors = random_vectors(11, 6, seed=seed)
        vectors[:2] += 1.5
        vectors[0] += 20  # stands out even when its weight is 0
        rows, weights, least, best = vectors.numpy(), np.ones(11), np.inf, np.zeros(6)
        while weights.sum() > 7:
            mean = weights @ rows / weights.sum()
            scores, variance = widest(rows - mean, weights)
            if variance < least:
                least, best = variance, mean
            weights = weights * np.clip(1 - scores / scores[weights > 0].max(), 0, 1)
        np.testing.assert_allclose(caf(vectors, 2).numpy(), best, rtol=1e-9, atol=1e-12)


def test_bucketing_shuffles_anew_and_hands_over_the_means_of_pairs() -> None:
    vectors, seen = torch.eye(7, dtype=torch.float64), []

    def base(buckets: Tensor, num_liars: int) -> Tensor:
        assert num_liars == 1
        seen.append(buckets)
        return buckets[0]

    bucketing = Bucketing(base, seed=3)
    for _ in range(2):
        bucketing(vectors, 1)
        assert (seen[-1] > 0).sum(1).tolist() == [2, 2, 2, 1]
        torch.testing.assert_close(seen[-1].sum(1), torch.ones(4, dtype=torch.float64))
        torch.testing.assert_close((seen[-1] > 0).sum(0), torch.ones(7, dtype=torch.int64))
    assert not torch.equal(*seen)
    Bucketing(base, seed=3)(vectors, 1)
    assert torch.equal(seen[0], seen[2])
