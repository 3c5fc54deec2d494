"""Locating problems, and ways to decode, for the tests of locators and decoders."""

from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import numpy as np

from solon_fl import LinearCode, LocatingProblem
from solon_fl.coding import decoder


def problem_of(code: LinearCode, lies: dict[int, float], seed: int = 0, num_projections: int = 16) -> LocatingProblem:
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
        max_errors=code.byzantine,
        tolerance=1e-9,
    )


def without_comparing(wanted: bool) -> AbstractContextManager[object]:
    """Let decoders project and look at once, if wanted, without trying what is mostly enough."""
    return patch.object(decoder, "_decode_fast", return_value=None) if wanted else nullcontext()
