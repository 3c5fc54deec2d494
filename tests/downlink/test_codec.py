"""The server and its nodes get the same bits from a patch, copies reach their target, and damage changes nothing."""

import math
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from solon_fl.downlink.codec import apply_patch, make_patch
from solon_fl.errors import PatchError

DTYPES = [torch.float16, torch.float32, torch.float64]
PAIRS = [(dtype, dtype) for dtype in DTYPES] + [(torch.float32, torch.float16)]
HEADER = len(b"solon patch 1\n") + 4  # plus 8 bytes per tensor
shapes = st.lists(st.lists(st.integers(0, 12), max_size=3).map(tuple), max_size=4)
seeds = st.integers(0, 2**31)


def random_tensors(shapes: list[tuple[int, ...]], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Return normal numbers with a different scale per block, with zeros of both signs, denormals and large numbers."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.finfo(dtype)
    extremes = [0.0, -0.0, limits.tiny, limits.tiny * limits.eps, -limits.tiny, limits.max / 16]
    special = torch.tensor(extremes, dtype=torch.float64)
    found = []
    for shape in shapes:
        size = math.prod(shape)
        values = torch.randn(size, generator=generator).double() * 10.0 ** (torch.arange(size) // 100 % 6 - 3)
        chosen = torch.rand(size, generator=generator) < 0.1
        kinds = torch.randint(len(special), (size,), generator=generator)
        found.append(torch.where(chosen, special[kinds], values).to(dtype).reshape(shape))
    return found


def bits(tensors: list[Tensor]) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in tensors]


def clones(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def patched(target: list[Tensor], copy: list[Tensor]) -> bytes:
    patch = make_patch(target, copy)
    assert patch is not None
    return patch


# The same bits


@given(shapes=shapes, dtypes=st.sampled_from(PAIRS), seed=seeds)
@example(shapes=[(262_145,), (0,), (), (257,), (1, 256)], dtypes=(torch.float32, torch.float32), seed=0)
def test_a_node_gets_the_servers_bits(
    shapes: list[tuple[int, ...]], dtypes: tuple[torch.dtype, torch.dtype], seed: int
) -> None:
    target = random_tensors(shapes, dtypes[0], seed)
    server = random_tensors(shapes, dtypes[1], seed + 1)
    node = clones(server)
    before = bits(target)
    for _ in range(3):
        apply_patch(memoryview(patched(target, server)), node)
        assert bits(node) == bits(server)
    assert bits(target) == before
    assert all(bool(value.isfinite().all()) for value in server)


def test_threads_change_no_bit() -> None:
    found = []
    for threads in (1, 2, 3):
        with computing_with(threads):
            server = random_tensors([(270_001,)], torch.float32, 1)
            patch = patched(random_tensors([(270_001,)], torch.float32, 2), server)
        found.append((patch, bits(server)))
    assert found[0] == found[1] == found[2]


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_the_bits_are_these() -> None:
    """The expected bits are computed without torch, in which all machines could be wrong in the same way."""
    copy = torch.tensor([1.0, -2.0, 3.0, 0.1])
    patch = patched([torch.tensor([1.5, -2.0, 2.3, 0.1])], [copy.clone()])
    content = zstandard.decompress(patch[HEADER + 8 :])
    exponent, *symbols = struct.unpack("<h128B", content)
    assert exponent == -3  # 0.7 is 5.6 eighths
    assert [symbols[0] & 15, symbols[0] >> 4, symbols[1] & 15, symbols[1] >> 4] == [8 + 4, 8, 8 - 6, 8]
    apply_patch(patch, [copy])
    assert copy.tolist() == [1.5, -2.0, 2.25, np.float32(0.1)]


# Copies reach their target


@given(shapes=shapes, dtypes=st.sampled_from(PAIRS[1:]), seed=seeds)
def test_each_patch_shrinks_the_error_of_every_block(
    shapes: list[tuple[int, ...]], dtypes: tuple[torch.dtype, torch.dtype], seed: int
) -> None:
    target, copy = random_tensors(shapes, dtypes[0], seed), random_tensors(shapes, dtypes[1], seed + 1)
    if dtypes[1] == torch.float16:
        target = [value.clamp(-6e4, 6e4) for value in target]
    unit = 0.0 if dtypes[0] == dtypes[1] else torch.finfo(dtypes[1]).eps
    least = 0.0 if dtypes[0] == dtypes[1] else torch.finfo(dtypes[1]).tiny * unit
    for _ in range(3):
        before = errors_of_blocks(target, copy)
        patched(target, copy)
        for old, new, largest in zip(before, errors_of_blocks(target, copy), largest_of_blocks(target), strict=True):
            assert new <= max(old / 3 * (1 + 1e-6), unit * largest, least)


def test_a_block_owes_nothing_to_those_before_it() -> None:
    first = 1100 * 256
    target, copy = [torch.full((first + 10,), 1e6)], [torch.zeros(first + 10)]
    target[0][first:] = 1e-6
    patched(target, copy)
    assert torch.allclose(copy[0], target[0], rtol=1 / 3, atol=0)


def in_blocks(tensors: list[Tensor]) -> list[Tensor]:
    return [part for tensor in tensors for part in torch.split(tensor.double().view(-1), 256) if len(part)]


def largest_of_blocks(tensors: list[Tensor]) -> list[float]:
    return [float(part.abs().max()) for part in in_blocks(tensors)]


def errors_of_blocks(target: list[Tensor], copy: list[Tensor]) -> list[float]:
    pairs = zip(in_blocks(target), in_blocks(copy), strict=True)
    return [float((wanted - held).abs().max()) for wanted, held in pairs]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_becomes_its_target(dtype: torch.dtype) -> None:
    target, copy = (random_tensors([(1000,), (3, 3)], dtype, seed) for seed in (1, 2))
    number = 0
    while bits([value + 0.0 for value in target]) != bits([value + 0.0 for value in copy]):  # -0.0 + 0.0 is 0.0
        patched(target, copy)
        number += 1
        assert number < 1000


def test_what_was_rounded_away_is_in_the_next_patches() -> None:
    target, copy = [torch.zeros(256)], [torch.zeros(256)]
    for _ in range(100):
        target[0][0] += 1.0  # the step is 1 / 4 of this
        target[0][1:] += 0.01  # far below half the step
        patched(target, copy)
    assert float((target[0] - copy[0]).abs().max()) <= 0.5


# Differences that no patch can represent


@pytest.mark.parametrize("dtypes", PAIRS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["target", "copy"])
def test_what_is_not_finite_leaves_the_copy(dtypes: tuple[torch.dtype, torch.dtype], wrong: float, side: str) -> None:
    target, copy = (random_tensors([(5,), (0,), (270_000,)], dtype, 3) for dtype in dtypes)
    copy[0] += 1
    (target if side == "target" else copy)[2][269_999] = wrong
    before = bits(copy)
    assert make_patch(target, copy) is None
    assert bits(copy) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_differences_that_overflow_leave_the_copy(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    copy = [torch.tensor([-most, 1.0], dtype=dtype)]
    assert make_patch([torch.tensor([most, 2.0], dtype=dtype)], copy) is None
    assert make_patch([torch.tensor([-most / 3, 2.0], dtype=dtype)], copy) is None
    assert copy[0].tolist() == [-most, 1.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_stay_finite_up_to_the_largest_number(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    target = [torch.tensor([most, -most], dtype=dtype)]
    copy = [target[0] * 0.61]
    for _ in range(40):
        patched(target, copy)
        assert bool(copy[0].isfinite().all())
    assert copy[0].tolist() == target[0].tolist()


def test_shapes_must_be_the_same() -> None:
    with pytest.raises(ValueError, match=r"\[\(2, 3\)\]; got \[\(3, 2\)\]"):
        make_patch([torch.zeros(2, 3)], [torch.zeros(3, 2)])


def test_a_copy_that_is_not_contiguous_is_refused() -> None:
    with pytest.raises(RuntimeError, match="view"):
        make_patch([torch.zeros(3, 2)], [torch.zeros(2, 3).T])


# Damage


COPY = [torch.linspace(-2, 3, 1200).view(40, 30), torch.ones(7), torch.zeros(())]
RESULT = clones(COPY)
PATCH = patched([value + torch.sin(1e3 * value + 1) for value in COPY], RESULT)


def assert_refused(patch: bytes, copy: list[Tensor] = COPY, match: str = "must") -> None:
    before = bits(copy)
    with pytest.raises(PatchError, match=match):
        apply_patch(patch, copy)
    assert bits(copy) == before


@given(patch=st.binary(max_size=300))
def test_random_bytes_change_nothing(patch: bytes) -> None:
    assert_refused(patch)
    assert_refused(PATCH[: HEADER + 24] + patch)


@given(length=st.integers(0, len(PATCH) - 1))
def test_a_part_of_a_patch_changes_nothing(length: int) -> None:
    assert_refused(PATCH[:length])


@given(place=st.integers(0, 8 * len(PATCH) - 1))
def test_a_flipped_bit_changes_nothing(place: int) -> None:
    damaged, copy = bytearray(PATCH), clones(COPY)
    damaged[place // 8] ^= 1 << place % 8
    try:
        apply_patch(bytes(damaged), copy)
    except PatchError:
        assert bits(copy) == bits(COPY)
    else:  # zstd ignores this bit
        assert bits(copy) == bits(RESULT)


@given(shapes=shapes)
def test_other_sizes_change_nothing(shapes: list[tuple[int, ...]]) -> None:
    assume([math.prod(shape) for shape in shapes] != [1200, 7, 1])
    assert_refused(PATCH, random_tensors(shapes, torch.float32, 7), "the tensors' sizes")


def framed(content: bytes, says_its_size: bool = True) -> bytes:
    compressor = zstandard.ZstdCompressor(write_content_size=says_its_size)
    return PATCH[: HEADER + 24] + compressor.compress(content)


def test_what_follows_a_patch_changes_nothing() -> None:
    assert_refused(PATCH + b"\0", match="one zstd frame")
    assert_refused(PATCH + PATCH[HEADER + 24 :], match="one zstd frame")


def test_content_of_another_size_changes_nothing() -> None:
    content = zstandard.decompress(PATCH[HEADER + 24 :])
    apply_patch(framed(content), clones(COPY))
    assert_refused(framed(content + b"\0"), match=f"{len(content)} bytes; got one that claims {len(content) + 1}")
    assert_refused(framed(content[1:]), match="claims")
    assert_refused(framed(content, says_its_size=False), match="claims")
    skipped = struct.pack("<II", 0x184D2A50, len(content)) + content
    assert_refused(PATCH[: HEADER + 24] + skipped)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("beyond", [-1, 1])
def test_steps_beyond_the_dtype_change_nothing(dtype: torch.dtype, beyond: int) -> None:
    content = bytearray(zstandard.decompress(PATCH[HEADER + 24 :]))
    limits = {torch.float64: (-1074, 1021)}.get(dtype, (-149, 125))
    exponent = limits[0] - 1 if beyond < 0 else limits[1] + 1
    content[8:10] = struct.pack("<h", exponent)
    assert_refused(framed(bytes(content)), [value.to(dtype) for value in COPY], str(exponent))
    content[8:10] = struct.pack("<h", exponent - beyond)
    apply_patch(framed(bytes(content)), [value.to(dtype) for value in COPY])


def test_a_bomb_takes_no_memory() -> None:
    bomb = framed(bytes(2**28))
    tracemalloc.start()
    try:
        assert_refused(bomb, match="claims 268435456")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
