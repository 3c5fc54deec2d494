import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solon_fl import CertificateWarning, ConfigurationError, DecodeStatus, FourierCode, LinearCode, VandermondeCode

CODES = [FourierCode, VandermondeCode]
kinds = st.sampled_from(CODES)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def shares_of(code: LinearCode, gradient: torch.Tensor) -> dict[int, torch.Tensor]:
    return {slot: code.encode(gradient, slot) for slot in range(code.group_size)}


# Parameters


@pytest.mark.parametrize("kind", CODES)
def test_default_group_is_the_smallest_that_the_theorem_allows(kind: type[LinearCode]) -> None:
    assert kind(byzantine=2, compression=3, stragglers=4).group_size == 11


@pytest.mark.parametrize(
    ("name", "value"),
    [("byzantine", -1), ("compression", 0), ("stragglers", -2), ("byzantine", 1.0), ("compression", True)],
)
def test_counts_must_be_whole_numbers_in_range(name: str, value: object) -> None:
    arguments: dict[str, object] = {"byzantine": 1, "compression": 1, name: value}
    with pytest.raises(ConfigurationError, match=f"{name}={value!r}"):
        FourierCode(**arguments)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("size", [0, 5, 6.0])
def test_group_must_be_large_enough(size: int) -> None:
    with pytest.raises(ConfigurationError, match=f"group_size={size!r}, byzantine=2.*raise group_size to 6"):
        FourierCode(byzantine=2, compression=1, stragglers=1, group_size=size)


@pytest.mark.parametrize("rtol", [0.0, 1.0, -1e-6, math.nan])
def test_rtol_must_be_between_0_and_1(rtol: float) -> None:
    with pytest.raises(ConfigurationError, match=f"rtol={rtol!r}"):
        FourierCode(byzantine=1, compression=1, rtol=rtol)


@pytest.mark.parametrize("kind", CODES)
def test_a_void_certificate_warns_with_the_numbers(kind: type[LinearCode]) -> None:
    with pytest.warns(CertificateWarning, match=r"byzantine=8.*but should be below 1.*rtol=1e-06"):
        kind(byzantine=8, compression=10)


def test_a_smaller_rtol_makes_the_certificate_valid() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FourierCode(byzantine=8, compression=8, rtol=1e-10).certificate < 1


def test_repr_shows_every_parameter() -> None:
    code = VandermondeCode(byzantine=1, compression=2, stragglers=3, group_size=9, rtol=1e-5)
    expected = "VandermondeCode(byzantine=1, compression=2, stragglers=3, group_size=9, rtol=1e-05)"
    assert repr(code) == expected


# Encoding


@given(kind=kinds, seed=st.integers(0, 2**32), dim=st.integers(1, 40), compression=st.integers(1, 6))
def test_shares_are_the_generator_times_the_padded_chunks(
    kind: type[LinearCode], seed: int, dim: int, compression: int
) -> None:
    code = kind(byzantine=1, compression=compression)
    gradient = draw(seed, dim)
    share_dim = math.ceil(dim / compression)
    chunks = np.zeros(compression * share_dim)
    chunks[:dim] = gradient
    expected = code.generator @ chunks.reshape(compression, share_dim)
    assert code.share_dim(dim) == share_dim
    for slot, share in shares_of(code, gradient).items():
        np.testing.assert_allclose(share.numpy(), expected[slot], atol=1e-12)


