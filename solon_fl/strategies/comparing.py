"""Measures the distance between shares of the same slot from different nodes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solon_fl.coding import RealCode
from solon_fl.coding.sections import Sections

__all__ = ["LARGEST_NOISE", "Comparison", "compare", "distances", "mixing_slots", "norms", "same_bits"]

LARGEST_NOISE = 1e-3  # larger relative differences are not float noise
BLOCK = 2**16  # number of columns compared at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The comparison of one group's shares: the reference, each share's distance from it, and the noise."""

    reference: Tensor
    distances: list[float]
    noise: float


def compare(
    shares: Sequence[Tensor], liars: int, sections: Sections, trusted: Tensor | None = None
) -> Comparison | str:
    """Return how far apart shares of the same slot are, or the reason why that is unknown.

    A `trusted` share becomes the reference, and then all nodes but one may lie.
    """
    needed = max(2, 2 * liars + 1) if trusted is None else liars + 1
    if len(shares) < needed:
        return f"{len(shares)} of its nodes sent a share, but {needed} are needed if {liars} may lie"
    honest = len(shares) - liars
    if trusted is None:
        pairs, sizes = _pairwise_distances(shares, sections)
        usual = np.median(sizes, axis=1)
        number = int(np.sort(_relative(pairs, usual[:, None, None]), axis=1)[:, honest - 1].argmin())
        reference, size, apart = shares[number], sizes[:, number], pairs[:, number]
    else:
        reference, size = trusted, norms(trusted, sections)
        apart = np.stack([distances(share, trusted, sections) for share in shares], axis=1)
    if not 0 < size.max() < np.inf:
        return "the gradient is zero or not finite; calibrate with another model"
    found = _relative(apart, size[:, None])
    near = np.sort(found)[:honest]
    near = near[near <= LARGEST_NOISE]
    if trusted is not None and not len(near):
        return (
            f"no node agrees with the referee: the nearest differs by {found.min():.1e}, more than float noise can "
            f"explain ({LARGEST_NOISE:g}); the referee has other data, settings or code than the nodes, or all of "
            "them lie"
        )
    if trusted is None and len(near) <= len(shares) / 2:
        return (
            f"its nodes do not compute the same: they differ by {np.median(found[found > 0]):.1e}, more than "
            f"float noise can explain ({LARGEST_NOISE:g}); batches must come from the task alone"
        )
    return Comparison(reference=reference, distances=found.tolist(), noise=float(near[-1]))


def _relative(distances: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return the largest distance over the classes, (K, ...), relative to the matching norms; 0 / 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(distances == 0, 0, distances / norms).max(axis=0)
    return np.asarray(np.nan_to_num(relative, nan=np.inf, posinf=np.inf))


def _pairwise_distances(shares: Sequence[Tensor], sections: Sections) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances between n shares, (K, n, n), and their norms, (K, n), by class of tensors, in float64."""
    squares = torch.zeros(len(sections.names), len(shares), len(shares), dtype=torch.float64, device="cpu")
    norms = torch.zeros(len(sections.names), len(shares), dtype=torch.float64, device="cpu")
    for number, cut in sections.blocks(BLOCK):
        block = torch.stack([share[cut] for share in shares]).double()
        norms[sections.classes[number]] += block.square().sum(1)
        for row, values in zip(squares[sections.classes[number]], block, strict=True):
            row += (block - values).square_().sum(1)
    return squares.sqrt().numpy(), norms.sqrt().numpy()


def norms(values: Tensor, sections: Sections) -> np.ndarray:
    """Return the norm of a share, (m,), in each class of tensors, (K,) float64; NaN if it holds NaN or inf."""
    if not bool(values.isfinite().all()):
        return np.full(len(sections.names), np.nan)
    squares = np.zeros((len(sections.stops), 1))
    for number, cut in sections.blocks(sections.num_columns):
        squares[number] = float(values[cut].to(torch.float64).square().sum())
    return np.sqrt(sections.by_class(squares)[:, 0])


def distances(share: Tensor, expected: Tensor, sections: Sections) -> np.ndarray:
    """Return the distance of a share from its expected value in each class of tensors; NaN if it holds NaN or inf."""
    return norms(share.to(torch.float64) - expected.to(torch.float64), sections)


def mixing_slots(code: RealCode) -> list[int]:
    """Return the slots whose shares mix many chunks of the gradient, those that mix the most chunks first."""
    squares = code.generator**2
    mixed = squares.sum(axis=1) ** 2 / (squares**2).sum(axis=1)  # effective number of chunks: 1 (plain copy) to k
    return [int(slot) for slot in np.argsort(-mixed, kind="stable") if mixed[slot] >= mixed.max() * 2 / 3]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two shares of the same length are equal bit for bit."""
    whole = torch.int64 if one.dtype == torch.float64 else torch.int32
    return torch.equal(one.view(whole), other.view(whole))
