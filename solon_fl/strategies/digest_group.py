"""One group in one round, with digests: lies become erasures if honest nodes compute the same bits."""

import logging
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from flwr.app import Message
from torch import Tensor

from solon_fl.coding import Decoded, DecodeStatus
from solon_fl.coding.digests import DIGEST_SIZE, elect, share_digest, share_digests
from solon_fl.strategies.comparing import distances
from solon_fl.strategies.group import GroupRound, Outcome
from solon_fl.strategies.replies import Unusable, read_all, read_shares_and_digests

__all__ = ["DigestGroupRound"]

logger = logging.getLogger("flwr")


@dataclass(kw_only=True)
class DigestGroupRound(GroupRound):
    """Decodes by the digests that s + 1 nodes agree on, or by algebra if there are none and the group is large enough.

    Attributes
    ----------
    digest_key : bytes
        The key of the digests in this run, round and group.
    can_decode_by_algebra : bool
        Whether the group is large enough to find s liars without digests.
    """

    digest_key: bytes
    can_decode_by_algebra: bool
    _digests: dict[int, bytes] = field(default_factory=dict)  # digests of the shares received
    _votes: dict[int, bytes] = field(default_factory=dict)  # lists of digests, by the slot of the node that sent them

    def _take(self, replies: dict[int, Message]) -> None:
        for slot in list(replies):
            reader = partial(
                read_shares_and_digests,
                length=self.sections.num_columns,
                dtype=self.dtype,
                also=self.also.get(slot, ()),
                group_size=self.decoder.code.group_size,
            )
            found = read_all({slot: replies.pop(slot)}, reader)[slot]
            if isinstance(found, Unusable):
                self._refuse(slot, found)
                continue
            shares, self._votes[slot] = found
            for further, share in shares.items():
                place = slot if further is None else further
                self._digests[place] = share_digest(share, self.digest_key)
                self._keep(place, share)
            self.bytes_in += len(self._votes[slot])

    @property
    def num_needed(self) -> int:
        """See `GroupRound.num_needed`."""
        return max(self.byzantine + 1, self.decoder.code.compression)

    def _try_to_decode(self, last: bool) -> Tensor | None:
        nobody_left = last or (self._all_here and not self.resting)
        may_close = nobody_left or self._late or self._votes_are_clear
        gradient = self._decode_by_digests() if may_close else None
        if self.closed or self.question is not None:
            return gradient
        all_here = self._all_here
        by_algebra_now = self._late and self.can_decode_by_algebra  # without waiting for further replies
        if not last and (self.resting or not (all_here or by_algebra_now)):
            self._exhausted = all_here
            return None
        if not self.can_decode_by_algebra:
            return self._conclude(Outcome(Decoded.failed(DecodeStatus.UNDECODABLE)))
        logger.warning(
            "Group %d: fewer than %d nodes sent the same digests, or fewer than %d shares match them; "
            "the group is decoded by algebra.",
            *(self.group, self.byzantine + 1, self.decoder.code.compression),
        )
        return super()._try_to_decode(last)

    def _decode_by_digests(self) -> Tensor | None:
        """Close the group if s + 1 nodes sent the same digests, and k shares match them.

        One of the s + 1 nodes is honest, so those k shares are the true ones, bit by bit. A node that sent another
        share is a liar only if that share is farther from the true one than float noise can explain, not if just its
        bits differ.
        """
        code = self.decoder.code
        elected = elect(self._votes.values(), self.byzantine + 1)
        if elected is None:
            return None
        size = DIGEST_SIZE
        matching = {
            slot: share
            for slot, share in self._shares.items()
            if self._digests[slot] == elected[size * slot : size * (slot + 1)]
        }
        if len(matching) < code.compression:
            return None
        decoded = self.decoder.decode(matching, sections=self.sections, generator=self.projection)
        gradient = decoded.gradient
        if gradient is None or decoded.corrupt_slots or decoded.suspect_slots or decoded.different_slots:
            return None  # the elected shares disagree, so no voter was honest
        decoded = self._judged(decoded, gradient, sorted(self._shares.keys() - matching.keys()))
        honest = self._shares.keys() - {*decoded.corrupt_slots, *decoded.erased_slots}
        return self._conclude(
            Outcome(
                decoded,
                different=frozenset(
                    slot for slot in honest if slot not in matching or self._votes[self._sender_of(slot)] != elected
                ),
                odd=2 * sum(vote == elected for vote in self._votes.values()) > len(self._votes) + self.byzantine,
            )
        )

    @property
    def _fewest_telling(self) -> int:
        """See `GroupRound._fewest_telling`."""
        return 1

    def _wrong_digests(self, vector: Tensor) -> set[int]:
        """See `GroupRound._wrong_digests`."""
        right = share_digests(self.decoder.code, vector, self.digest_key)
        return {slot for slot, vote in self._votes.items() if vote != right}

    def _judged(self, decoded: Decoded, gradient: Tensor, others: list[int]) -> Decoded:
        """Return the decoded result with a verdict on the slots whose shares don't match the digests."""
        if not decoded.classes:  # an exact code can't tell lies from shares of other hardware or software
            status = DecodeStatus.CORRECTED if others else DecodeStatus.CLEAN
            return replace(decoded, status=status, different_slots=tuple(others), erased_slots=())
        allowed = np.array([outcome.tolerance + outcome.error_bound for outcome in decoded.classes])
        code = self.decoder.code
        found = {slot: distances(self._shares[slot], code.encode(gradient, slot), self.sections) for slot in others}
        lies = tuple(slot for slot, of_classes in found.items() if (of_classes > allowed).any())
        not_finite = tuple(slot for slot, of_classes in found.items() if np.isnan(of_classes).any())
        status = DecodeStatus.CORRECTED if lies else DecodeStatus.CLEAN
        return replace(decoded, status=status, corrupt_slots=lies, erased_slots=not_finite)
