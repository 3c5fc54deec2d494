"""Patches: what brings a copy of a model near the model, in half a byte an entry and less.

A patch holds the difference between target and copy, rounded: in blocks of 256 entries, each entry one of 15 multiples
of the block's step. What was rounded away is in the next patch, since it is still in the difference ("EF21-P").

The bytes: `_MAGIC`, the number of tensors and their sizes; then a zstd frame of all tensors' exponents (a block's step
is 2 to the exponent) and all tensors' symbols, two in a byte. zstd finds few repetitions here, but its Huffman code
comes within 2 % of the entropy, and two symbols in a byte let it spend less than a bit on one.

A step is a power of two, so a symbol times the step is exact, and each entry of a copy is rounded once, in the sum:
fused or not, vectorised or not, on any number of threads, every machine gets the same bits.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from torch import Tensor

from solon_fl.errors import PatchError

__all__ = ["apply_patch", "make_patch"]

_Floats = npt.NDArray[np.floating[Any]]
_Exponents = npt.NDArray[np.int16]
_Symbols = npt.NDArray[np.uint8]

_MAGIC = b"solon patch 1\n"
_BLOCK = 256  # entries that share a step; even
_LARGEST = 7  # symbols are from -7 to 7: with one to spare, half a byte
_PIECE = 128 * _BLOCK  # entries worked on at a time: what the caches hold
# Literals are nearly all there is: a small table and long matches only keep zstd from looking for more.
_ZSTD = {"min_match": 7, "hash_log": 10, "write_checksum": True}


def make_patch(target: Sequence[Tensor], copy: Sequence[Tensor]) -> bytes | None:
    """Return the patch that brings the copy near the target, and apply it to the copy in place.

    Parameters
    ----------
    target, copy : sequence of Tensor
        Of the same shapes, contiguous, on the CPU, float16, float32 or float64. Complex tensors come as
        ``torch.view_as_real`` of them. A copy may be of another dtype than its target.

    Returns
    -------
    bytes or None
        None, with the copy as it was, if some difference is not finite in the copy's dtype (float32 if that is
        float16), so that no patch can say it: send the whole.

    Raises
    ------
    ValueError
        If the shapes differ.

    Notes
    -----
    Guarantee: in each block of 256 entries, the largest error falls to 2/7 of what it was or less (to 1/7 or less
    before the sum is rounded), until each entry of the copy is its target, if that is finite in the copy's dtype; a
    float16 copy of a float32 target comes within one unit in the last place. Copies stay finite.

    Cost: at most half a byte an entry, 2 bytes for each 256 entries or part of them, and 8 bytes a tensor; what it
    comes to in training is 0.08 to 0.1 of float32.

    References
    ----------
    K. Gruntkowska, A. Tyurin, P. Richtarik, "EF21-P and friends: improved theoretical communication complexity for
    distributed optimization with bidirectional compression", ICML 2023, algorithm 1. Differs: nodes send exact
    gradients.
    """
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (target, copy)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"target and copy must have the same shapes; got {shapes[0]} and {shapes[1]}.")
    wanted, held = _flat(target), _flat(copy)
    body = np.empty(_body_size(held), np.uint8)
    for values, old, (exponents, symbols) in zip(wanted, held, _parts(body, held), strict=True):
        if not _quantise(values, old, exponents, symbols):
            return None
    _add(body, held)
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(1, source_size=len(body), **_ZSTD)
    )
    return _header(held) + compressor.compress(body.data)


def apply_patch(patch: bytes | memoryview, copy: Sequence[Tensor]) -> None:
    """Apply a patch to a copy in place: the same bits on every machine.

    Parameters
    ----------
    patch : bytes or memoryview
        From `make_patch`.
    copy : sequence of Tensor
        Equal to the copy that `make_patch` was given, in sizes, dtypes and bits. On the CPU, contiguous.

    Raises
    ------
    PatchError
        If this is no patch for tensors of these sizes and dtypes, or damaged; the copy is as it was. A patch for other
        values of the same sizes is not noticed.

    Notes
    -----
    Cost: half a byte an entry of memory, whatever the patch claims to hold.
    """
    held = _flat(copy)
    _add(_body_of(memoryview(patch), held), held)


def _flat(tensors: Sequence[Tensor]) -> list[_Floats]:
    """Return the tensors' own memory, one-dimensional."""
    return [tensor.detach().view(-1).numpy() for tensor in tensors]


def _computing(values: _Floats) -> np.dtype[Any]:
    """Return the dtype that differences and sums are computed in."""
    return np.promote_types(values.dtype, np.float32)


def _header(held: Sequence[_Floats]) -> bytes:
    return _MAGIC + struct.pack(f"<I{len(held)}Q", len(held), *(values.size for values in held))


