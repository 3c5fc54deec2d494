"""Reads the nodes' replies. Any byte of them may be hostile, and nothing in them ever raises."""

import logging
import math
import statistics
import warnings
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from torch import Tensor

from solon_fl.coding.digests import DIGEST_SIZE
from solon_fl.errors import InvalidReplyError
from solon_fl.parts import MODEL, Kept
from solon_fl.task import DIGESTS, SHARE, UNREACHED, WHERE, share_name
from solon_fl.wire import STYPE, npy_header

__all__ = [
    "Layout",
    "Unusable",
    "is_silence",
    "median_metrics",
    "one_line",
    "read",
    "read_all",
    "read_arrays",
    "read_digests",
    "read_finite_share",
    "read_kept",
    "read_loss",
    "read_share",
    "read_shares",
    "read_shares_and_digests",
    "read_silo",
    "untrusted_tensor",
]

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # shape and dtype of each array in a reply, by name
Content = TypeVar("Content")
Key = TypeVar("Key", bound=Hashable)
MOST_NAMES = 100_000  # parameters that a node may report as unreached
SHA256_DIGITS = 64
MOST_METRICS = 100  # per node
MOST_OF_AN_ERROR = 4000  # characters
MOST_LINES = 12
SUPERLINK_NODE_ID = 1
UNREACHABLE = (3, 4, 5)  # Flower's error codes for an unavailable message or reply, and for an absent node
logger = logging.getLogger("flwr")


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a reply can't be used.

    Attributes
    ----------
    reason : str
        One printable line.
    silence : bool
        Whether the node has said nothing: the error is from the SuperLink, which could not reach the node in time.
    failed : bool
        Whether the node itself reports that its program failed, as may happen to an honest node.
    where : tuple of str
        Where the node's program raised, according to the node: at most 12 printable lines.
    """

    reason: str
    silence: bool = False
    failed: bool = False
    where: tuple[str, ...] = ()


def read(reply: Message, reader: Callable[[Message], Content]) -> Content | Unusable:
    """Return the reader's result for a reply, or why it can't be read. Nothing is raised, whatever the reply holds."""
    try:
        if reply.has_error():
            told, _, where = str(reply.error.reason)[:MOST_OF_AN_ERROR].partition(WHERE)
            lines = tuple(one_line(line) for line in where.splitlines()[:MOST_LINES])
            reason, silence = one_line(f"error {reply.error.code}: {told}"), is_silence(reply)
            return Unusable(reason, silence=silence, failed=not silence, where=lines)
        return reader(reply)
    except Exception as error:  # InvalidReplyError, or anything that a hostile record makes Flower raise
        return Unusable(one_line(str(error)) or type(error).__name__)


def is_silence(reply: Message) -> bool:
    """Return whether an error reply is from the SuperLink: the time was up, or the node was unreachable.

    A node can't send one, because the SuperLink refuses replies that claim to be from itself.
    """
    return reply.metadata.src_node_id == SUPERLINK_NODE_ID and reply.error.code in UNREACHABLE


def read_all(replies: dict[Key, Message], reader: Callable[[Message], Content]) -> dict[Key, Content | Unusable]:
    """Return the result of `read` for each reply. The dict is emptied to free memory: messages hold the shares."""
    found: dict[Key, Content | Unusable] = {}
    while replies:
        key = next(iter(replies))
        found[key] = read(replies.pop(key), reader)
    return found


def read_share(reply: Message, length: int, dtype: torch.dtype) -> Tensor:
    """Return the share in a reply, (length,), on the message's own bytes.

    Raises
    ------
    InvalidReplyError
        If the reply holds other records, or an array of another shape, dtype or number of bytes.
    """
    return read_shares(reply, length, dtype, ())[None]


def read_shares(reply: Message, length: int, dtype: torch.dtype, also: Collection[int]) -> dict[int | None, Tensor]:
    """Return the shares in a reply: the share of the node's own slot under None, and those of the slots `also`.

    See `read_share`.
    """
    names: dict[int | None, str] = {None: SHARE, **{slot: share_name(slot) for slot in also}}
    record = reply.content.get(SHARE)
    if not isinstance(record, ArrayRecord) or list(record) != list(names.values()):
        raise InvalidReplyError(f"expected one ArrayRecord {SHARE!r} with the arrays {list(names.values())[:5]}")
    return {slot: untrusted_tensor(record[name], (length,), dtype) for slot, name in names.items()}


def read_shares_and_digests(
    reply: Message, length: int, dtype: torch.dtype, also: Collection[int], group_size: int
) -> tuple[dict[int | None, Tensor], bytes]:
    """Return the shares and the digests in a reply; see `read_shares` and `read_digests`."""
    return read_shares(reply, length, dtype, also), read_digests(reply, group_size)


def read_finite_share(reply: Message, length: int, dtype: torch.dtype) -> Tensor:
    """Return the share in a reply, (length,), if it holds neither NaN nor inf; see `read_share`."""
    share = read_share(reply, length, dtype)
    if not bool(share.isfinite().all()):
        raise InvalidReplyError("the share holds NaN or inf")
    return share


def read_digests(reply: Message, group_size: int) -> bytes:
    """Return the digests in a reply, 32 bytes for each of r shares.

    Raises
    ------
    InvalidReplyError
        If the reply has no digests, or another number of bytes.
    """
    record = reply.content.get(DIGESTS)
    digests = record.get(DIGESTS) if isinstance(record, ConfigRecord) and list(record) == [DIGESTS] else None
    if not isinstance(digests, bytes) or len(digests) != DIGEST_SIZE * group_size:
        raise InvalidReplyError(f"expected one ConfigRecord {DIGESTS!r} with {DIGEST_SIZE * group_size} bytes")
    return digests


def read_arrays(reply: Message, name: str, layout: Layout) -> dict[str, Tensor]:
    """Return the arrays of the record `name` in a reply, on the message's own bytes.

    Raises
    ------
    InvalidReplyError
        If the reply holds anything else: other records or arrays, other shapes, dtypes or sizes, or numbers that are
        not finite.
    """
    record = reply.content.get(name)
    if not isinstance(record, ArrayRecord) or list(record) != list(layout):
        raise InvalidReplyError(f"expected an ArrayRecord {name!r} with the arrays {list(layout)[:5]}")
    arrays = {key: untrusted_tensor(record[key], shape, dtype) for key, (shape, dtype) in layout.items()}
    for key, tensor in arrays.items():
        if tensor.is_floating_point() and not tensor.sum().isfinite():  # the sum is not finite if an entry is not
            raise InvalidReplyError(f"the array {key!r} holds NaN or inf, or numbers too large to add up")
    return arrays


def read_kept(reply: Message) -> Kept:
    """Remove a reply's record of the parts of the model that the node keeps, and return it; empty if there is none."""
    try:
        record = reply.content.pop(MODEL, None) if reply.has_content() else None
        if isinstance(record, ConfigRecord):
            version, fixed, lacks = record.get("version"), record.get("fixed"), record.get("lacks")
            if isinstance(version, str) and isinstance(fixed, str) and isinstance(lacks, bool):
                return Kept(version=version[:SHA256_DIGITS], fixed=fixed[:SHA256_DIGITS], lacks=lacks)
    except Exception as error:  # anything may come from a node
        logger.warning(
            "Node %d: its note of the model it keeps is ignored: %s", reply.metadata.src_node_id, one_line(str(error))
        )
    return Kept()


