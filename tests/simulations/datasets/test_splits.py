import pytest
import torch

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.datasets.splits import dirichlet_parts

LABELS = torch.arange(10).repeat(100)


def classes_of(parts: list[torch.Tensor]) -> float:
    return sum(len(set(LABELS[part].tolist())) for part in parts) / len(parts)


def test_parts_have_each_example_once_and_fewer_classes_the_smaller_alpha() -> None:
    alike, unlike = (dirichlet_parts(LABELS, 20, alpha, seed=0) for alpha in (100.0, 0.05))
    for parts in (alike, unlike):
        assert torch.cat(parts).sort().values.tolist() == list(range(1000))
        assert min(map(len, parts)) >= 1
    assert classes_of(alike) > 9
    assert classes_of(unlike) < 4
    again, other = (dirichlet_parts(LABELS, 20, 0.05, seed) for seed in (0, 1))
    assert all(map(torch.equal, unlike, again))
    assert not all(map(torch.equal, unlike, other))


def test_no_part_is_empty_even_if_a_class_goes_to_one_part() -> None:
    parts = dirichlet_parts(torch.zeros(30, dtype=torch.int64), 20, 1e-3, seed=0)
    assert torch.cat(parts).sort().values.tolist() == list(range(30))
    assert min(map(len, parts)) == 1


def test_fewer_examples_than_parts_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="got num_nodes=5 and 4 examples; lower num_nodes"):
        dirichlet_parts(torch.zeros(4, dtype=torch.int64), 5, 1.0, seed=0)
