"""Patches that bring a copy of a model near the model, in a tenth of the model's bytes.

A patch holds the rounded difference between target and copy. In blocks of 256 entries, each entry is one of 13
multiples of the block's step. Rounding errors are part of the next patch, because they remain in the difference
("EF21-P").

Format: `_FORMAT`, the number of tensors and their sizes; then a zstd frame with the exponents of all blocks (a block's
step is 2 to the exponent) and the symbols of all blocks, two per byte. The last block of a tensor is padded with zeros.
zstd finds few repetitions here, but its Huffman code comes within 2 % of the entropy. Two symbols per byte let it spend
less than one bit on a symbol.

A step is a power of two, so a symbol times the step is exact, and each entry of a copy is rounded once, in the sum. So
every machine gets the same bits: fused or not, vectorised or not, on any number of threads (unless the machine flushes
denormals to 0).
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
_LARGEST = 6  # the multiples of the step range from -6 to 6
_ZERO = 8  # the symbol of 0; the other symbols are around it, so that each fits into half a byte
_PIECE = 1024  # blocks processed at once: few enough for the caches, and enough to make the cost of calls small


def make_patch(target: Sequence[Tensor], copy: Sequence[Tensor]) -> bytes | None:
    """Return the patch that brings the copy near the target, and apply it to the copy in place.

    Parameters
    ----------
    target, copy : sequence of Tensor
        Tensors of the same shapes, contiguous, on the CPU, float16, float32 or float64. Pass complex tensors as
        ``torch.view_as_real``. The dtype of a copy may differ from its target's.

    Returns
    -------
    bytes or None
        The patch. None, with the copy unchanged, if no patch can represent a difference: if it is infinite, NaN, or at
        least a quarter of its dtype's range, which is 2 ** 127 for float32 (also used for float16 copies) and 2 ** 1023
        for float64.

    Raises
    ------
    ValueError
        If the shapes differ.

    Notes
    -----
    Guarantee: each patch towards the same target reduces a block's largest error to a third or less, until the copy
    equals the target. A float16 copy of a float32 target ends within one unit in its last place. A finite copy stays
    finite.

    Cost: 130 bytes per block of up to 256 entries, which zstd reduces by a third in training, and 8 bytes per tensor.

    References
    ----------
    K. Gruntkowska, A. Tyurin, P. Richtarik, "EF21-P and friends: improved theoretical communication complexity for
    distributed optimization with bidirectional compression", ICML 2023. Differs in that gradients are not compressed
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
    # Measurements show that with only long matches and a small table to find them, zstd wastes no time on matches.
    settings = zstandard.ZstdCompressionParameters.from_level(
        1, source_size=body.size, min_match=7, hash_log=10, write_checksum=True
    )
    return _header(held) + zstandard.ZstdCompressor(compression_params=settings).compress(body.data)


def apply_patch(patch: bytes | memoryview, copy: Sequence[Tensor]) -> None:
    """Apply a patch to a copy in place, with the same bits on every machine.

    Parameters
    ----------
    patch : bytes or memoryview
        The return value of `make_patch`.
    copy : sequence of Tensor
        Contiguous tensors on the CPU, equal to the copy passed to `make_patch` in sizes, dtypes and bits.

    Raises
    ------
    PatchError
        If the patch is damaged or not for tensors of these sizes and dtypes; the copy is unchanged. A patch for other
        values of the same sizes is not detected, so compare digests of the result.

    Notes
    -----
    Cost: 130 bytes of memory per block of up to 256 entries, whatever size the patch claims.
    """
    held = _flat(copy)
    _add(_body_of(memoryview(patch), held), held)