def read_silo(reply: Message) -> str:
    """Return the name of the silo that a node declares.

    Raises
    ------
    InvalidReplyError
        If the name does not have 1 to 200 characters. Other exceptions if there is none.
    """
    name = reply.content.config_records["silo"]["name"]
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise InvalidReplyError("a silo's name has 1 to 200 characters")
    return name


def median_metrics(replies: Iterable[Message], num_nodes: int) -> MetricRecord | None:
    """Return the median of every metric that more than half of `num_nodes` nodes reported as one finite number.

    None if there is no such metric. A median is within the range of the honest nodes' values if they are the majority.
    """
    reported: dict[str, list[float]] = {}
    for reply in replies:
        for name, value in _finite_metrics(reply).items():
            reported.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in reported.items() if 2 * len(values) > num_nodes}
    return MetricRecord(dict(medians)) if medians else None


def read_loss(reply: Message) -> float | None:
    """Return the training loss among a reply's metrics, if it is a finite number."""
    return _finite_metrics(reply).get("loss")


def read_unreached(reply: Message) -> frozenset[str]:
    """Return the names of the parameters that no loss of the node depends on, according to the node."""
    try:
        record = reply.content.get(UNREACHED) if reply.has_content() else None
        names = record.get("names") if isinstance(record, ConfigRecord) else None
        if isinstance(names, list) and len(names) <= MOST_NAMES:
            return frozenset(name for name in names if isinstance(name, str))
    except Exception as error:  # anything may come from a node
        logger.warning(
            "Node %d: its list of unreached parameters is ignored: %s",
            reply.metadata.src_node_id,
            one_line(str(error)),
        )
    return frozenset()


