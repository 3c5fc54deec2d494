"""Gradients with arbitrary bits, their shares, and decoders, for the tests of the exact code."""

import contextlib
from collections.abc import Iterator, Sequence
from unittest.mock import patch

import torch
from torch import Tensor

from solon_fl import Code, ExactCode, ExactDecoder
from solon_fl.coding import smallest_group
from solon_fl.coding.exact.field import P

SPECIAL = [  # bits of float32, as int32
    *(0, -(2**31)),  # 0 and -0
    *(1, -(2**31) + 1, 0x007FFFFF),  # denormal
    *(0x00800000, 0x7F7FFFFF, -0x00800001),  # the smallest normal number, and the largest of either sign
    *(0x7F800000, -0x00800000),  # inf and -inf
    *(0x3F800000, -0x40800000),  # 1 and -1
    *(0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1, -0x007FFFFF),  # NaN
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_bits(bits: Sequence[int]) -> Tensor:
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32)


def numbers_of(values: Tensor) -> list[int]:
    """Return the field elements that the bits represent, from 0 to p - 1."""
    return [bits % P for bits in values.view(torch.int32).tolist()]


def any_gradient(seed: int, dim: int, *, nan: bool = True) -> Tensor:
    """Draw random bits, with special numbers in a third of the entries."""
    rng = seeded(seed)
    bits = torch.randint(-(2**31), 2**31, (dim,), generator=rng).to(torch.int32)
    special = torch.tensor(SPECIAL, dtype=torch.int32)[torch.randint(len(SPECIAL), (dim,), generator=rng)]
    gradient = torch.where(torch.rand(dim, generator=rng) < 1 / 3, special, bits).view(torch.float32)
    return one_nan(gradient) if nan else gradient.masked_fill(gradient.isnan(), -0.0)


def one_nan(values: Tensor) -> Tensor:
    return values.masked_fill(values.isnan(), torch.nan)


def assert_same_bits(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    assert actual.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(actual.view(torch.int32), expected.view(torch.int32), rtol=0, atol=0)


def shares_of(code: Code, gradient: Tensor) -> dict[int, Tensor]:
    return {slot: code.encode(gradient, slot) for slot in range(code.group_size)}


def exact_decoder(*, byzantine: int, compression: int, stragglers: int = 0, extra: int = 0) -> ExactDecoder:
    """Return the decoder of a group with `extra` more nodes than needed."""
    size = smallest_group(byzantine=byzantine, compression=compression, stragglers=stragglers) + extra
    code = ExactCode(group_size=size, compression=compression)
    return ExactDecoder(code, byzantine=byzantine, stragglers=stragglers)


@contextlib.contextmanager
def blocks_of(size: int) -> Iterator[None]:
    """Set the number of columns that codes and decoders process at once."""
    with (
        patch("solon_fl.coding.exact.code.block_size", return_value=size),
        patch("solon_fl.coding.exact.decoder.block_size", return_value=size),
    ):
        yield