def _num_blocks(values: _Floats) -> int:
    return -(-values.size // _BLOCK)


def _body_size(held: Sequence[_Floats]) -> int:
    return sum(2 * _num_blocks(values) + (values.size + 1) // 2 for values in held)


def _parts(body: _Symbols, held: Sequence[_Floats]) -> Iterator[tuple[_Exponents, _Symbols]]:
    """Yield the part of the body that is a tensor's exponents, and that of its symbols."""
    first_exponent, first_symbol = 0, 2 * sum(map(_num_blocks, held))
    for values in held:
        end_of_exponents = first_exponent + 2 * _num_blocks(values)
        end_of_symbols = first_symbol + (values.size + 1) // 2
        yield body[first_exponent:end_of_exponents].view("<i2"), body[first_symbol:end_of_symbols]
        first_exponent, first_symbol = end_of_exponents, end_of_symbols


def _body_of(patch: memoryview, held: Sequence[_Floats]) -> _Symbols:
    """Return a patch's body once all of it was checked."""
    header, size = _header(held), _body_size(held)
    if patch[: len(header)] != header:
        sizes = [values.size for values in held]
        begin = bytes(patch[:32])
        raise PatchError(f"a patch must begin with its format and the tensors' sizes, {sizes}; got {begin!r}.")
    frame = patch[len(header) :]
    try:
        claimed = zstandard.get_frame_parameters(frame).content_size
        if claimed != size:
            raise PatchError(f"a patch of these tensors must hold {size} bytes; got one that claims {claimed}.")
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PatchError(f"a patch must hold one whole zstd frame; got {len(frame)} bytes: {error}.") from error
    body = np.frombuffer(content, np.uint8)
    if body.size != size:
        raise PatchError(f"a patch of these tensors must hold {size} bytes; got {body.size}.")
    for values, (exponents, _) in zip(held, _parts(body, held), strict=True):
        least, most = _exponent_range(_computing(values))
        if exponents.size and not least <= exponents.min() <= exponents.max() <= most:
            found = exponents.min(), exponents.max()
            raise PatchError(f"exponents must be from {least} to {most} for {values.dtype}; got {found}.")
    return body


def _exponent_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the exponents of the least step above 0 and of the largest of which seven are finite."""
    info = np.finfo(dtype)
    return int(info.minexp - info.nmant), int(info.maxexp) - 3


def _quantise(target: _Floats, copy: _Floats, exponents: _Exponents, symbols: _Symbols) -> bool:
    """Write the difference's steps and symbols; return whether it is finite."""
    dtype = _computing(copy)
    scratch = np.empty(_PIECE, dtype)
    magnitudes, codes = np.empty_like(scratch), np.empty(_PIECE, np.int8)
    for first in range(0, copy.size, _PIECE):
        size = min(_PIECE, copy.size - first)
        blocks = slice(first // _BLOCK, (first + size - 1) // _BLOCK + 1)
        padded = (blocks.stop - blocks.start) * _BLOCK
        difference = scratch[:padded]
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN, that are found below
            np.subtract(
                target[first : first + size],
                copy[first : first + size],
                out=difference[:size],
                dtype=dtype,
                casting="same_kind",
            )
        difference[size:] = 0
        largest = np.abs(difference, out=magnitudes[:padded]).reshape(-1, _BLOCK).max(axis=1)
        if not np.isfinite(largest).all():
            return False
        # Twice the step's exponent in [largest / 7, 2 * largest / 7): symbols of up to 7, and the largest at least 3.5.
        exponent = np.clip(np.frexp(largest / (_LARGEST / 2))[1] - 1, *_exponent_range(dtype))
        exponents[blocks] = exponent
        steps = np.ldexp(dtype.type(1), exponent)[:, None]
        by_block = difference.reshape(-1, _BLOCK)
        np.rint(np.divide(by_block, steps, out=by_block), out=by_block)
        code = codes[:padded]
        np.copyto(code, difference, casting="unsafe")
        np.clip(code, -_LARGEST, _LARGEST, out=code)
        code += 8
        pairs = code.view("<u2")
        pairs |= pairs >> 4
        symbols[first // 2 : (first + size + 1) // 2] = pairs[: (size + 1) // 2].astype(np.uint8)
    return True


def _add(body: _Symbols, held: Sequence[_Floats]) -> None:
    """Add symbols times steps to the copies."""
    for values, (exponents, symbols) in zip(held, _parts(body, held), strict=True):
        _add_to(values, exponents, symbols)


def _add_to(copy: _Floats, exponents: _Exponents, symbols: _Symbols) -> None:
    dtype = _computing(copy)
    most = dtype.type(np.finfo(copy.dtype).max)
    scratch, pairs = np.zeros(_PIECE, dtype), np.zeros(_PIECE // 2, "<u2")
    all_steps = np.ldexp(dtype.type(1), exponents)[:, None]
    for first in range(0, copy.size, _PIECE):
        size = min(_PIECE, copy.size - first)
        blocks = slice(first // _BLOCK, (first + size - 1) // _BLOCK + 1)
        padded = (blocks.stop - blocks.start) * _BLOCK
        pair = pairs[: (size + 1) // 2]
        pair[:] = symbols[first // 2 : (first + size + 1) // 2]
        pair |= pair << 4
        pair &= 0x0F0F
        code = pairs.view(np.int8)[:padded]
        code -= 8
        change = scratch[:padded]
        np.multiply(code.reshape(-1, _BLOCK), all_steps[blocks], out=change.reshape(-1, _BLOCK))
        entries, new = copy[first : first + size], change[:size]
        with np.errstate(over="ignore"):  # beyond the largest is the largest
            np.add(new, entries, out=new)
        entries[:] = np.clip(new, -most, most, out=new)
