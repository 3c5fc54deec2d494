"""One group in one round: from its nodes' replies to a gradient, or a clear failure."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from torch import Tensor

from solon_fl.coding import Decoded, DecodeStatus, LinearCode
from solon_fl.coding.digests import DIGEST_SIZE, elect, share_digest
from solon_fl.errors import InvalidReplyError
from solon_fl.task import DIGESTS, SHARE
from solon_fl.wire import untrusted_tensor

__all__ = ["GroupReport", "GroupRound", "one_line", "read_share"]

logger = logging.getLogger("flwr")


def read_share(reply: Message, length: int, dtype: torch.dtype) -> Tensor:
    """Return the share that a reply carries, (length,), on the message's own bytes.

    Raises
    ------
    InvalidReplyError
        Whatever else the reply holds: an error, other records, another shape, dtype or number of bytes.
    """
    if reply.has_error():
        raise InvalidReplyError(f"error {reply.error.code}: {reply.error.reason}")
    record = reply.content.get(SHARE)
    if not isinstance(record, ArrayRecord) or list(record) != [SHARE]:
        raise InvalidReplyError(f"expected one ArrayRecord {SHARE!r} with the one array {SHARE!r}")
    return untrusted_tensor(record[SHARE], (length,), dtype)


def read_digests(reply: Message, group_size: int) -> bytes:
    """Return the digests that a reply carries, 32 bytes for each of r shares.

    Raises
    ------
    InvalidReplyError
        If there are none, or not so many.
    """
    record = reply.content.get(DIGESTS)
    digests = record.get(DIGESTS) if isinstance(record, ConfigRecord) and list(record) == [DIGESTS] else None
    if not isinstance(digests, bytes) or len(digests) != DIGEST_SIZE * group_size:
        raise InvalidReplyError(f"expected one ConfigRecord {DIGESTS!r} with {DIGEST_SIZE * group_size} bytes")
    return digests


def one_line(text: str) -> str:
    """Return what a node says as one short printable line: it goes into the server's log."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text[:600].split()))[:300]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """What became of one group in one round.

    Attributes
    ----------
    group : int
        Its number.
    nodes : tuple of (int or None)
        Ids of its nodes, by slot; None where there was none to ask, or it was left to rest.
    status : str
        A `DecodeStatus`.
    different_bits : tuple of int
        Ids of the nodes that sent other digests than those elected (verification "digest"), or a share that does not
        match them, though it is no lie: other hardware or software, or a vote that failed.
    escalated : bool
        Whether nodes that were to rest had to be asked after all (redundancy "reactive").
    escalated_by : tuple of int
        Ids of the nodes asked at first because of which that was so: those that had sent no share by then, and those
        whose share or digests turned out to differ.
    corrupt_nodes : tuple of int
        Ids of the nodes whose shares were located as lies.
    silent_nodes : tuple of int
        Ids of the nodes that had not answered when the group was decoded: silent, or slower than the k + s
        whose agreement sufficed.
    malformed_nodes : dict
        Id of each node whose reply was not a share, and what was wrong with it.
    residual, tolerance, error_bound : float
        See `Decoded`.
    """

    group: int
    nodes: tuple[int | None, ...]
    status: str
    corrupt_nodes: tuple[int, ...]
    silent_nodes: tuple[int, ...]
    malformed_nodes: dict[int, str]
    residual: float
    tolerance: float
    error_bound: float
    escalated: bool = False
    escalated_by: tuple[int, ...] = ()
    different_bits: tuple[int, ...] = ()

    @property
    def decoded(self) -> bool:
        """Whether there was a gradient."""
        return self.status in (DecodeStatus.CLEAN, DecodeStatus.CORRECTED, DecodeStatus.BEYOND_BOUND)


@dataclass(kw_only=True)
class GroupRound:
    """Collects the replies of one group and decodes them as soon as the outcome is certain.

    Attributes
    ----------
    group : int
        Its number.
    nodes : tuple of (int or None)
        Node ids by slot; None where there is none to ask.
    code : LinearCode
        The code of the run.
    dim : int
        d.
    dtype : torch.dtype
        Of the shares.
    projection : torch.Generator or None
        For reproducible simulation; None draws fresh entropy.
    label : callable
        What the log calls a node, by its id.
    resting : set of int
        Slots of nodes that have no task unless the others turn out not to be enough.
    byzantine : int, optional
        Liars that there may be among the nodes. Default: the code's.
    digest_key : bytes, optional
        With verification "digest".
    """

    group: int
    nodes: tuple[int | None, ...]
    code: LinearCode
    dim: int
    dtype: torch.dtype
    projection: torch.Generator | None = None
    label: Callable[[int], str] = str
    resting: set[int] = field(default_factory=set)
    byzantine: int | None = None
    digest_key: bytes | None = None
    gradient: Tensor | None = None
    report: GroupReport | None = None
    bytes_in: int = 0
    seconds: float = 0.0
    _first: list[int] = field(default_factory=list)  # slots asked before the others were woken
    _missing: set[int] = field(default_factory=set)  # those of them that had sent no share by then
    _exhausted: bool = False  # whether all who were asked have answered, and it was not enough
    _shares: dict[int, Tensor] = field(default_factory=dict)
    _digests: dict[int, bytes] = field(default_factory=dict)  # of the shares
    _votes: dict[int, bytes] = field(default_factory=dict)  # lists of digests, by the slot of who sent them
    _malformed: dict[int, str] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        """Whether the outcome is fixed."""
        return self.report is not None

    def wake(self, late: bool) -> list[int]:
        """Return the slots of resting nodes that have to be asked now, if any; `late` if it is no use to wait."""
        if self.closed or not self.resting or not (self._exhausted or late):
            return []
        logger.warning(
            "Group %d: what %d of %d nodes sent is not enough, or does not agree; its other %d nodes are asked too.",
            *(self.group, len(self._shares), len(self.asked), len(self.resting)),
        )
        self._first = self.asked
        self._missing = set(self._first) - self._shares.keys()
        woken = sorted(self.resting)
        self.resting = set()
        return woken

    @property
    def asked(self) -> list[int]:
        """Slots of the nodes that have a task."""
        return [slot for slot, node in enumerate(self.nodes) if node is not None and slot not in self.resting]

    def receive(self, slot: int, reply: Message) -> None:
        """Take one reply; whatever is in it, nothing is raised. The first reply of a slot counts."""
        node_id = self.nodes[slot]
        if self.closed or node_id is None or slot in self._shares or node_id in self._malformed:
            return
        try:
            share = read_share(reply, self.code.share_dim(self.dim), self.dtype)
            if self.digest_key is not None:
                self._votes[slot] = read_digests(reply, self.code.group_size)
                self._digests[slot] = share_digest(share, self.digest_key)
        except Exception as error:  # InvalidReplyError, or whatever a hostile record makes Flower raise
            self._malformed[node_id] = one_line(str(error)) or type(error).__name__
            reason = self._malformed[node_id]
            logger.warning("Node %s (group %d): not a share: %s", self.label(node_id), self.group, reason)
            return
        self._shares[slot] = share
        self.bytes_in += share.numel() * share.element_size() + len(self._votes.get(slot, b""))

    def decode(self, *, last: bool) -> None:
        """Decode if nothing that may still come can change the result, or if nothing will come (`last`).

        It can't change any more once k + s shares agree: k of them at least are honest, and fix the gradient. With
        fewer that agree, s liars could have made it up if more than e honest nodes are missing: such a result
        is not taken, and the group fails, unless the code accepts results beyond the bound: these are looked for
        when nothing more will come.
        """
        if self.closed:
            return
        started = time.monotonic()
        self._try_to_decode(last)
        self.seconds += time.monotonic() - started

    def _try_to_decode(self, last: bool) -> None:
        liars = self.code.byzantine if self.byzantine is None else self.byzantine
        all_here = len(self._shares) + len(self._malformed) == len(self.asked)
        if self.digest_key is not None:
            self._decode_by_digests(liars)
            if self.closed:
                return
            if not last and (self.resting or not all_here):
                self._exhausted = all_here
                return
            if self.code.byzantine < liars:  # too few nodes for algebra
                nothing = self.code.decode({}, dim=self.dim)
                self._close(replace(nothing, status=DecodeStatus.UNDECODABLE, erased_slots=()))
                return
            logger.warning(
                "Group %d: fewer than %d nodes sent the same digests, or fewer than %d shares match them; "
                "it is decoded by algebra.",
                *(self.group, liars + 1, self.code.compression),
            )
        needed = self.code.compression + liars
        if not (last or all_here) and len(self._shares) < needed:
            return
        last = last or (all_here and not self.resting)
        decoded = self.code.decode(self._shares, dim=self.dim, generator=self.projection, last=last)
        beyond_bound = decoded.status is DecodeStatus.BEYOND_BOUND
        trusted = beyond_bound or decoded.num_agreeing >= needed
        if decoded.ok and not trusted:
            # Within the code's budget, but with this many nodes missing, s liars could have made it up.
            decoded = replace(
                decoded,
                gradient=None,
                status=DecodeStatus.TOO_FEW_SHARES,
                corrupt_slots=(),
                residual=math.inf,
                tolerance=math.nan,
                error_bound=math.inf,
            )
        if beyond_bound:
            self._warn_of(decoded)
        if last or trusted:
            self._close(decoded)
        self._exhausted = all_here

    def _decode_by_digests(self, liars: int) -> None:
        """Close the group if s + 1 nodes sent the same digests, and k shares match them.

        One of the s + 1 is honest, so that those k shares are the true ones, bit by bit. Who sent another share is a
        liar only if it is far from the true one, not if just its bits differ.
        """
        elected = elect(self._votes.values(), liars + 1)
        if elected is None:
            return
        size = DIGEST_SIZE
        matching = {
            slot: share
            for slot, share in self._shares.items()
            if self._digests[slot] == elected[size * slot : size * (slot + 1)]
        }
        if len(matching) < self.code.compression:
            return
        decoded = self.code.decode(matching, dim=self.dim, generator=self.projection)
        if decoded.gradient is None or decoded.corrupt_slots:
            return  # honest shares that do not agree: there was no honest voter
        distances = {slot: self._distance(slot, decoded.gradient) for slot in self._shares.keys() - matching.keys()}
        lies = [slot for slot, distance in sorted(distances.items()) if distance > decoded.tolerance]
        not_finite = [slot for slot, distance in sorted(distances.items()) if math.isnan(distance)]
        honest = self._shares.keys() - set(lies) - set(not_finite)
        status = DecodeStatus.CORRECTED if lies else DecodeStatus.CLEAN
        self._close(
            replace(decoded, status=status, corrupt_slots=tuple(lies), erased_slots=tuple(not_finite)),
            different={slot for slot in honest if slot not in matching or self._votes[slot] != elected},
        )

    def _distance(self, slot: int, gradient: Tensor) -> float:
        """Return how far a share is from what it should be; NaN if it holds NaN or inf."""
        share = self._shares[slot].to(torch.float64)
        if not bool(share.isfinite().all()):
            return math.nan
        return float((share - self.code.encode(gradient, slot).to(torch.float64)).norm())

    def _warn_of(self, decoded: Decoded) -> None:
        """Log whom a result beyond the bound accuses, and what it rests on."""
        logger.warning(
            "Group %d: beyond the guarantee (byzantine=%d, stragglers=%d): %d nodes are held to lie: %s. The other %d "
            "agree, and on the only gradient that %d or more agree on; it is taken for the true one, as "
            "beyond_bound='accept' says. That is right if no more than %d of all these nodes lied.",
            self.group,
            self.code.byzantine,
            self.code.stragglers,
            len(decoded.corrupt_slots),
            ", ".join(self.label(node_id) for node_id in self._ids(decoded.corrupt_slots)),
            decoded.num_agreeing,
            self.code.compression + 1,
            decoded.num_agreeing + len(decoded.corrupt_slots) - self.code.compression - 1,
        )

    def _close(self, decoded: Decoded, different: Collection[int] = ()) -> None:
        """Fix the outcome; `different` are slots whose share is no lie, but whose bits or digests are others."""
        not_finite = set(decoded.erased_slots) & self._shares.keys()
        malformed = self._malformed | dict.fromkeys(self._ids(not_finite), "the share holds NaN or inf")
        answered = {*self._ids(self._shares), *malformed}
        differing = {*decoded.corrupt_slots, *not_finite, *different}
        self.gradient = decoded.gradient
        self.report = GroupReport(
            group=self.group,
            nodes=tuple(None if slot in self.resting else node_id for slot, node_id in enumerate(self.nodes)),
            escalated=bool(self._first),
            escalated_by=self._ids(self._missing | (differing & set(self._first))),
            different_bits=self._ids(different),
            status=decoded.status.value,
            corrupt_nodes=self._ids(decoded.corrupt_slots),
            silent_nodes=tuple(n for n in self._ids(self.asked) if n not in answered),
            malformed_nodes=malformed,
            residual=decoded.residual,
            tolerance=decoded.tolerance,
            error_bound=decoded.error_bound,
        )
        for received in (self._shares, self._digests, self._votes):
            received.clear()

    def _ids(self, slots: Iterable[int]) -> tuple[int, ...]:
        """Return the ids of the nodes in these slots."""
        ids = (self.nodes[slot] for slot in sorted(slots))
        return tuple(node_id for node_id in ids if node_id is not None)
