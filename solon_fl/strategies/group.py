"""One group in one round: from its nodes' replies to a gradient, or a clear failure."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from solon_fl.coding import Decoded, DecodeStatus, LinearCode
from solon_fl.errors import InvalidReplyError
from solon_fl.task import SHARE
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
        Ids of its nodes, by slot; None where there was none to ask.
    status : str
        A `DecodeStatus`.
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
    """

    group: int
    nodes: tuple[int | None, ...]
    code: LinearCode
    dim: int
    dtype: torch.dtype
    projection: torch.Generator | None = None
    label: Callable[[int], str] = str
    gradient: Tensor | None = None
    report: GroupReport | None = None
    bytes_in: int = 0
    seconds: float = 0.0
    _shares: dict[int, Tensor] = field(default_factory=dict)
    _malformed: dict[int, str] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        """Whether the outcome is fixed."""
        return self.report is not None

    def receive(self, slot: int, reply: Message) -> None:
        """Take one reply; whatever is in it, nothing is raised. The first reply of a slot counts."""
        node_id = self.nodes[slot]
        if self.closed or node_id is None or slot in self._shares or node_id in self._malformed:
            return
        try:
            share = read_share(reply, self.code.share_dim(self.dim), self.dtype)
        except Exception as error:  # InvalidReplyError, or whatever a hostile record makes Flower raise
            self._malformed[node_id] = one_line(str(error)) or type(error).__name__
            reason = self._malformed[node_id]
            logger.warning("Node %s (group %d): not a share: %s", self.label(node_id), self.group, reason)
            return
        self._shares[slot] = share
        self.bytes_in += share.numel() * share.element_size()

    def decode(self, *, last: bool) -> None:
        """Decode if nothing that may still come can change the result, or if nothing will come (`last`).

        It can't change any more once k + s shares agree: k of them at least are honest, and fix the gradient. With
        fewer that agree, s liars could have made it up if more than e honest nodes are missing: such a result
        is not taken, and the group fails, unless the code accepts results beyond the bound: these are looked for
        when nothing more will come.
        """
        if self.closed:
            return
        asked = sum(node_id is not None for node_id in self.nodes)
        all_here = len(self._shares) + len(self._malformed) == asked
        needed = self.code.compression + self.code.byzantine
        if not (last or all_here) and len(self._shares) < needed:
            return
        started = time.monotonic()
        last = last or all_here
        decoded = self.code.decode(self._shares, dim=self.dim, generator=self.projection, last=last)
        self.seconds += time.monotonic() - started
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

    def _close(self, decoded: Decoded) -> None:
        malformed = dict(self._malformed)
        malformed |= dict.fromkeys(
            self._ids(set(decoded.erased_slots) & set(self._shares)), "the share holds NaN or inf"
        )
        answered = {*self._ids(self._shares), *malformed}
        self.gradient = decoded.gradient
        self.report = GroupReport(
            group=self.group,
            nodes=self.nodes,
            status=decoded.status.value,
            corrupt_nodes=self._ids(decoded.corrupt_slots),
            silent_nodes=tuple(n for n in self.nodes if n is not None and n not in answered),
            malformed_nodes=malformed,
            residual=decoded.residual,
            tolerance=decoded.tolerance,
            error_bound=decoded.error_bound,
        )
        self._shares.clear()

    def _ids(self, slots: Iterable[int]) -> tuple[int, ...]:
        """Return the ids of the nodes in these slots."""
        ids = (self.nodes[slot] for slot in sorted(slots))
        return tuple(node_id for node_id in ids if node_id is not None)
