"""Replies that a hostile node could send, drawn from any source of choices: hypothesis, atheris, or a generator."""

import io
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from solon_fl.simulations.run._compat import become_server
from solon_fl.wire import STYPE, npy_header, to_array

T = TypeVar("T")
NAMES = ("share", "digests", "signs", "buffers", "silo", "name", "metrics", "accuracy", "", "share ", "SHARE")
DTYPES = (
    "float32",
    "float64",
    "float16",
    "uint8",
    "int64",
    "complex64",
    "object",
    "<f4",
    ">f4",
    "bool",
    "torch.float32",
    "",
)
SIZES = (0, 1, 2, 7, 8, 2**31, 2**32 - 7, 2**63 - 1, 2**64 + 7, 10**30, 10**5000, -1, -7, True)
WHOLES = (0, 1, -1, 2**63 - 1, -(2**63), 2**31, 10**400)
REALS = (0.0, -0.0, 1.0, 1e-45, 1e30, 3e38, -3e38, 1e308, float("nan"), float("inf"), float("-inf"))
ODD_TEXTS = (
    "",
    "\n[92mINFO :      all is well",
    "\x1b[2J\x1b]0;title\x07",
    "\r\0\x08\x7f\x85\u2028\u202e\ud800",
    "%s %d {0} %n",
    "é" * 40,
)


class Source(Protocol):
    """A source of choices."""

    def whole(self, least: int, most: int) -> int: ...
    def binary(self, most: int) -> bytes: ...
    def text(self, most: int) -> str: ...


def pick(source: Source, options: Sequence[T]) -> T:
    return options[source.whole(0, len(options) - 1)]


def one_in(source: Source, number: int) -> bool:
    return source.whole(1, number) == 1


# ---- replies -------------------------------------------------------------------------------------------------


def question_to(node_id: int) -> Message:
    become_server()
    question = Message(RecordDict(), node_id, MessageType.TRAIN)
    question.metadata.__dict__["_message_id"] = f"question-{node_id}"
    return question


def hostile_reply(source: Source, question: Message, honest: RecordDict) -> Message:
    """Return anything from the honest reply itself to an error as long as a book.

    If Flower can't make the reply, for example because it refuses to inflate it, this raises Flower's exception.
    """
    content: RecordDict | Error = hostile_error(source) if one_in(source, 8) else hostile_content(source, honest)
    reply = Message(content, reply_to=question)
    if one_in(source, 4):
        forge_metadata(source, reply)
    if one_in(source, 3):
        reply = pick(source, (through_objects, through_protobuf))(source, reply)
    return reply


def hostile_error(source: Source) -> Error:
    reason = pick(source, (*ODD_TEXTS, source.text(30), None))
    return Error(pick(source, WHOLES), reason if reason is None else reason * pick(source, (1, 1, 1, 3, 300)))


def hostile_content(source: Source, honest: RecordDict) -> RecordDict:
    """Return the honest content with some records or arrays changed, added or left out."""
    records: dict[str, Any] = dict(honest)
    for _ in range(source.whole(0, 3)):
        change = source.whole(0, 5)
        name = pick(source, tuple(records)) if records else "share"
        if change == 0:
            records.pop(name, None)
        elif change == 1:
            records[name] = hostile_record(source, honest)
        elif change == 2:
            records[hostile_name(source)] = hostile_record(source, honest)
        elif isinstance(records.get(name), ArrayRecord) and len(records[name]):
            arrays = dict(records[name])
            changed = pick(source, tuple(arrays))
            arrays[changed] = hostile_array(source, arrays[changed])
            records[name] = ArrayRecord(arrays)
        elif isinstance(records.get(name), ConfigRecord) and len(records[name]):
            config = dict(records[name])
            changed = pick(source, tuple(config))
            config[changed] = hostile_bytes(source, config[changed])
            records[name] = ConfigRecord(config)
    return RecordDict(records)


