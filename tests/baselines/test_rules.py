import numpy as np
import pytest
import torch
from torch import Tensor

from solon_fl.baselines.rules import bulyan, ready_for


def random_vectors(rows: int, dim: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_bulyan(vectors: np.ndarray, f: int) -> np.ndarray:
    """Bulyan word for word."""
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
    """The vectors differ by 1e-4 of their length, which the squares of float32 can't tell from 0."""
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
