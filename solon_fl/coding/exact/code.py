"""The exact code: a Reed-Solomon code over GF(2^32 - 5) that encodes the bits of float32 gradients."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from solon_fl.coding.code import Code
from solon_fl.coding.sections import Sections
from solon_fl.errors import ConfigurationError

from .field import FieldArray, canonical, combined, float_bits, halves, lagrange

__all__ = ["ExactCode"]

CPU_NUMBERS = 20 * 2**14  # numbers processed at once
GPU_NUMBERS = 2**24


class ExactCode(Code):
    """Shares are values of polynomials over a finite field whose elements are the bits of the gradient's entries.

    The gradient is cut into k chunks of m = ceil(d / k) entries, with zeros beyond d. Share j < k is chunk j,
    unchanged. At each position, share j >= k holds the value at j + 1 of the polynomial of degree < k that takes the
    chunks' bits as its values at 1 to k. Any k shares determine every bit of the gradient, including -0, denormal
    numbers and infinity. All NaNs become one NaN.

    See `Code` for parameters and errors, and `ExactDecoder` for the guarantees.

    Notes
    -----
    Use it where all nodes compute the same bits, that is, with hardware and software of the same kind. Only the cost of
    computing limits r and k. A share is float32 and as long as with any other code, but only the bits of shares k and
    above have a meaning, not their values as numbers. float16 and bfloat16 gradients are encoded as float32; float64
    gradients are refused.

    Cost: shares below k are views. The others take d conversions and 2 d multiply-adds in float64, and a few MB.

    Differs from the paper, which encodes real numbers. A share needs no extra byte, because the bits of every float32
    are a number below p, except for five NaN patterns, and all NaNs are mapped to one.

    Examples
    --------
    >>> import torch
    >>> from solon_fl import ExactCode
    >>> code = ExactCode(group_size=4, compression=2)
    >>> gradient = torch.tensor([1.0, 2.0, -0.0, 0.5])
    >>> code.encode(gradient, slot=1)
    tensor([-0.0000, 0.5000])
    >>> code.encode(gradient, slot=2).view(torch.int32)  # 2 x second - first, mod p
    tensor([-1065353221,  1040187392], dtype=torch.int32)

    References
    ----------
    Reed & Solomon, 1960; Chen et al., arXiv:2110.01595, for the scheme.
    """

    @property
    def multiple(self) -> int:
        """1: tensors need no padding, because the entries of a column are recovered exactly."""
        return 1

    def sections(self, tensors: Iterable[tuple[int, str]]) -> Sections:
        """See `Code.sections`. There is one section, because an exact code measures no noise."""
        return Sections.whole(self.share_dim(sum(size for size, _ in tensors)))

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Refuse float64."""
        if dtype == torch.float64:
            raise ConfigurationError(
                "code='exact' takes float32, float16 and bfloat16 gradients, because a float64 has more bits than an "
                "element of its field; got a float64 entry; make the whole model float32, or use code='fourier'."
            )

    @cached_property
    def points(self) -> FieldArray:
        """The point at which share j evaluates its polynomials, j + 1; (r,) uint64."""
        return np.arange(1, self.group_size + 1, dtype=np.uint64)

    def interpolation(self, known: list[int], wanted: list[int]) -> FieldArray:
        """Return the matrix over the field, (wanted, k), that computes the wanted shares from k known ones."""
        return lagrange(self.points[known], self.points[wanted])

    def _encode(self, gradient: Tensor, slot: int) -> Tensor:
        values = gradient.to(torch.float32).contiguous()
        length, device = self.share_dim(values.numel()), values.device
        if slot < self.compression:
            share = float_bits(values[slot * length : (slot + 1) * length]).view(torch.float32)
            return share if share.numel() == length else functional.pad(share, (0, length - share.numel()))
        matrix = halves(self.interpolation(list(range(self.compression)), [slot]), device)
        share = torch.empty(length, dtype=torch.float32, device=device)
        block = min(block_size(self.compression, device), length)
        buffer = torch.empty(self.compression, block, dtype=torch.float64, device=device)  # reused: allocation is slow
        whole, rest = divmod(values.numel(), length)
        chunks, last = values[: whole * length].view(whole, length), values[whole * length :]
        for start in range(0, length, block):
            columns = buffer[:, : length - start]
            columns[whole:].zero_()
            columns[:whole] = float_bits(chunks[:, start : start + block])  # brings the block into the cache
            if rest > start:
                columns[whole, : rest - start] = float_bits(last[start : start + block])
            share[start : start + block] = canonical(combined(matrix, columns))[0].view(torch.float32)
        return share


def block_size(num_rows: int, device: torch.device) -> int:
    """Return how many columns to process at once, given the number of rows."""
    return max((CPU_NUMBERS if device.type == "cpu" else GPU_NUMBERS) // num_rows, 1024)
