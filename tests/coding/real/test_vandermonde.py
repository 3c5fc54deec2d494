from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solon_fl import ConfigurationError, RealDecoder, VandermondeCode
from tests.oracles import decode_exactly, encode_exactly


@given(compression=st.integers(1, 5), spare=st.integers(0, 4))
def test_rows_are_powers_of_the_node_of_norm_one(compression: int, spare: int) -> None:
    code = VandermondeCode(group_size=compression + spare, compression=compression)
    powers = code.points[:, None] ** np.arange(compression)
    np.testing.assert_allclose(code.generator * code.multipliers[:, None], powers, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(code.generator, axis=1), 1)


def test_default_nodes_are_chebyshevs() -> None:
    code = VandermondeCode(group_size=4, compression=2)
    np.testing.assert_allclose(code.points, np.cos(np.pi * np.array([1, 3, 5, 7]) / 8))


def test_given_nodes_are_used() -> None:
    code = VandermondeCode(group_size=3, compression=1, nodes=[1, 2, 4])
    np.testing.assert_array_equal(code.points, [1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("nodes", "shown"),
    [([0, 1], r"nodes=\[0, 1\]"), ([0, 1, 1], r"nodes=\[0, 1, 1\]"), ([0, 1, float("nan")], r"nodes=\[0, 1, nan\]")],
)
def test_nodes_must_be_distinct_and_finite(nodes: list[float], shown: str) -> None:
    with pytest.raises(ConfigurationError, match=shown):
        VandermondeCode(group_size=3, compression=1, nodes=nodes)


@given(seed=st.integers(0, 2**32), num_lies=st.integers(0, 2))
def test_decoding_agrees_with_exact_arithmetic(seed: int, num_lies: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = [Fraction(node, 3) for node in (-3, -2, -1, 0, 1, 2, 3)]
    chunks = [[Fraction(int(entry)) for entry in rng.integers(-50, 50, 4)] for _ in range(3)]
    shares = [encode_exactly([node**power for power in range(3)], chunks) for node in nodes]
    lies = sorted(rng.choice(7, num_lies, replace=False).tolist())
    for slot in lies:
        shares[slot][int(rng.integers(4))] += int(rng.integers(1, 100))
    exact_chunks, exact_lies = decode_exactly(nodes, shares, compression=3, max_lies=2)
    assert (exact_chunks, exact_lies) == (chunks, tuple(lies))

    code = VandermondeCode(group_size=7, compression=3, nodes=[float(node) for node in nodes])
    received = torch.tensor([[float(entry) for entry in share] for share in shares], dtype=torch.float64)
    decoded = RealDecoder(code, byzantine=2, rtol=1e-9).decode(received / torch.from_numpy(code.multipliers)[:, None])
    assert decoded.corrupt_slots == exact_lies
    assert decoded.gradient is not None
    expected = torch.tensor([[float(entry) for entry in chunk] for chunk in exact_chunks], dtype=torch.float64)
    torch.testing.assert_close(decoded.gradient, expected.T.reshape(-1), rtol=1e-9, atol=1e-9)
