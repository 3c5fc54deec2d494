"""Patches: what brings a copy of a model near the model, in a tenth of the model's bytes.

A patch holds the difference between target and copy, rounded: in blocks of 256 entries, each entry one of 13 multiples
of the block's step. What was rounded away is in the next patch, since it is still in the difference ("EF21-P").

The bytes: `_FORMAT`, the number of tensors and their sizes; then a zstd frame of all blocks' exponents (a block's step
is 2 to the exponent) and all blocks' symbols, two in a byte. A tensor's last block is filled up with zeros. zstd finds
few repetitions here, but its Huffman code comes within 2 % of the entropy, and two symbols in a byte let it spend less
than a bit on one.

A step is a power of two, so a symbol times the step is exact, and each entry of a copy is rounded once, in the sum:
fused or not, vectorised or not, on any number of threads, every machine gets the same bits (unless it was told to take
denormals for 0).
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch import Tensor

from solon_fl.errors import PatchError

__all__ = ["apply_patch", "make_patch"]

_Bytes = npt.NDArray[np.uint8]

_FORMAT = b"solon patch 1\n"
_BLOCK = 256  # entries that share a step; even
_LARGEST = 6  # multiples of the step are from -6 to 6
_ZERO = 8  # the symbol of 0; those of the others are around it, so that half a byte holds each
_PIECE = 1024  # blocks worked on at a time: what the caches hold, and enough for calls to cost little


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
        None, with the copy as it was, if a difference is infinite, NaN, or a quarter of its dtype's range: 2 ** 127 for
        float32 (in which float16 copies are computed too), 2 ** 1023 for float64. Then no patch can say it.

    Raises
    ------
    ValueError
        If the shapes differ.

    Notes
    -----
    Guarantee: each patch towards the same target leaves a third of a block's largest error, or less, until the copy is
    the target; a float16 copy of a float32 target ends within one unit in its last place. A finite copy stays finite.

    Cost: 130 bytes for each block of 256 entries or less, which zstd lowers by a third in training, and 8 bytes for
    each tensor.

    References
    ----------
    K. Gruntkowska, A. Tyurin, P. Richtarik, "EF21-P and friends: improved theoretical communication complexity for
    distributed optimization with bidirectional compression", ICML 2023. Differs: gradients are not compressed
    with loss.
    """
    shapes, found = [tuple(tensor.shape) for tensor in target], [tuple(tensor.shape) for tensor in copy]
    if shapes != found:
        raise ValueError(f"copy must have the target's shapes, {shapes}; got {found}.")
    wanted, held = _flat(target), _flat(copy)
    body = np.empty(_body_size(held), np.uint8)
    if not _quantise(wanted, held, body):
        return None
    _add(body, held)
    # Found by measuring: with long matches only and a small table to find them in, zstd wastes no time on matches.
    settings = zstandard.ZstdCompressionParameters.from_level(
        1, source_size=body.size, min_match=7, hash_log=10, write_checksum=True
    )
    return _header(held) + zstandard.ZstdCompressor(compression_params=settings).compress(body.data)


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
        values of the same sizes is not noticed: compare digests of the result.

    Notes
    -----
    Cost: 130 bytes of memory for each block of 256 entries or less, whatever the patch claims to hold.
    """
    held = _flat(copy)
    _add(_body_of(memoryview(patch), held), held)


def _flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors' own memory, one-dimensional."""
    return [tensor.detach().view(-1) for tensor in tensors]


def _computing(values: Tensor) -> torch.dtype:
    """Return the dtype that differences and sums are computed in."""
    return torch.promote_types(values.dtype, torch.float32)


def _header(held: Sequence[Tensor]) -> bytes:
    return _FORMAT + struct.pack(f"<I{len(held)}Q", len(held), *(values.numel() for values in held))


