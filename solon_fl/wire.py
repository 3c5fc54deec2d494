"""Tensors to Flower arrays and back, with one copy out and none in."""

import io
import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from solon_fl.errors import ConfigurationError

__all__ = [
    "STYPE",
    "check_dtype",
    "coded_sizes",
    "is_continuous",
    "npy_header",
    "real_view",
    "to_array",
    "trusted_tensor",
]

STYPE = "numpy.ndarray"  # Flower's name for np.save's format


def to_array(tensor: Tensor) -> Array:
    """Return a tensor (any shape, float or integer, any device) as a Flower array, copied once.

    Raises
    ------
    ConfigurationError
        If numpy, and so Flower, has no such dtype: bfloat16 or float8.
    """
    check_dtype("the tensor", tensor)
    values = tensor.detach().cpu().contiguous().numpy()
    header = npy_header(values.shape, values.dtype)
    data = b"".join((header, values.reshape(-1).view(np.uint8).data))
    return Array(dtype=str(values.dtype), shape=tuple(values.shape), stype=STYPE, data=data)


def check_dtype(what: str, tensor: Tensor) -> None:
    """Raise ConfigurationError if no Flower array can hold a tensor of this dtype."""
    if tensor.dtype.is_floating_point and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        raise ConfigurationError(
            f"Flower's arrays hold float16, float32 and float64; got {what} of {tensor.dtype}; keep the server's model "
            "in float32 (model.float()), and let the nodes compute in less: build_model may return model.bfloat16(), "
            "or batch_loss use torch.autocast."
        )


def trusted_tensor(array: Array) -> Tensor:
    """Return an array that the server sent, or the user made, as a tensor that may be written to."""
    return torch.from_numpy(array.numpy())


def is_continuous(tensor: Tensor) -> bool:
    """Return whether a model's entry holds real or complex numbers, which are coded; integers are not."""
    return tensor.is_floating_point() or tensor.is_complex()


def coded_sizes(arrays: ArrayRecord) -> list[int]:
    """Return the entries of each array of a model that is coded, in order; a complex number is two."""
    return [
        math.prod(array.shape) * (2 if array.dtype.startswith("complex") else 1)
        for array in arrays.values()
        if array.dtype.startswith(("float", "complex"))
    ]


def real_view(tensor: Tensor) -> Tensor:
    """Return a tensor as it is coded: a complex one as pairs of real numbers, (..., 2), on the same memory."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


@lru_cache(maxsize=64)  # a model's arrays are sent to every node, and every share is compared with it
def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return what np.save writes in front of a C-ordered array."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()