@given(kind=kinds, seed=st.integers(0, 2**32), dim=st.integers(1, 40), a=st.floats(-10, 10), b=st.floats(-10, 10))
def test_encoding_is_linear(kind: type[LinearCode], seed: int, dim: int, a: float, b: float) -> None:
    code = kind(byzantine=1, compression=3)
    x, y = draw(seed, 2, dim)
    for slot in range(code.group_size):
        expected = a * code.encode(x, slot) + b * code.encode(y, slot)
        torch.testing.assert_close(code.encode(a * x + b * y, slot), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_shares_of_short_floats_are_float32(dtype: torch.dtype) -> None:
    code = FourierCode(byzantine=1, compression=3)
    gradient = draw(1, 10).to(dtype)
    share = code.encode(gradient, 2)
    assert share.dtype == torch.float32
    torch.testing.assert_close(share, code.encode(gradient.double(), 2).float())


def test_encoding_takes_strided_gradients_and_leaves_them_as_they_are() -> None:
    code = FourierCode(byzantine=1, compression=3)
    whole = draw(2, 20).requires_grad_()
    before = whole.detach().clone()
    share = code.encode(whole[::2], 1)
    assert not share.requires_grad
    torch.testing.assert_close(share, code.encode(before[::2].clone(), 1))
    torch.testing.assert_close(whole.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("slot", [-1, 5])
def test_there_are_only_so_many_slots(slot: int) -> None:
    with pytest.raises(ConfigurationError, match=f"got slot={slot}"):
        FourierCode(byzantine=1, compression=3).encode(torch.ones(3), slot)


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
        FourierCode(byzantine=1, compression=3).encode(gradient, 0)


# What decode accepts


def test_shares_may_be_one_matrix() -> None:
    code = FourierCode(byzantine=1, compression=3)
    gradient = draw(3, 6)
    decoded = code.decode(torch.stack(list(shares_of(code, gradient).values())))
    torch.testing.assert_close(decoded.gradient, gradient)


@pytest.mark.parametrize("shape", [(4, 2), (5,), (5, 2, 1)])
def test_a_matrix_of_shares_has_a_row_for_every_slot(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=rf"shape=\({shape[0]},"):
        FourierCode(byzantine=1, compression=3).decode(torch.ones(shape))


def test_unknown_slots_are_refused() -> None:
    code = FourierCode(byzantine=1, compression=3)
    with pytest.raises(ConfigurationError, match=r"slots=\[-1, 5\]"):
        code.decode(dict.fromkeys([5, 1, -1], torch.ones(2)))


def test_a_gradient_has_at_least_one_entry() -> None:
    with pytest.raises(ConfigurationError, match="dim=0"):
        FourierCode(byzantine=1, compression=3).decode({}, dim=0)


@pytest.mark.parametrize("given_dim", [True, False])
@pytest.mark.parametrize(
    "odd_share",
    [
        torch.ones(3),
        torch.ones(2, dtype=torch.float64),
        torch.ones(2, dtype=torch.int32),
        torch.ones(2, 1),
        torch.ones(0),
    ],
)
def test_shares_unlike_the_others_are_erasures(odd_share: torch.Tensor, given_dim: bool) -> None:
    code = FourierCode(byzantine=2, compression=3)
    gradient = draw(4, 6).float()
    shares = shares_of(code, gradient) | {0: odd_share, 4: odd_share}
    decoded = code.decode(shares, dim=6 if given_dim else None)
    assert decoded.erased_slots == (0, 4)
    assert decoded.corrupt_slots == ()
    torch.testing.assert_close(decoded.gradient, gradient)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float16, torch.complex64])
def test_shares_are_float32_or_float64(dtype: torch.dtype) -> None:
    code = FourierCode(byzantine=2, compression=3)
    assert code.decode(torch.ones(7, 2, dtype=dtype)).status is DecodeStatus.TOO_FEW_SHARES


def test_with_dim_given_even_most_shares_may_be_of_another_length() -> None:
    code = FourierCode(byzantine=2, compression=3)
    shares = {slot: torch.ones(5) for slot in range(7)}
    assert code.decode(shares, dim=6).status is DecodeStatus.TOO_FEW_SHARES


def test_the_order_in_which_shares_arrive_does_not_matter() -> None:
    code = FourierCode(byzantine=2, compression=3)
    shares = shares_of(code, draw(5, 30)) | {3: draw(6, 10)}
    backwards = dict(reversed(shares.items()))
    results = [code.decode(s, generator=torch.Generator().manual_seed(0)) for s in (shares, backwards)]
    assert results[0].corrupt_slots == results[1].corrupt_slots == (3,)
    torch.testing.assert_close(results[0].gradient, results[1].gradient, rtol=0, atol=0)


def test_decoding_leaves_the_shares_as_they_are() -> None:
    code = FourierCode(byzantine=1, compression=3)
    shares = shares_of(code, draw(7, 30)) | {3: torch.full((10,), torch.nan, dtype=torch.float64)}
    before = {slot: share.clone() for slot, share in shares.items()}
    code.decode(shares)
    for slot, share in shares.items():
        torch.testing.assert_close(share, before[slot], rtol=0, atol=0, equal_nan=True)
