"""Codes, decoders and locating problems for the tests of coding, and ways to decode."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from solon_fl import Decoded, FourierCode, LocatingProblem, RealCode, RealDecoder
from solon_fl.coding import smallest_group
from solon_fl.coding.real.decoding import RealDecoding
from solon_fl.coding.sections import Sections


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smallest_decoder(
    kind: type[RealCode], *, byzantine: int, compression: int, stragglers: int = 0, **more: Any
) -> RealDecoder:
    """Return the decoder of the smallest code of that kind that bears s liars and e missing shares."""
    size = smallest_group(byzantine=byzantine, compression=compression, stragglers=stragglers)
    code = kind(group_size=size, compression=compression)
    return RealDecoder(code, byzantine=byzantine, stragglers=stragglers, **more)


def fourier_decoder(*, byzantine: int, compression: int, stragglers: int = 0, **more: Any) -> RealDecoder:
    """Return the decoder of the smallest Fourier code that bears s liars and e missing shares."""
    return smallest_decoder(FourierCode, byzantine=byzantine, compression=compression, stragglers=stragglers, **more)


def shares_of(code: RealCode, gradient: Tensor) -> dict[int, Tensor]:
    return {slot: code.encode(gradient, slot) for slot in range(code.group_size)}


def decode(
    decoder: RealDecoder,
    shares: dict[int, Tensor],
    *,
    looking: bool,
    dim: int | None = None,
    sections: Sections | None = None,
    seed: int | None = None,
) -> Decoded:
    """Decode; if `looking`, by projection and least squares at once, without trying what is mostly enough."""
    with without_comparing(looking):
        generator = None if seed is None else seeded(seed)
        return decoder.decode(shares, dim=dim, sections=sections, generator=generator)


def without_comparing(wanted: bool) -> AbstractContextManager[object]:
    """Let decoders project and look at once, if wanted, without trying what is mostly enough."""
    return patch.object(RealDecoding, "_decode_fast", return_value=None) if wanted else nullcontext()


def error_of(decoded: Decoded, gradient: Tensor) -> float:
    """Return the norm of what the decoded gradient is off by."""
    assert decoded.gradient is not None
    assert decoded.gradient.shape == gradient.shape
    error = decoded.gradient.double() - gradient.double()
    largest = error.abs().max().clamp_min(5e-324)  # the squares of small errors underflow
    return float((error / largest).norm() * largest)


def problem_of(code: RealCode, lies: dict[int, float], seed: int = 0, num_projections: int = 16) -> LocatingProblem:
    """Return the problem in which the rows in `lies` are off by a vector of that norm, random for each."""
    rng = np.random.default_rng(seed)
    projected = code.generator @ rng.normal(size=(code.compression, num_projections))
    for row, size in lies.items():
        direction = rng.normal(size=num_projections)
        projected[row] += size * direction / np.linalg.norm(direction)
    return LocatingProblem(
        generator=code.generator,
        projected=projected,
        points=code.points,
        multipliers=code.multipliers,
        max_errors=(code.group_size - code.compression) // 2,
        tolerance=1e-9,
    )
