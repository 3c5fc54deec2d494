import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solon_fl import ConfigurationError, FourierCode, RealCode, VandermondeCode
from tests.coding.real.problems import seeded, shares_of

KINDS: list[type[RealCode]] = [FourierCode, VandermondeCode]
kinds = st.sampled_from(KINDS)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


# Parameters


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0, -1, 6.0, True])
@pytest.mark.parametrize("name", ["group_size", "compression"])
def test_sizes_must_be_whole_numbers_in_range(kind: type[RealCode], name: str, value: object) -> None:
    arguments: dict[str, object] = {"group_size": 5, "compression": 1, name: value}
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number >= 1; got {name}={value!r}"):
        kind(**arguments)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_has_at_least_one_node_a_chunk(kind: type[RealCode]) -> None:
    assert kind(group_size=3, compression=3).group_size == 3
    with pytest.raises(ConfigurationError, match="got group_size=2, compression=3; raise group_size to 3"):
        kind(group_size=2, compression=3)


@pytest.mark.parametrize("kind", KINDS)
def test_repr_shows_every_parameter(kind: type[RealCode]) -> None:
    assert repr(kind(group_size=9, compression=2)) == f"{kind.__name__}(group_size=9, compression=2)"


# Encoding


@given(kind=kinds, seed=st.integers(0, 2**32), dim=st.integers(1, 40), compression=st.integers(1, 6))
def test_shares_are_the_generator_times_the_padded_chunks(
    kind: type[RealCode], seed: int, dim: int, compression: int
) -> None:
    code = kind(group_size=2 + compression, compression=compression)
    gradient = draw(seed, dim)
    share_dim = math.ceil(dim / compression)
    chunks = np.zeros(compression * share_dim)
    chunks[:dim] = gradient
    expected = code.generator @ chunks.reshape(share_dim, compression).T
    assert code.share_dim(dim) == share_dim
    for slot, share in shares_of(code, gradient).items():
        np.testing.assert_allclose(share.numpy(), expected[slot], atol=1e-12)


@given(kind=kinds, seed=st.integers(0, 2**32), dim=st.integers(1, 40), a=st.floats(-10, 10), b=st.floats(-10, 10))
def test_encoding_is_linear(kind: type[RealCode], seed: int, dim: int, a: float, b: float) -> None:
    code = kind(group_size=5, compression=3)
    x, y = draw(seed, 2, dim)
    for slot in range(code.group_size):
        expected = a * code.encode(x, slot) + b * code.encode(y, slot)
        torch.testing.assert_close(code.encode(a * x + b * y, slot), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_shares_of_short_floats_are_float32(dtype: torch.dtype) -> None:
    code = FourierCode(group_size=5, compression=3)
    gradient = draw(1, 10).to(dtype)
    share = code.encode(gradient, 2)
    assert share.dtype == torch.float32
    torch.testing.assert_close(share, code.encode(gradient.double(), 2).float())


def test_encoding_takes_strided_gradients_and_leaves_them_as_they_are() -> None:
    code = FourierCode(group_size=5, compression=3)
    whole = draw(2, 20).requires_grad_()
    before = whole.detach().clone()
    share = code.encode(whole[::2], 1)
    assert not share.requires_grad
    torch.testing.assert_close(share, code.encode(before[::2].clone(), 1))
    torch.testing.assert_close(whole.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("slot", [-1, 5])
def test_there_are_only_so_many_slots(slot: int) -> None:
    with pytest.raises(ConfigurationError, match=f"got slot={slot}"):
        FourierCode(group_size=5, compression=3).encode(torch.ones(3), slot)


@pytest.mark.parametrize(
    ("gradient", "shown"),
    [
        (torch.ones(2, 3), r"shape=\(2, 3\)"),
        (torch.ones(3, dtype=torch.int64), "dtype=torch.int64"),
        (torch.ones(0), "dim=0"),
    ],
)
def test_gradients_are_flat_floats(gradient: torch.Tensor, shown: str) -> None:
    with pytest.raises(ConfigurationError, match=shown):
        FourierCode(group_size=5, compression=3).encode(gradient, 0)
