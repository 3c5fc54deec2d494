"""What the referee's own vector says of a group's shares: which are right, which are lies, and of which neither."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solon_fl.coding import Code, ExactCode
from solon_fl.coding.real.screening import smallest_noise
from solon_fl.coding.sections import Sections
from solon_fl.strategies.comparing import LARGEST_NOISE, distances, norms, same_bits

__all__ = ["Findings", "hear"]

BOTH = 2.0  # the node and the referee are each within rtol of the truth


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found; slots that are in none of the sets sent what the referee has, or nothing can be said of them.

    Attributes
    ----------
    lies : frozenset of int
        Slots whose shares are farther from the referee's than float noise takes honest ones.
    not_finite : frozenset of int
        Slots whose shares hold NaN or infinity, though the referee's vector does not.
    different : frozenset of int
        Slots whose bits are not the referee's, where nodes must compute the same bits and some have those of the
        referee.
    alike : bool
        Whether more than s nodes have the referee's bits, so that honest nodes do.
    odd_referee : bool
        Whether nobody has the referee's bits, or more than s are so near to them that it must be of another make.
    """

    lies: frozenset[int] = frozenset()
    not_finite: frozenset[int] = frozenset()
    different: frozenset[int] = frozenset()
    alike: bool = False
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
) -> Findings:
    """Compare shares with those of the referee's vector.

    Parameters
    ----------
    shares : mapping from slot to (m,) Tensor
        What the nodes sent.
    vector : Tensor, (k m,)
        What the referee computed.
    code, sections, rtol
        Of the group.
    byzantine : int
        s.
    agreed : (Tensor of (k m,), collection of int), optional
        A gradient that was decoded, and the slots whose shares agree with it.
    otherwise_wrong : collection of int, optional
        Slots of nodes that sent something else wrong, such as digests. None if nodes need not compute the same bits.
    alike : bool
        Whether honest nodes are known to have the referee's bits.

    Notes
    -----
    Honest nodes are never among the lies while they and the referee are within rtol of the truth, with an exact code
    within `LARGEST_NOISE` of each other: a share must differ by twice that in some class of tensors, relative to the
    largest share of the vector, or to the vector itself. An exact code's shares from k on are no numbers: of these can
    only be said that bits differ, which counts only if some node has the referee's bits, or honest ones had before.
    Cost: d multiply-adds for each share; all n true shares in memory.
    """
    expected = {slot: code.encode(vector, slot) for slot in shares}
    same = {slot for slot, share in shares.items() if same_bits(share, expected[slot])}
    lies, not_finite, near = _apart(shares, expected, same, vector, code=code, sections=sections, rtol=rtol)
    if agreed is not None and isinstance(code, ExactCode) and _is_far(agreed[0], vector):
        lies |= set(agreed[1]) - same
    if otherwise_wrong is None:
        return Findings(lies=frozenset(lies), not_finite=frozenset(not_finite))
    others = (shares.keys() - same | set(otherwise_wrong)) - lies - not_finite
    like_referee = same - set(otherwise_wrong)
    odd = bool(others) and not alike and (not like_referee or len(near) > byzantine)
    return Findings(
        lies=frozenset(lies),
        not_finite=frozenset(not_finite),
        different=frozenset() if odd else frozenset(others),
        alike=len(like_referee) > byzantine,
        odd_referee=odd,
    )


def _apart(
    shares: Mapping[int, Tensor],
    expected: Mapping[int, Tensor],
    same: Collection[int],
    vector: Tensor,
    *,
    code: Code,
    sections: Sections,
    rtol: float,
) -> tuple[set[int], set[int], set[int]]:
    """Return the slots whose shares are far from what they should be, not finite, and near it but not the same."""
    if isinstance(code, ExactCode):
        is_number = [slot < code.compression or code.compression == 1 for slot in range(code.group_size)]
        chosen = [slot for slot in shares if is_number[slot]]
        allowed = LARGEST_NOISE * norms(vector, Sections.whole(vector.numel()))
    else:
        chosen = list(shares)
        sizes = np.stack([norms(share, sections) for share in expected.values()] or [np.zeros(len(sections.names))])
        least = sections.norms_by_class(smallest_noise(sections, code.compression, vector.dtype))
        allowed = BOTH * (rtol * sizes.max(axis=0) + least)
    lies, not_finite, near = set[int](), set[int](), set[int]()
    for slot in chosen:
        if slot in same or np.isnan(allowed).any():
            continue
        apart = distances(shares[slot], expected[slot], sections)
        kind = not_finite if np.isnan(apart).any() else lies if (apart > allowed).any() else near
        kind.add(slot)
    return lies, not_finite, near


def _is_far(agreed: Tensor, vector: Tensor) -> bool:
    """Whether a gradient is farther from the referee's than float noise could take it."""
    size = float(vector.to(torch.float64).norm())
    return not float((agreed.to(torch.float64) - vector.to(torch.float64)).norm()) <= LARGEST_NOISE * size  # NaN, too