def _finite_metrics(reply: Message) -> dict[str, float]:
    found: dict[str, float] = {}
    try:
        if reply.has_content():
            # `metric_records` would tie the message, and its share, into a reference cycle.
            records = [record for record in reply.content.values() if isinstance(record, MetricRecord)]
            metrics = (item for record in records for item in record.items())
            for name, value in islice(metrics, MOST_METRICS):
                if isinstance(value, (int, float)) and math.isfinite(value):
                    found[name] = float(value)
    except Exception as error:  # anything may come from a node
        logger.warning("Node %d: its metrics are ignored: %s", reply.metadata.src_node_id, one_line(str(error)))
    return found


def untrusted_tensor(array: Array, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an array from a node as a tensor on its bytes, if it has exactly this shape and dtype.

    The header is compared, never parsed: only one byte string says "this shape of this dtype", so a forged header can't
    make the server allocate anything. The result shares memory with the message and must not be written to.

    Raises
    ------
    InvalidReplyError
        If the dtype, shape, serialisation, header or number of bytes is not the expected one.
    """
    numpy_dtype = np.dtype(str(dtype).removeprefix("torch."))
    header = npy_header(shape, numpy_dtype)
    expected = len(header) + math.prod(shape) * numpy_dtype.itemsize
    for what, got, wanted in (
        ("serialisation", array.stype, STYPE),
        ("dtype", array.dtype, str(numpy_dtype)),
        ("shape", tuple(array.shape), shape),
        ("size in bytes", len(array.data), expected),
    ):
        if got != wanted:
            raise InvalidReplyError(f"{what} of the array should be {wanted}; got {_shown(got)}")
    if not array.data.startswith(header):
        raise InvalidReplyError("the array's npy header is not the expected one")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is only read
        if not math.prod(shape):
            return torch.empty(shape, dtype=dtype, device="cpu")
        return torch.frombuffer(array.data, dtype=dtype, offset=len(header)).view(shape)


def _shown(claimed: object) -> str:
    """Return a node's claim as text, cut before formatting: Python refuses to format numbers of 4,300 digits."""
    if isinstance(claimed, tuple):
        shown = ", ".join(_shown(size) for size in claimed[:5])
        return f"({shown}, ...)" if len(claimed) > 5 else f"({shown},)" if len(claimed) == 1 else f"({shown})"
    if isinstance(claimed, int) and claimed.bit_length() > 64:
        return "a huge number"
    return str(claimed)[:80]


def one_line(text: str) -> str:
    """Return a node's text as one short printable line, fit for the server's log."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text[:600].split()))[:300]