def _num_blocks(size: int) -> int:
    return -(-size // _BLOCK)


def _body_size(held: Sequence[Tensor]) -> int:
    return (2 + _BLOCK // 2) * sum(_num_blocks(values.numel()) for values in held)


def _exponents_and_symbols(body: _Bytes) -> tuple[npt.NDArray[np.int16], _Bytes]:
    """Return views of a body: an exponent, and a row of symbols, for each block."""
    num_blocks = len(body) // (2 + _BLOCK // 2)
    return body[: 2 * num_blocks].view("<i2"), body[2 * num_blocks :].reshape(num_blocks, _BLOCK // 2)


def _body_of(patch: memoryview, held: Sequence[Tensor]) -> _Bytes:
    """Return a patch's body once all of it was checked."""
    header, size = _header(held), _body_size(held)
    if patch[: len(header)] != header:
        begin, sizes = bytes(patch[:40]), [values.numel() for values in held]
        raise PatchError(f"a patch must begin with its format and the tensors' sizes, {sizes}; got {begin!r}.")
    frame = patch[len(header) :]
    try:
        claimed = zstandard.get_frame_parameters(frame).content_size  # it is what zstandard would allocate
        if claimed != size:
            raise PatchError(f"a patch of these tensors must hold {size} bytes; got one that claims {claimed}.")
        body = np.frombuffer(zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as error:
        raise PatchError(f"a patch must end with one zstd frame; got {len(frame)} bytes: {error}.") from error
    exponents, _ = _exponents_and_symbols(body)
    for piece in _pieces(held):
        (least, most), found = _exponent_range(piece.dtype), exponents[piece.blocks]
        if not least <= found.min() <= found.max() <= most:
            beyond = int(found.min()), int(found.max())
            raise PatchError(f"exponents must be from {least} to {most} for {piece.dtype}; got {beyond}.")
    return body


def _exponent_range(dtype: torch.dtype) -> tuple[int, int]:
    """Return the exponents of the least number above 0 and of the largest step of which seven are finite."""
    info = torch.finfo(dtype)
    return math.frexp(info.tiny * info.eps)[1] - 1, math.frexp(info.max)[1] - 3


@dataclass(slots=True)
class _Piece:
    """Some of all tensors' blocks.

    Attributes
    ----------
    dtype : torch.dtype
        That they are computed in.
    blocks : slice
        Which.
    parts : list of (int, slice, slice)
        Which tensor, which of its entries, and which of the piece's.
    """

    dtype: torch.dtype
    blocks: slice
    parts: list[tuple[int, slice, slice]]

    def __len__(self) -> int:
        return int(self.blocks.stop - self.blocks.start)


def _pieces(held: Sequence[Tensor]) -> Iterator[_Piece]:
    """Yield all blocks in pieces: much of a large tensor, or many small ones."""
    piece = _Piece(torch.float32, slice(0, 0), [])
    for number, values in enumerate(held):
        start, size, dtype = 0, values.numel(), _computing(values)
        while start < size:
            if len(piece) == _PIECE or dtype != piece.dtype:
                if len(piece):
                    yield piece
                piece = _Piece(dtype, slice(piece.blocks.stop, piece.blocks.stop), [])
            place = len(piece) * _BLOCK
            stop = min(size, start + _PIECE * _BLOCK - place)
            piece.parts.append((number, slice(start, stop), slice(place, place + stop - start)))
            piece.blocks = slice(piece.blocks.start, piece.blocks.stop + _num_blocks(stop - start))
            start = stop
    if len(piece):
        yield piece


class _Scratch:
    """Memory for a piece, used for one after the other: new memory costs as much as what is done in it."""

    def __init__(self, num_blocks: int) -> None:
        self._size = min(num_blocks, _PIECE) * _BLOCK
        self._rows: dict[tuple[str, torch.dtype], Tensor] = {}

    def rows(self, name: str, num_blocks: int, dtype: torch.dtype) -> Tensor:
        """Return a row for each block, with anything in it."""
        if (name, dtype) not in self._rows:
            self._rows[name, dtype] = torch.empty(self._size, dtype=dtype).view(-1, _BLOCK)
        return self._rows[name, dtype][:num_blocks]


def _quantise(target: Sequence[Tensor], copy: Sequence[Tensor], body: _Bytes) -> bool:
    """Write the exponents and symbols of the differences; return whether they can say them."""
    all_exponents, all_symbols = _exponents_and_symbols(body)
    scratch = _Scratch(len(all_exponents))
    for piece in _pieces(copy):
        dtype = piece.dtype
        least, most = _exponent_range(dtype)
        differences, rounded = (scratch.rows(name, len(piece), dtype) for name in ("differences", "rounded"))
        codes = scratch.rows("codes", len(piece), torch.int8)
        flat = differences.view(-1)
        for number, entries, place in piece.parts:
            torch.sub(target[number][entries].to(dtype), copy[number][entries].to(dtype), out=flat[place])
            flat[place.stop : _num_blocks(place.stop) * _BLOCK] = 0
        largest = torch.abs(differences, out=rounded).amax(dim=1).numpy()
        if not (largest < 2.0 ** (most + 2)).all():  # nor is NaN
            return False
        # The largest is fraction * 2**power. In steps it is to be at least 3 and below 6.
        fraction, power = np.frexp(largest)
        exponents = np.maximum(power - 3 + (fraction >= _LARGEST / 8), least)
        torch.div(differences, _steps(exponents, dtype), out=rounded)
        codes.copy_(rounded.add_(_ZERO + 0.5))  # which drops the fraction
        pairs = codes.numpy().view("<u2")
        all_exponents[piece.blocks] = exponents
        all_symbols[piece.blocks] = pairs | pairs >> 4
    return True


def _steps(exponents: npt.NDArray[np.integer[Any]], dtype: torch.dtype) -> Tensor:
    """Return the steps, a column: (blocks, 1)."""
    one = np.float64(1) if dtype == torch.float64 else np.float32(1)
    return torch.from_numpy(np.ldexp(one, exponents)).unsqueeze(1)


def _add(body: _Bytes, held: Sequence[Tensor]) -> None:
    """Add symbols times steps to the copies."""
    all_exponents, all_symbols = _exponents_and_symbols(body)
    scratch = _Scratch(len(all_exponents))
    for piece in _pieces(held):
        changes = scratch.rows("changes", len(piece), piece.dtype)
        codes = scratch.rows("codes", len(piece), torch.int8)
        pairs = codes.numpy().view("<u2")
        pairs[:] = all_symbols[piece.blocks]
        pairs |= pairs << 4
        pairs &= 0x0F0F
        changes.copy_(codes.sub_(_ZERO)).mul_(_steps(all_exponents[piece.blocks], piece.dtype))
        flat = changes.view(-1)
        for number, entries, place in piece.parts:
            part = held[number][entries]
            largest = torch.finfo(part.dtype).max
            # Beyond the largest number is the largest: rounding up must not make it infinite.
            part.copy_(flat[place].add_(part).clamp_(-largest, largest))