def _flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return one-dimensional views of the tensors."""
    return [tensor.detach().view(-1) for tensor in tensors]


def _computing(values: Tensor) -> torch.dtype:
    """Return the dtype in which differences and sums are computed."""
    return torch.promote_types(values.dtype, torch.float32)


def _header(held: Sequence[Tensor]) -> bytes:
    return _FORMAT + struct.pack(f"<I{len(held)}Q", len(held), *(values.numel() for values in held))


def _num_blocks(size: int) -> int:
    return -(-size // _BLOCK)


def _body_size(held: Sequence[Tensor]) -> int:
    return (2 + _BLOCK // 2) * sum(_num_blocks(values.numel()) for values in held)


def _exponents_and_symbols(body: _Bytes) -> tuple[npt.NDArray[np.int16], _Bytes]:
    """Return views of a body: one exponent and one row of symbols per block."""
    num_blocks = len(body) // (2 + _BLOCK // 2)
    return body[: 2 * num_blocks].view("<i2"), body[2 * num_blocks :].reshape(num_blocks, _BLOCK // 2)


def _body_of(patch: memoryview, held: Sequence[Tensor]) -> _Bytes:
    """Check all of a patch and return its body."""
    header, size = _header(held), _body_size(held)
    if patch[: len(header)] != header:
        begin, sizes = bytes(patch[:40]), [values.numel() for values in held]
        raise PatchError(f"a patch must begin with its format and the tensors' sizes, {sizes}; got {begin!r}.")
    frame = patch[len(header) :]
    try:
        claimed = zstandard.get_frame_parameters(frame).content_size  # zstandard allocates this size
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
    """Return the exponents of the smallest positive number and of the largest step of which seven are finite."""
    info = torch.finfo(dtype)
    return math.frexp(info.tiny * info.eps)[1] - 1, math.frexp(info.max)[1] - 3


@dataclass(slots=True)
class _Piece:
    """A run of successive blocks, of one or more tensors.

    Attributes
    ----------
    dtype : torch.dtype
        The dtype in which they are computed.
    blocks : slice
        The blocks, among those of all tensors.
    parts : list of (int, slice, slice)
        The number of a tensor, its entries, and their place in the piece.
    """

    dtype: torch.dtype
    blocks: slice
    parts: list[tuple[int, slice, slice]]

    def __len__(self) -> int:
        return int(self.blocks.stop - self.blocks.start)


def _pieces(held: Sequence[Tensor]) -> Iterator[_Piece]:
    """Yield all blocks in pieces: a large part of one tensor, or many small tensors."""
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
    """Memory reused for every piece, because allocation costs as much as the computation."""

    def __init__(self, num_blocks: int) -> None:
        self._size = min(num_blocks, _PIECE) * _BLOCK
        self._rows: dict[tuple[str, torch.dtype], Tensor] = {}

    def rows(self, name: str, num_blocks: int, dtype: torch.dtype) -> Tensor:
        """Return one uninitialised row per block."""
        if (name, dtype) not in self._rows:
            self._rows[name, dtype] = torch.empty(self._size, dtype=dtype).view(-1, _BLOCK)
        return self._rows[name, dtype][:num_blocks]


def _quantise(target: Sequence[Tensor], copy: Sequence[Tensor], body: _Bytes) -> bool:
    """Write the exponents and symbols of the differences; return whether all differences can be represented."""
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
        if not (largest < 2.0 ** (most + 2)).all():  # also true for NaN
            return False
        # The largest is fraction * 2**power. Choose the step so that this is at least 3 and below 6 steps.
        fraction, power = np.frexp(largest)
        exponents = np.maximum(power - 3 + (fraction >= _LARGEST / 8), least)
        torch.div(differences, _steps(exponents, dtype), out=rounded)
        codes.copy_(rounded.add_(_ZERO + 0.5))  # the conversion drops the fraction
        pairs = codes.numpy().view("<u2")
        all_exponents[piece.blocks] = exponents
        all_symbols[piece.blocks] = pairs | pairs >> 4
    return True


def _steps(exponents: npt.NDArray[np.integer[Any]], dtype: torch.dtype) -> Tensor:
    """Return the steps as a column, (blocks, 1)."""
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
            # Clamp to the largest number: rounding up must not produce infinity.
            part.copy_(flat[place].add_(part).clamp_(-largest, largest))
