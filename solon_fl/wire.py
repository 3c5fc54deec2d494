"""Conversion of tensors to Flower arrays and back."""

import hashlib
import io
import math
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from solon_fl.errors import ConfigurationError

__all__ = [
    "COUNTER",
    "STYPE",
    "WHOLE_NUMBERS",
    "BufferNames",
    "check_dtype",
    "check_storage",
    "coded_sizes",
    "is_continuous",
    "is_counter",
    "model_sha256",
    "npy_header",
    "real_view",
    "tensors_sha256",
    "to_array",
    "trusted_tensor",
]

STYPE = "numpy.ndarray"  # Flower's name for np.save's format
WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes
_PLAIN_DTYPES = {
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
}
COUNTER = "num_batches_tracked"  # torch's name for the number of batches that a normalisation layer has seen


class BufferNames(tuple[str, ...]):
    """Names of a model's floating-point and complex entries that no gradient changes, in the model's order.

    Attributes
    ----------
    frozen : frozenset of str
        The names of those that nothing changes at all.
    """

    frozen: frozenset[str]

    def __new__(cls, names: Iterable[str] = (), frozen: Iterable[str] = ()) -> "BufferNames":
        """Return names, some of them frozen."""
        made = super().__new__(cls, names)
        made.frozen = frozenset(frozen)
        if unknown := sorted(made.frozen - set(made)):
            raise ConfigurationError(f"frozen entries must be among the names; got {unknown}, not in {list(made)}.")
        return made

    def __getnewargs__(self) -> tuple[tuple[str, ...], frozenset[str]]:
        return tuple(self), self.frozen

    @classmethod
    def of(cls, names: Iterable[str]) -> "BufferNames":
        """Return the names as a `BufferNames`. If they are not one already, none is frozen."""
        return names if isinstance(names, cls) else cls(names)


def to_array(tensor: Tensor) -> Array:
    """Return a tensor (any shape, float or integer, any device) as a Flower array, copied once.

    Raises
    ------
    ConfigurationError
        If numpy, and so Flower, lacks the dtype, such as bfloat16 or float8.
    """
    check_dtype("the tensor", tensor)
    values = tensor.detach().cpu().contiguous().numpy()
    header = npy_header(values.shape, values.dtype)
    data = b"".join((header, values.reshape(-1).view(np.uint8).data))
    return Array(dtype=str(values.dtype), shape=tuple(values.shape), stype=STYPE, data=data)


def model_sha256(arrays: ArrayRecord) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bits of all entries of a model, in hexadecimal digits.

    Two models have the same digest only if they are equal bit for bit.
    """
    return _sha256((name, array.dtype, tuple(array.shape), (array.data,)) for name, array in arrays.items())


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the `model_sha256` of these tensors (on the CPU) without converting them to arrays."""
    all_values = {name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()}
    return _sha256(
        (
            *(name, str(values.dtype), tuple(values.shape)),
            (npy_header(values.shape, values.dtype), values.reshape(-1).view(np.uint8).data),
        )
        for name, values in all_values.items()
    )


def _sha256(entries: Iterable[tuple[str, str, tuple[int, ...], tuple[bytes | memoryview, ...]]]) -> str:
    """Return the SHA-256 of entries, each with a name, a dtype, a shape, and its bytes in parts."""
    digest = hashlib.sha256()
    for name, dtype, shape, parts in entries:
        digest.update(repr((name, dtype, shape, sum(map(len, parts)))).encode())
        for part in parts:
            digest.update(part)
    return digest.hexdigest()


def check_dtype(what: str, tensor: Tensor) -> None:
    """Raise ConfigurationError if no Flower array can hold a tensor of this dtype."""
    if tensor.dtype.is_floating_point and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        raise ConfigurationError(
            f"Flower's arrays hold float16, float32 and float64; got {what} of {tensor.dtype}; keep the server's model "
            "in float32 (model.float()), and let the nodes compute in lower precision: build_model may return "
            "model.bfloat16(), or batch_loss may use torch.autocast."
        )


def trusted_tensor(array: Array) -> Tensor:
    """Return an array from the server or the user, never from an untrusted node, as a writable tensor."""
    if array.dtype in _PLAIN_DTYPES:  # faster than np.load, which takes 0.2 ms to parse a header with Python's compiler
        dtype, shape = np.dtype(array.dtype), tuple(array.shape)
        header = npy_header(shape, dtype)
        size = dtype.itemsize * math.prod(shape)
        if size and len(array.data) == len(header) + size and array.data.startswith(header):
            return torch.from_numpy(np.frombuffer(array.data, dtype, offset=len(header)).reshape(shape).copy())
    return torch.from_numpy(array.numpy())


def is_continuous(tensor: Tensor) -> bool:
    """Return whether a model's entry holds real or complex numbers. These are encoded, integers are not."""
    return tensor.is_floating_point() or tensor.is_complex()


def is_counter(name: str, dtype: torch.dtype) -> bool:
    """Return whether a model's entry of this name is a normalisation layer's count of batches."""
    return name.rpartition(".")[2] == COUNTER and dtype == torch.int64


def check_storage(state: Mapping[str, Tensor]) -> None:
    """Raise ConfigurationError if different tensors of a state_dict (keep_vars=True) share memory.

    On the server they would be separate tensors that drift apart.
    """
    places = []
    first_name = {value: name for name, value in list(state.items())[::-1] if isinstance(value, Tensor)}
    for value, name in first_name.items():
        if value.layout is torch.strided and value.numel() > 0:
            extent = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)) + 1
            places.append((value.data_ptr(), value.data_ptr() + extent * value.element_size(), name))
    places.sort()
    for (_, stop, one), (start, _, other) in pairwise(places):
        if start < stop:
            raise ConfigurationError(
                f"entries of the model must not share memory unless they are one parameter; {one!r} and {other!r} do; "
                "tie them by assigning the same nn.Parameter."
            )


def coded_sizes(arrays: ArrayRecord, frozen: Collection[str] = frozenset()) -> list[int]:
    """Return the number of entries of each encoded array of a model, in order. A complex number counts as two."""
    return [
        math.prod(array.shape) * (2 if array.dtype.startswith("complex") else 1)
        for name, array in arrays.items()
        if array.dtype.startswith(("float", "complex")) and name not in frozen
    ]


def real_view(tensor: Tensor) -> Tensor:
    """Return a tensor in the form in which it is encoded: a complex one as a view of real pairs, (..., 2)."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


@lru_cache(maxsize=1024)  # a model's arrays are sent to every node, and every share is compared with it
def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return the header that np.save writes before a C-ordered array."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()
