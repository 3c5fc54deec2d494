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
    """Return the decoder of the smallest code of this kind that tolerates s liars and e missing shares."""
    size = smallest_group(byzantine=byzantine, compression=compression, stragglers=stragglers)
    code = kind(group_size=size, compression=compression)
    return RealDecoder(code, byzantine=byzantine, stragglers=stragglers, **more)


def fourier_decoder(*, byzantine: int, compression: int, stragglers: int = 0, **more: Any) -> RealDecoder:
    """Return the decoder of the smallest Fourier code that tolerates s liars and e missing shares."""
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
    """Decode; if `looking`, skip the fast path, so that projection and least squares run at once."""
    with without_comparing(looking):
        generator = None if seed is None else seeded(seed)
        return decoder.decode(shares, dim=dim, sections=sections, generator=generator)


def without_comparing(wanted: bool) -> AbstractContextManager[object]:
    """If wanted, make decoders skip the fast path, so that they project at once."""
    return patch.object(RealDecoding, "_decode_fast", return_value=None) if wanted else nullcontext()


def error_of(decoded: Decoded, gradient: Tensor) -> float:
    """Return the norm of the decoded gradient's error."""
    assert decoded.gradient is not None
    assert decoded.gradient.shape == gradient.shape
    error = decoded.gradient.double() - gradient.double()
    largest = error.abs().max().clamp_min(5e-324)  # the squares of small errors underflow
    return float((error / largest).norm() * largest)


def problem_of(code: RealCode, lies: dict[int, float], seed: int = 0, num_projections: int = 16) -> LocatingProblem:
    """Return the problem in which each row in `lies` is off by a random vector of the given norm."""
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
