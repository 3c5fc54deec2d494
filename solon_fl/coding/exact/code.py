"""The exact code: Reed-Solomon over GF(2^32 - 5), of the bits of float32 gradients."""

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

CPU_NUMBERS = 20 * 2**14  # that are worked on at once
GPU_NUMBERS = 2**24


class ExactCode(Code):
    """Shares are values of polynomials over a finite field, whose numbers are the bits of the gradient's entries.

    The gradient is cut into k chunks of m = ceil(d / k) entries, zeros beyond d. Share j < k is chunk j as it is. The
    others hold, at each place, the value at j + 1 of the polynomial of degree < k that takes the chunks' bits at
    1 to k. Any k shares fix the gradient bit by bit: -0, denormal numbers, infinity and (one) NaN included.

    See `Code` for parameters and errors, and `ExactDecoder` for what is guaranteed.

    Notes
    -----
    For nodes that compute the same bits: machines of one make with the same software. r and k are limited by computing
    alone. A share is float32 and no longer than of any other code, but shares from k on are no numbers: only
    their bits mean something. float16 and bfloat16 gradients are coded as float32; float64 ones are refused.
    Cost: shares below k are views; the others take d conversions and 2 d multiply-adds in float64, and a few MB.
    Differs from the paper, which codes real numbers. A share costs no byte more: p is larger than the bits of
    every float32 but five of the NaNs, which are made one.

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
        """1: tensors need no padding, as no entry can spoil another."""
        return 1

    def sections(self, tensors: Iterable[tuple[int, str]]) -> Sections:
        """See `Code.sections`: one, as nothing is measured."""
        return Sections.whole(self.share_dim(sum(size for size, _ in tensors)))

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Refuse float64."""
        if dtype == torch.float64:
            raise ConfigurationError(
                "code='exact' takes float32, float16 and bfloat16 gradients, as a float64 has more bits than a number "
                "of its field; got a float64 entry; make the whole model float32, or use code='fourier'."
            )

    @cached_property
    def points(self) -> FieldArray:
        """Where share j takes its polynomials, j + 1; (r,) uint64."""
        return np.arange(1, self.group_size + 1, dtype=np.uint64)

    def interpolation(self, known: list[int], wanted: list[int]) -> FieldArray:
        """Return the matrix, (wanted, k), over the field that makes of k shares others."""
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
        buffer = torch.empty(self.compression, block, dtype=torch.float64, device=device)  # new memory is slow
        whole, rest = divmod(values.numel(), length)
        chunks, last = values[: whole * length].view(whole, length), values[whole * length :]
        for start in range(0, length, block):
            columns = buffer[:, : length - start]
            columns[whole:].zero_()
            columns[:whole] = float_bits(chunks[:, start : start + block])  # which is in the cache from then on
            if rest > start:
                columns[whole, : rest - start] = float_bits(last[start : start + block])
            share[start : start + block] = canonical(combined(matrix, columns))[0].view(torch.float32)
        return share


def block_size(num_rows: int, device: torch.device) -> int:
    """Return how many columns of so many rows are worked on at once."""
    return max((CPU_NUMBERS if device.type == "cpu" else GPU_NUMBERS) // num_rows, 1024)
