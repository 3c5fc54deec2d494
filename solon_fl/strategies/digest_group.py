"""One group in one round, with digests: lies become erasures where honest nodes compute the same bits."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from flwr.app import Message
from torch import Tensor

from solon_fl.coding import Decoded, DecodeStatus
from solon_fl.coding.digests import DIGEST_SIZE, elect, share_digest
from solon_fl.strategies.group import GroupRound, distance
from solon_fl.strategies.replies import Unusable, read, read_digests

__all__ = ["DigestGroupRound"]

logger = logging.getLogger("flwr")


@dataclass(kw_only=True)
class DigestGroupRound(GroupRound):
    """Decodes by the digests that s + 1 nodes agree on; by algebra if there are none and the group is large enough.

    Attributes
    ----------
    digest_key : bytes
        Of run, round and group.
    can_decode_by_algebra : bool
        Whether the group is large enough to find s liars without digests.
    """

    digest_key: bytes
    can_decode_by_algebra: bool
    _digests: dict[int, bytes] = field(default_factory=dict)  # of the shares
    _votes: dict[int, bytes] = field(default_factory=dict)  # lists of digests, by the slot of who sent them

    def __post_init__(self) -> None:
        super().__post_init__()
        self._vote_reader: Callable[[Message], bytes] = partial(read_digests, group_size=self.decoder.code.group_size)

    def _take(self, slot: int, reply: Message) -> int | Unusable:
        size = super()._take(slot, reply)
        if isinstance(size, Unusable):
            return size
        vote = read(reply, self._vote_reader)
        if isinstance(vote, Unusable):
            del self._shares[slot]
            return vote
        self._votes[slot] = vote
        self._digests[slot] = share_digest(self._shares[slot], self.digest_key)
        return size + len(vote)

    def _try_to_decode(self, last: bool) -> Tensor | None:
        gradient = self._decode_by_digests()
        if self.closed:
            return gradient
        all_here = self._all_here
        if not last and (self.resting or not all_here):
            self._exhausted = all_here
            return None
        if not self.can_decode_by_algebra:
            return self._close(Decoded.failed(DecodeStatus.UNDECODABLE))
        logger.warning(
            "Group %d: fewer than %d nodes sent the same digests, or fewer than %d shares match them; "
            "it is decoded by algebra.",
            *(self.group, self.byzantine + 1, self.decoder.code.compression),
        )
        return super()._try_to_decode(last)

    def _decode_by_digests(self) -> Tensor | None:
        """Close the group if s + 1 nodes sent the same digests, and k shares match them.

        One of the s + 1 is honest, so that those k shares are the true ones, bit by bit. Who sent another share is a
        liar only if it is far from the true one, not if just its bits differ.
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
        decoded = self.decoder.decode(matching, dim=self.dim, generator=self.projection)
        gradient = decoded.gradient
        if gradient is None or decoded.corrupt_slots:
            return None  # honest shares that do not agree: there was no honest voter
        distances = {
            slot: distance(self._shares[slot], code.encode(gradient, slot))
            for slot in sorted(self._shares.keys() - matching.keys())
        }
        lies = [slot for slot, found in distances.items() if found > decoded.tolerance]
        not_finite = [slot for slot, found in distances.items() if found != found]
        honest = self._shares.keys() - set(lies) - set(not_finite)
        status = DecodeStatus.CORRECTED if lies else DecodeStatus.CLEAN
        return self._close(
            replace(decoded, status=status, corrupt_slots=tuple(lies), erased_slots=tuple(not_finite)),
            different={slot for slot in honest if slot not in matching or self._votes[slot] != elected},
        )
