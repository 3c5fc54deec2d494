"""Tensors to Flower arrays and back, with one copy out and none in."""

import io
import math
import warnings
from typing import Any

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from solon_fl.errors import InvalidReplyError

__all__ = ["to_array", "trusted_tensor", "untrusted_tensor"]

STYPE = "numpy.ndarray"  # Flower's name for np.save's format


def to_array(tensor: Tensor) -> Array:
    """Return a tensor (any shape, float or integer, any device) as a Flower array, copied once."""
    values = tensor.detach().cpu().contiguous().numpy()
    header = npy_header(values.shape, values.dtype)
    data = b"".join((header, values.reshape(-1).view(np.uint8).data))
    return Array(dtype=str(values.dtype), shape=tuple(values.shape), stype=STYPE, data=data)


def trusted_tensor(array: Array) -> Tensor:
    """Return an array that the server sent, or the user made, as a tensor that may be written to."""
    return torch.from_numpy(array.numpy())


def untrusted_tensor(array: Array, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an array that a node sent as a tensor of that shape and dtype on its bytes, if it is exactly that.

    The header is compared, never parsed: there is one byte string that says "this shape of this dtype", so a
    forged one can't make the server allocate anything. The result shares memory with the message and must
    not be written to.

    Raises
    ------
    InvalidReplyError
        If dtype, shape, serialisation, header or number of bytes differ from what was asked for.
    """
    numpy_dtype = np.dtype(str(dtype).removeprefix("torch."))
    header = npy_header(shape, numpy_dtype)
    expected = len(header) + math.prod(shape) * numpy_dtype.itemsize
    for what, got, wanted in (
        ("serialisation", array.stype, STYPE),
        ("dtype", array.dtype, str(numpy_dtype)),
        ("shape", tuple(array.shape), shape),
        ("size in bytes", len(array.data), expected),
    ):
        if got != wanted:
            raise InvalidReplyError(f"{what} of the array should be {wanted}; got {_shown(got)}")
    if not array.data.startswith(header):
        raise InvalidReplyError("the array's npy header does not say what it should")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is only read
        if not math.prod(shape):
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(array.data, dtype=dtype, offset=len(header)).view(shape)


def _shown(claimed: object) -> str:
    """Return what a node claims, cut before it is written out: Python refuses to write numbers of 4,300 digits."""
    if isinstance(claimed, tuple):
        shown = ", ".join(_shown(size) for size in claimed[:5])
        return f"({shown}, ...)" if len(claimed) > 5 else f"({shown},)" if len(claimed) == 1 else f"({shown})"
    if isinstance(claimed, int) and claimed.bit_length() > 64:
        return "a huge number"
    return str(claimed)[:80]


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return what np.save writes in front of a C-ordered array."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()
