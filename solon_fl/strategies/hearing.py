"""Compares a group's shares with the referee's vector: which shares are right, which are lies, which are neither."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solon_fl.coding import Code, ExactCode
from solon_fl.coding._types import FloatArray
from solon_fl.coding.real.screening import smallest_noise
from solon_fl.coding.sections import Sections
from solon_fl.strategies.comparing import LARGEST_NOISE, distances, norms, same_bits

__all__ = ["Findings", "hear"]

BOTH = 2.0  # times rtol: the node and the referee are each within rtol of the truth
TELLING = 0.1  # a right share shows that the referee is like the nodes if it has this size relative to the largest
NOTHING = 1.0  # relative distance of zeros from the true share


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The findings. A slot in none of the sets sent the same as the referee, or nothing is known about it.

    Attributes
    ----------
    lies : frozenset of int
        Slots whose shares are farther from the referee's than float noise can explain.
    not_finite : frozenset of int
        Slots whose shares hold NaN or infinity although the referee's vector does not.
    different : frozenset of int
        Slots whose bits differ from the referee's, if nodes must compute the same bits and some have the referee's.
    right : frozenset of int
        Slots of nodes that sent the same as the referee, to the bit if needed. Empty if they are too few to show that
        the nodes are like the referee.
    odd_referee : bool
        Whether the referee's hardware or software may differ from the nodes': too few nodes sent the same as it did, or
        fewer than all but s did and others are near to it.
    """

    lies: frozenset[int] = frozenset()
    not_finite: frozenset[int] = frozenset()
    different: frozenset[int] = frozenset()
    right: frozenset[int] = frozenset()
    odd_referee: bool = False

    @property
    def wrong(self) -> frozenset[int]:
        """Slots whose shares were not right."""
        return self.lies | self.not_finite | self.different


def hear(
    shares: Mapping[int, Tensor],
    vector: Tensor,
    *,
    code: Code,
    sections: Sections,
    rtol: float,
    byzantine: int,
    agreed: tuple[Tensor, Collection[int]] | None = None,
    otherwise_wrong: Collection[int] | None = None,
    alike: bool = False,
    fewest: int = 1,
    further: Collection[int] = (),
) -> Findings:
    """Compare shares with those of the referee's vector.

    Parameters
    ----------
    shares : mapping from slot to (m,) Tensor
        The shares of the nodes.
    vector : Tensor, (k m,)
        The referee's result.
    code, sections, rtol
        Those of the group.
    byzantine : int
        s.
    agreed : (Tensor of (k m,), collection of int), optional
        A decoded gradient, and the slots whose shares agree with it.
    otherwise_wrong : collection of int, optional
        Slots of nodes that sent something else that is wrong, such as digests. None if nodes need not compute the same
        bits.
    alike : bool
        Whether honest nodes are known to be like the referee.
    fewest : int
        How many right shares show that the nodes are like the referee. With an exact code this is k, since k shares
        determine the vector, unless each came with right digests of all shares. Each share of a real code mixes all
        tensors.
    further : collection of int
        Empty slots whose shares nodes in other slots send beside their own.

    Notes
    -----
    Honest nodes are never among the lies as long as they and the referee are within ``rtol`` of the truth, or with an
    exact code within ``LARGEST_NOISE`` of each other. A share must differ by twice that in some class of tensors,
    relative to the largest share of the vector, or to the vector itself. From slot k on, an exact code's shares are not
    numbers, so only their bits can be compared.

    If too few nodes sent the same as the referee, now and before, the referee itself may have other hardware or
    software, and rounding may have grown to any size. Then only shares that are off by more than the size of the
    largest one are lies.

    The cost is d multiply-adds for each share, with all n true shares in memory.
    """
    expected = {slot: code.encode(vector, slot) for slot in shares}
    same = {slot for slot, share in shares.items() if same_bits(share, expected[slot])}
    apart = _relative_distances(shares, expected, vector, code, sections)
    is_exact = isinstance(code, ExactCode)
    tolerance = LARGEST_NOISE if is_exact else BOTH * rtol
    not_finite = {slot for slot, distance in apart.items() if math.isnan(distance) and slot not in same}
    far = {slot for slot, distance in apart.items() if distance > tolerance and slot not in same}
    if otherwise_wrong is None:
        right, near = shares.keys() - far - not_finite, {slot for slot in far if apart[slot] <= LARGEST_NOISE}
    else:
        right, near = same - set(otherwise_wrong), apart.keys() - far - not_finite - same
    own = shares.keys() - set(further)
    telling = right & own
    if otherwise_wrong is None:  # any tiny share is within rtol of the largest one's norm, so it proves nothing
        sizes = {slot: _norm(share) for slot, share in expected.items()}
        least = TELLING * max(sizes.values(), default=0.0)
        telling = {slot for slot in telling if not sizes[slot] < least}
    if len(telling) < fewest:
        telling = set()
    # All but s of the nodes that sent a share are honest. If the referee is like them, they all agree with it.
    odd = not alike and bool(shares) and (not telling or (bool(near) and len(telling) < len(own) - byzantine))
    limit = NOTHING if odd else tolerance
    lies = {slot for slot in far if apart[slot] > limit}
    if agreed is not None and is_exact and _relative_distance(agreed[0], vector) > limit:
        lies |= set(agreed[1]) - same
    others = set[int]() if otherwise_wrong is None else shares.keys() - right - lies - not_finite
    return Findings(
        lies=frozenset(lies),
        not_finite=frozenset(not_finite),
        different=frozenset() if odd else frozenset(others),
        right=frozenset(telling),
        odd_referee=odd,
    )


def _relative_distances(
    shares: Mapping[int, Tensor], expected: Mapping[int, Tensor], vector: Tensor, code: Code, sections: Sections
) -> dict[int, float]:
    """Return how far shares are from the true ones, where that is known, relative to the largest norm of a true one.

    With an exact code, they are relative to the norm of the vector. NaN for shares that hold NaN or infinity.
    """
    scale: FloatArray | float
    least: FloatArray | float
    if isinstance(code, ExactCode):
        sections, scale, least = Sections.whole(code.share_dim(vector.numel())), _norm(vector), 0.0
        chosen = [slot for slot in shares if slot < code.compression or code.compression == 1]
    else:
        sizes = np.stack([norms(share, sections) for share in expected.values()] or [np.zeros(len(sections.names))])
        scale = sizes.max(axis=0)
        least = BOTH * sections.norms_by_class(smallest_noise(sections, code.compression, vector.dtype))
        chosen = list(shares)
    if not np.isfinite(scale).all():
        return {}
    found = {}
    for slot in chosen:
        apart = np.maximum(distances(shares[slot], expected[slot], sections) - least, 0)
        found[slot] = float(_quotients(apart, scale).max())
    return found


def _quotients(apart: FloatArray, scale: FloatArray | float) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(apart == 0, 0, apart / scale))


def _relative_distance(agreed: Tensor, vector: Tensor) -> float:
    """Return how far a gradient is from the referee's, relative to the latter's norm; 0 if that is not finite."""
    if not math.isfinite(_norm(vector)):
        return 0.0
    apart = _norm(agreed.to(torch.float64) - vector.to(torch.float64))
    return math.inf if math.isnan(apart) else float(_quotients(np.array(apart), _norm(vector)))


def _norm(values: Tensor) -> float:
    """Return the norm; NaN if the values hold NaN or infinity."""
    return float(norms(values, Sections.whole(values.numel()))[0])
