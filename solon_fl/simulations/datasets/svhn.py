"""SVHN, from its two MATLAB files.

SciPy does not read them here: a file with a few changed bytes can make its reader end the whole process (SciPy 1.17).
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.datasets.dataset import Dataset, damaged, existing_folder
from solon_fl.simulations.datasets.images import Split, normalised

__all__ = ["svhn"]

_HEADER_BYTES = 128
_VERSION = b"\x00\x01IM"  # the header's end: version 5, least significant byte first
_INT8, _UINT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 2, 5, 6, 14, 15  # types of elements
_UINT8_CLASS = b"\x09"  # of a matrix
_MAX_BYTES = 2**30  # of one array; the larger of the two files is 225 MB


def svhn(data_dir: Path | None) -> Dataset:
    """Return SVHN's cropped digits from its two MATLAB files."""
    root = existing_folder("svhn", data_dir, "train_32x32.mat and test_32x32.mat")
    train, test = (_read_mat(root / f"{split}_32x32.mat") for split in ("train", "test"))
    return normalised("svhn", train, test, root)


def _read_mat(path: Path) -> Split:
    if not path.is_file():
        rule = f"svhn needs train_32x32.mat and test_32x32.mat; found no {path.name} in {path.parent}"
        raise ConfigurationError(f"{rule}; put it there, or set data_dir to another folder.")
    try:
        content = memoryview(path.read_bytes())
        if content[:_HEADER_BYTES][-4:] != _VERSION:
            raise ValueError(f"header ends in {bytes(content[:_HEADER_BYTES][-4:])!r}")
        arrays = dict(_array(kind, data) for kind, data in _elements(content[_HEADER_BYTES:]))
        images, labels = arrays["X"], arrays["y"]
    except (OSError, ValueError, KeyError, struct.error, zlib.error) as error:
        raise damaged(path, "an SVHN file must be a MATLAB file with X and y, both bytes", repr(error)) from error
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise damaged(path, "SVHN's X must have shape (32, 32, 3, N)", f"X of shape {images.shape}")
    if labels.shape != (images.shape[3], 1) or not np.isin(labels, range(1, 11)).all():
        got = f"y of shape {labels.shape}, values {np.unique(labels)[:12].tolist()}"
        raise damaged(path, f"SVHN's y must be from 1 to 10, of shape ({images.shape[3]}, 1)", got)
    return images.transpose(3, 2, 0, 1), labels[:, 0] % 10  # the digit 0 is stored as 10


def _elements(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the type and the data of each element of a MATLAB file, or of a matrix in it."""
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from("<II", content, at)
        start = at + 8
        if kind >> 16:  # small element: size and type share a word, and the data (at most 4 bytes) follow it
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if start + size > len(content) or (start == at + 4 and size > 4):
            raise ValueError(f"an element of {size} bytes, which is beyond its end")
        yield kind, content[start : start + size]
        at = start + size if kind == _COMPRESSED else start + size + -(start + size) % 8


def _array(kind: int, data: memoryview) -> tuple[str, npt.NDArray[np.uint8]]:
    """Return the name and the values of an array of bytes."""
    if kind == _COMPRESSED:
        decompressor = zlib.decompressobj()
        data = memoryview(decompressor.decompress(data, _MAX_BYTES))
        if not decompressor.eof:
            raise ValueError(f"an array that is cut off, or longer than {_MAX_BYTES} bytes")
        ((kind, data),) = _elements(data)
    if kind != _MATRIX:
        raise ValueError(f"an element of type {kind}")
    kinds, parts = zip(*_elements(data), strict=True)
    if kinds != (_UINT32, _INT32, _INT8, _UINT8) or parts[0][:1] != _UINT8_CLASS:
        raise ValueError(f"a matrix of class 0x{parts[0][:1].hex()}, elements of types {kinds}")
    _, shape, name, values = parts
    dimensions = [int(side) for side in np.frombuffer(shape, "<u4")]
    return bytes(name).decode("ascii"), np.frombuffer(values, np.uint8).reshape(dimensions, order="F")