def hostile_name(source: Source) -> str:
    return pick(source, (*NAMES, *ODD_TEXTS, source.text(10))) * pick(source, (1, 1, 1, 1, 300))


def hostile_record(source: Source, honest: RecordDict) -> ArrayRecord | ConfigRecord | MetricRecord:
    names = [hostile_name(source) for _ in range(source.whole(0, 3))]
    kind = source.whole(0, 2)
    if kind == 0:
        seed = next((a for r in honest.values() if isinstance(r, ArrayRecord) for a in r.values()), None)
        return ArrayRecord({name: hostile_array(source, seed or to_array(torch.zeros(3))) for name in names})
    if kind == 1:
        return ConfigRecord({name: hostile_setting(source) for name in names})
    return MetricRecord({name: hostile_metric(source) for name in names})


def hostile_setting(source: Source) -> Any:
    scalar = pick(source, (source.text(12), source.binary(12), *ODD_TEXTS, "x" * 1000, True, *WHOLES, *REALS))
    return [scalar] * source.whole(0, 3) if one_in(source, 3) else scalar


def hostile_bytes(source: Source, honest: Any) -> Any:
    """Return too few bytes, too many, or other ones; if `honest` is not bytes, return any setting."""
    if not isinstance(honest, bytes) or one_in(source, 4):
        return hostile_setting(source)
    how = source.whole(0, 3)
    if how == 0:
        return honest[: source.whole(0, len(honest))]
    if how == 1:
        return honest * pick(source, (0, 2, 1000))
    if how == 2:
        start = 32 * source.whole(0, len(honest) // 32)
        return honest[start:] + honest[:start]
    return mutated(source, honest)


def hostile_metric(source: Source) -> Any:
    scalar = pick(source, (*WHOLES, *REALS))
    return [scalar] * source.whole(0, 3) if one_in(source, 3) else scalar


def hostile_array(source: Source, honest: Array) -> Array:
    """Return the array with some of its fields changed, usually not all of them and not consistently."""
    fields: dict[str, Any] = {name: getattr(honest, name) for name in ("dtype", "shape", "stype", "data")}
    for _ in range(source.whole(0, 3)):
        field = pick(source, ("dtype", "shape", "stype", "data", "data", "data"))
        if field == "dtype":
            fields[field] = pick(source, (*DTYPES, source.text(8)))
        elif field == "shape":
            fields[field] = hostile_shape(source, fields[field])
        elif field == "stype":
            fields[field] = pick(source, (STYPE, "pickle", "", "numpy.ndarray\0", source.text(8)))
        else:
            fields[field] = hostile_data(source, fields[field], honest)
    return Array(**fields)


def hostile_shape(source: Source, shape: tuple[int, ...]) -> tuple[int, ...]:
    if one_in(source, 3):
        return shape * source.whole(0, 3)
    return tuple(pick(source, SIZES) for _ in range(source.whole(0, 4))) * pick(source, (1, 1, 1, 50))


def hostile_data(source: Source, data: bytes, honest: Array) -> bytes:
    """Return an array's bytes: a forged header, special numbers, or broken bytes; never many more than expected."""
    length = min(len(honest.data), 1000)
    how = source.whole(0, 6)
    if how == 0:  # a header that claims something else, with the expected total length or with all of the data
        return (forged_header(source) + data)[: pick(source, (length, None))]
    if how == 1:  # the right header, followed by numbers of the node's choice
        header = npy_header(honest.shape, np.dtype(honest.dtype))
        body = (source.binary(16) or b"\0") * (length + 1)
        return (header + body)[: pick(source, (length, length, max(length - 1, 0), length + 1))]
    if how == 2 and honest.dtype in ("float32", "float64") and all(0 <= size < 100 for size in honest.shape[:2]):
        values = np.resize(np.array([pick(source, REALS) for _ in range(3)]), honest.shape[:2])
        with np.errstate(over="ignore"):
            return npy_header(honest.shape, np.dtype(honest.dtype)) + values.astype(honest.dtype).tobytes()
    if how == 3:
        return data[:1000] * pick(source, (0, 2, 10))
    if how == 4:
        return source.binary(length + 10)
    return mutated(source, data)


def forged_header(source: Source) -> bytes:
    descr = pick(source, ("<f4", "|O", ">f8", "<f8", "|V1000000", "|u1"))
    shape = tuple(pick(source, SIZES[:-1]) for _ in range(source.whole(0, 3)))
    if any(abs(size) > 10**100 for size in shape):
        shape = (10**100,)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": one_in(source, 2), "shape": shape})
    return buffer.getvalue()


def mutated(source: Source, data: bytes) -> bytes:
    """Return bytes with a few changes anywhere."""
    changed = bytearray(data)
    for _ in range(source.whole(1, 3)):
        start = source.whole(0, len(changed))
        stop = min(len(changed), start + source.whole(0, 8))
        changed[start:stop] = pick(
            source, (source.binary(8), b"", b"\xff", b"9" * 30, b"-", bytes(changed[start:stop]) * 2)
        )
    return bytes(changed)


def forge_metadata(source: Source, reply: Message) -> None:
    """Let a reply claim anything about itself that protobuf can carry."""
    fields = reply.metadata.__dict__
    for _ in range(source.whole(1, 3)):
        name = pick(
            source, ("_src_node_id", "_dst_node_id", "_run_id", "_message_id", "_group_id", "_created_at", "_ttl")
        )
        if name in ("_message_id", "_group_id"):
            fields[name] = pick(source, (*ODD_TEXTS[:-2], source.text(10)))
        else:
            fields[name] = pick(source, (0, 1, 70, 2**63 - 1)) if name.endswith("_id") else pick(source, REALS)


# ---- through Flower's own (de)serialisation ------------------------------------------------------------------


def through_objects(source: Source, reply: Message) -> Message:
    """Return the message that Flower inflates from its objects after some of them were changed, as HttpGrid does."""
    contents = {key: item.deflate() for key, item in get_all_nested_objects(reply).items()}
    root = list(contents)[-1]
    for _ in range(source.whole(0, 2)):
        key = pick(source, tuple(contents))
        change: Callable[[Source, bytes], bytes] = pick(source, (mutated, with_other_facts))
        contents[key] = change(source, contents[key])
    message = inflate_object_from_contents(root, contents)
    if not isinstance(message, Message):
        raise TypeError("not a message")  # a Grid would notice at once
    return message


def with_other_facts(source: Source, content: bytes) -> bytes:
    """Return an array's object with other metadata: a shape, or chunks that are named again and again."""
    head, divider, body = content.partition(b"\x00")
    try:
        facts = json.loads(body)
    except ValueError:
        return content
    if not isinstance(facts, dict):
        return content
    key = pick(source, tuple(facts)) if facts else "shape"
    odd: tuple[Any, ...] = (0, -1, None, "x", [], [[]], {}, [0] * 50, [-1, 0], [2**70], True, 1e308, "share", [3.5])
    facts[key] = pick(source, odd)
    return head + divider + json.dumps(facts).encode()


def through_protobuf(source: Source, reply: Message) -> Message:
    """Return the message that Flower parses from its changed bytes."""
    return message_from_proto(ProtoMessage.FromString(mutated(source, message_to_proto(reply).SerializeToString())))


def size_of(reply: Message) -> int:
    """Return the approximate size of a reply in bytes."""
    if reply.has_error():
        return 100 + len(reply.error.reason or "")
    total = 100
    for name, record in reply.content.items():
        total += 100 + len(name)
        for key, value in record.items():
            total += 100 + len(key)
            if isinstance(value, Array):
                total += len(value.data) + 2100 * len(value.shape) + len(value.dtype) + len(value.stype)
            else:
                total += 8 * len(value) if isinstance(value, list | str | bytes) else 8
    return total
