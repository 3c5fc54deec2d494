"""Draco's two codes. `lie_with` builds the vectors that the server receives if some nodes lie."""

from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import ConfigurationError
from solon_fl.baselines import CyclicCode, DracoCode, RepetitionCode

SIZES = [(1, 0), (4, 0), (3, 1), (7, 1), (8, 1), (15, 2), (23, 5), (45, 5), (100, 5)]
KINDS = [RepetitionCode, CyclicCode]
SMALL = [kind(n, s) for kind in KINDS for n, s in [(3, 1), (7, 1), (8, 1), (15, 2), (16, 2), (23, 3)]]
LIES = ["random", "same", "reverse", "constant", "nan", "inf", "zero", "missing", "malformed"]
seeds = st.integers(0, 2**32 - 1)


@cache
def code_of(kind: type[DracoCode], n: int, s: int) -> DracoCode:
    """Return a cached code; making the cyclic one of 100 nodes takes a second."""
    return kind(n, s)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients_of(code: DracoCode, seed: int = 0, dim: int = 50, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return one gradient per batch: a common part plus noise of the same size."""
    rng = seeded(seed)
    common = torch.randn(dim, generator=rng, dtype=dtype)
    return common + torch.randn(code.num_nodes, dim, generator=rng, dtype=dtype)


def encode(code: DracoCode, node: int, gradients: Tensor) -> Tensor:
    weights = torch.from_numpy(code.weights(node))
    parts = [weights.real, weights.imag] if code.is_complex else [weights.real]
    rows = gradients[list(code.batches(node))]
    return torch.stack([part.to(gradients.dtype) @ rows for part in parts]).squeeze(0)


def encode_all(code: DracoCode, gradients: Tensor) -> dict[int, Tensor]:
    return {node: encode(code, node, gradients) for node in range(code.num_nodes)}


def lie_with(
    vectors: dict[int, Tensor], liars: tuple[int, ...], kind: str, size: float, seed: int
) -> dict[int, Tensor]:
    """Return the received vectors; lies deviate by `size` times the largest norm of an honest vector."""
    rng = seeded(seed)
    scale = size * max(float(vector.norm()) for vector in vectors.values())
    example = vectors[0]
    common = torch.randn(example.shape, generator=rng, dtype=torch.float64)
    received = dict(vectors)
    for liar in liars:
        own = torch.randn(example.shape, generator=rng, dtype=torch.float64)
        direction = own if kind == "random" else common
        lies: dict[str, Tensor] = {
            "reverse": -size * vectors[liar],
            "constant": torch.full_like(example, -scale),
            "nan": vectors[liar].clone().index_fill_(-1, torch.tensor([0]), float("nan")),
            "inf": torch.full_like(example, float("inf")),
            "zero": torch.zeros_like(example),
            "malformed": torch.zeros(3),
        }
        lie = lies.get(kind, vectors[liar] + (scale * direction / direction.norm()).to(example.dtype))
        received[liar] = lie
        if kind == "missing":
            del received[liar]
    return received


def relative_error(gradient: Tensor | None, expected: Tensor) -> float:
    assert gradient is not None
    return float((gradient.double() - expected.double()).norm() / expected.double().norm())


# Honest nodes


@pytest.mark.parametrize(("n", "s"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_honest_nodes_give_the_mean(kind: type[DracoCode], n: int, s: int, dtype: torch.dtype) -> None:
    code = code_of(kind, n, s)
    gradients = gradients_of(code, dtype=dtype)
    decoded = code.decode(encode_all(code, gradients))
    assert decoded.ok
    assert decoded.corrupt_nodes == ()
    assert decoded.residual <= decoded.tolerance
    assert decoded.gradient is not None
    assert decoded.gradient.dtype == dtype
    assert relative_error(decoded.gradient, gradients.double().mean(0)) < (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("code", SMALL, ids=repr)
def test_long_gradients_are_worked_on_in_blocks(code: DracoCode) -> None:
    gradients = gradients_of(code, dim=20_000)
    received = lie_with(encode_all(code, gradients), (1,), "random", 1e-2, 0)
    decoded = code.decode(received)
    assert decoded.corrupt_nodes == (1,)
    assert relative_error(decoded.gradient, gradients.double().mean(0)) < 1e-5


@pytest.mark.parametrize("code", SMALL, ids=repr)
@pytest.mark.parametrize("liars", [(), (0,), (2,)])
def test_a_lie_in_the_last_number_of_a_long_gradient(code: DracoCode, liars: tuple[int, ...]) -> None:
    gradients = gradients_of(code, dim=70_000)
    received = encode_all(code, gradients)
    for liar in liars:
        received[liar] = received[liar].clone()
        received[liar][..., -1] += 100
    for seed in range(3):
        decoded = code.decode(received, generator=seeded(seed))
        assert decoded.corrupt_nodes == liars
        assert relative_error(decoded.gradient, gradients.double().mean(0)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.3, 3.0])
def test_votes_allow_for_float_noise(dtype: torch.dtype, size: float) -> None:
    code = RepetitionCode(15, 2)
    gradients = gradients_of(code, dim=20_000, dtype=dtype)
    noise = size * code.rtol / 2**0.5  # two vectors differ by sqrt(2) times that
    received = {
        node: vector * (1 + noise * torch.randn(vector.shape, generator=seeded(node), dtype=dtype))
        for node, vector in encode_all(code, gradients).items()
    }
    received = lie_with(lie_with(received, (0, 1), "same", 1e-3, 0), (5,), "nan", 1.0, 0)
    decoded = code.decode(received)
    assert decoded.ok == (size < 1)
    if decoded.ok:
        assert decoded.corrupt_nodes == (0, 1, 5)
        assert 0 < decoded.residual <= decoded.tolerance
        assert relative_error(decoded.gradient, gradients.double().mean(0)) < 1e-6


def test_a_vote_won_by_the_shortest_vector_allows_for_the_longer_ones() -> None:
    """Three vectors on a line: the lie is within rtol of one honest vector, which is within rtol of the other."""
    code = RepetitionCode(3, 1, rtol=0.1)
    received = {node: torch.tensor([length], dtype=torch.float64) for node, length in enumerate([1.0, 1.0999, 1.2097])}
    decoded = code.decode(received)  # whichever of them lies
    assert decoded.ok
    assert decoded.corrupt_nodes == ()


def test_identical_vectors_win_before_near_ones() -> None:
    code = RepetitionCode(5, 2)
    honest = encode_all(code, gradients_of(code))
    near = {node: vector * (1 + 1e-7 * node) for node, vector in honest.items() if node < 2}
    for seed in range(20):
        decoded = code.decode(honest | near, generator=seeded(seed))
        torch.testing.assert_close(decoded.gradient, honest[2], rtol=0, atol=0)
        assert decoded.corrupt_nodes == ()


def test_vectors_beyond_float64_are_lies_though_identical() -> None:
    code = RepetitionCode(3, 1)
    honest = encode_all(code, gradients_of(code, dtype=torch.float64))
    huge = torch.full_like(honest[0], 1e200)
    assert not code.decode(honest | {0: huge, 1: huge}).ok
    assert code.decode(honest | {0: huge}).corrupt_nodes == (0,)


@pytest.mark.parametrize("code", SMALL, ids=repr)
def test_zero_gradients(code: DracoCode) -> None:
    honest = encode_all(code, torch.zeros(code.num_nodes, 5))
    for received in (honest, honest | {2: honest[2] + 1e-20}, honest | {2: honest[2] + 1e20}):
        decoded = code.decode(received)
        assert decoded.corrupt_nodes == (() if received is honest else (2,))
        torch.testing.assert_close(decoded.gradient, torch.zeros(5), rtol=0, atol=0)


# At most s liars


@given(
    code=st.sampled_from(SMALL),
    kind=st.sampled_from(LIES),
    exponent=st.floats(-3, 30),
    seed=seeds,
    adjacent=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_s_liars_do_not_matter(code: DracoCode, kind: str, exponent: float, seed: int, adjacent: bool) -> None:
    rng = np.random.default_rng(seed)
    gradients = gradients_of(code, seed)
    count = int(rng.integers(0, code.byzantine + 1))
    start = int(rng.integers(code.num_nodes))
    choice = (start + np.arange(count)) if adjacent else rng.choice(code.num_nodes, count, replace=False)
    liars = tuple(sorted((choice % code.num_nodes).tolist()))
    decoded = code.decode(lie_with(encode_all(code, gradients), liars, kind, 10.0**exponent, seed))
    assert decoded.ok
    assert relative_error(decoded.gradient, gradients.double().mean(0)) < 1e-3
    if exponent >= 0:
        assert decoded.corrupt_nodes == liars
        assert relative_error(decoded.gradient, gradients.double().mean(0)) < 1e-4


@pytest.mark.parametrize("kind", LIES)
@pytest.mark.parametrize(("n", "s"), [(23, 5), (45, 5), (100, 5)])
@pytest.mark.parametrize("code_type", KINDS)
def test_larger_codes_name_gross_liars(code_type: type[DracoCode], n: int, s: int, kind: str) -> None:
    code = code_of(code_type, n, s)
    gradients = gradients_of(code)
    honest = encode_all(code, gradients)
    liars = tuple(sorted(np.random.default_rng(n).choice(n, s, replace=False).tolist()))
    decoded = code.decode(lie_with(honest, liars, kind, 100.0, 1))
    assert decoded.corrupt_nodes == liars
    assert relative_error(decoded.gradient, gradients.double().mean(0)) < 1e-4


@pytest.mark.parametrize("code", [code for code in SMALL if code.byzantine > 1], ids=repr)
def test_huge_lies_do_not_hide_small_ones(code: DracoCode) -> None:
    gradients = gradients_of(code)
    honest = encode_all(code, gradients)
    received = lie_with(lie_with(honest, (3,), "random", 1e30, 0), (4,), "random", 0.1, 1)
    decoded = code.decode(received)
    assert decoded.corrupt_nodes == (3, 4)
    assert relative_error(decoded.gradient, gradients.double().mean(0)) < 1e-5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [45, 100])
def test_lies_of_neighbours_are_looked_at_closely(n: int, seed: int) -> None:
    code = code_of(CyclicCode, n, 5)
    gradients = gradients_of(code, seed)
    decoded = code.decode(lie_with(encode_all(code, gradients), (7, 8, 9, 10, 11), "same", 1.0, seed))
    assert decoded.corrupt_nodes == (7, 8, 9, 10, 11)
    assert relative_error(decoded.gradient, gradients.double().mean(0)) < 1e-4


@pytest.mark.parametrize("size", [1e-8, 3e-7, 1e-6, 3e-6, 1e-5])
def test_voters_near_the_tolerance_move_the_mean_by_no_more(size: float) -> None:
    code = RepetitionCode(10, 2)
    gradients = gradients_of(code, dtype=torch.float64)
    honest = encode_all(code, gradients)
    for seed in range(20):
        decoded = code.decode(lie_with(honest, (0, 1, 5, 6), "same", size, seed))
        assert relative_error(decoded.gradient, gradients.mean(0)) < 1e-12  # honest nodes agree exactly
        assert decoded.corrupt_nodes in ((), (0, 1, 5, 6))
        assert bool(decoded.corrupt_nodes) == (size > 2e-6)


@pytest.mark.parametrize("seed", range(20))
def test_voters_who_use_the_float_noise_of_others(seed: int) -> None:
    code = RepetitionCode(5, 2)
    gradients = gradients_of(code, seed, dtype=torch.float64)
    honest = encode_all(code, gradients)
    for node in range(5):
        honest = lie_with(honest, (node,), "random", 4e-7, 10 * seed + node)  # within 8e-7 of each other
    decoded = code.decode(lie_with(honest, (1, 3), "same", 9e-7, seed))
    assert decoded.ok
    assert not {0, 2, 4} & set(decoded.corrupt_nodes)
    assert relative_error(decoded.gradient, gradients.mean(0)) < 2e-6


# More than s liars


@given(code=st.sampled_from(SMALL), extra=st.integers(1, 3), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_more_liars_that_do_not_collude_are_never_believed(code: DracoCode, extra: int, seed: int) -> None:
    gradients = gradients_of(code, seed)
    count = min(code.num_nodes, code.byzantine + extra)
    liars = tuple(sorted(np.random.default_rng(seed).choice(code.num_nodes, count, replace=False).tolist()))
    decoded = code.decode(lie_with(encode_all(code, gradients), liars, "random", 1.0, seed))
    if isinstance(code, CyclicCode):
        assert not decoded.ok
    if decoded.ok:
        assert decoded.corrupt_nodes == liars
        assert relative_error(decoded.gradient, gradients.double().mean(0)) < 1e-5
    else:
        assert (decoded.gradient, decoded.corrupt_nodes) == (None, ())


@pytest.mark.parametrize("kind", ["random", "nan", "missing", "malformed"])
@pytest.mark.parametrize("code_type", KINDS)
def test_a_group_without_a_majority_fails(code_type: type[DracoCode], kind: str) -> None:
    code = code_type(15, 2)
    honest = encode_all(code, gradients_of(code))
    assert not code.decode(lie_with(honest, (0, 1, 2), kind, 1.0, 0)).ok


def test_s_plus_1_colluders_win_their_group() -> None:
    code = RepetitionCode(15, 2)
    honest = encode_all(code, gradients_of(code))
    assert code.decode(lie_with(honest, (0, 3, 4), "zero", 1.0, 0)).corrupt_nodes == (1, 2)
    received = lie_with(honest, (0, 1, 3, 4), "same", 100.0, 0)  # each adds it to the same honest vector
    assert code.decode(received).corrupt_nodes == (2,)


@pytest.mark.parametrize("code", SMALL, ids=repr)
def test_nothing_arrives(code: DracoCode) -> None:
    assert not code.decode({}).ok
    assert not code.decode({0: torch.full((2, 3) if code.is_complex else (3,), float("nan"))}).ok


# Structure


@pytest.mark.parametrize(("n", "s"), SIZES)
def test_groups_are_as_equal_as_possible(n: int, s: int) -> None:
    code = RepetitionCode(n, s)
    sizes = [len(group) for group in code.groups]
    assert len(sizes) == n // (2 * s + 1)
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2 * s + 1
    assert [node for group in code.groups for node in group] == list(range(n))
    assert all(code.batches(node) == group for group in code.groups for node in group)


@pytest.mark.parametrize(("n", "s"), SIZES)
def test_the_cyclic_matrix(n: int, s: int) -> None:
    code = CyclicCode(n, s)
    fourier = np.exp(2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) / np.sqrt(n)
    for node in range(n):
        others = np.delete(np.arange(n), list(code.batches(node)))
        assert len(others) == n - 2 * s - 1
        assert not code.matrix[node, others].any()
        assert np.abs(code.weights(node)).min() > 0
        np.testing.assert_array_equal(code.matrix[node, list(code.batches(node))], code.weights(node))
    largest = np.abs(code.matrix).max()
    assert largest < 5  # the paper's choice has weights up to 7e8 at (100, 5)
    np.testing.assert_allclose(fourier[:, n - 2 * s :].conj().T @ code.matrix, 0, atol=1e-12)
    row = (n - 2 * s - 1) // 2
    np.testing.assert_allclose(fourier[:, row].conj() @ code.matrix, 1, atol=1e-12)


@pytest.mark.parametrize(("n", "s"), [(3, 1), (5, 1), (7, 1), (8, 1), (5, 2), (8, 2), (9, 2), (9, 3), (10, 3)])
def test_any_n_minus_2s_rows_give_the_sum(n: int, s: int) -> None:
    matrix = CyclicCode(n, s).matrix
    for size in (n - s, n - 2 * s):
        for kept in combinations(range(n), size):
            rows = matrix[list(kept)]
            solution = np.linalg.lstsq(rows.T, np.ones(n), rcond=None)[0]
            np.testing.assert_allclose(solution @ rows, 1, atol=1e-8)


def test_a_generator_reproduces_a_decode() -> None:
    code = CyclicCode(15, 2)
    received = lie_with(encode_all(code, gradients_of(code)), (2, 9), "random", 1.0, 0)
    first, second = (code.decode(received, generator=seeded(3)) for _ in range(2))
    assert first.residual == second.residual
    torch.testing.assert_close(first.gradient, second.gradient, rtol=0, atol=0)


# Errors


@pytest.mark.parametrize("kind", KINDS)
def test_impossible_settings_are_refused(kind: type[DracoCode]) -> None:
    for arguments, message in (
        ((4, 2), r"2\*byzantine \+ 1; got num_nodes=4, byzantine=2; raise num_nodes to 5"),
        ((0, 0), "num_nodes=0"),
        ((5, -1), "byzantine=-1"),
        ((5, True), "byzantine=True"),
        ((5.0, 1), "num_nodes=5.0"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            kind(*arguments)
    with pytest.raises(ConfigurationError, match="rtol=2"):
        kind(5, 1, rtol=2)
    with pytest.raises(ConfigurationError, match=r"0..4 \(num_nodes=5\); got nodes=\[5\]"):
        kind(5, 1).decode({5: torch.zeros(3)})
