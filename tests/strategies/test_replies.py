"""Reading replies: only the content that was asked for is accepted, on the message's own bytes."""

import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, Error, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from solon_fl.errors import InvalidReplyError
from solon_fl.strategies.replies import Unusable, read, read_all, untrusted_tensor
from solon_fl.wire import npy_header, to_array
from tests.hostile.replies import question_to

LENGTH = 37


def valid_share() -> Array:
    return to_array(torch.arange(LENGTH, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_valid_share_is_read_without_a_copy(dtype: torch.dtype) -> None:
    values = torch.randn(1_000_000).to(dtype)
    array = to_array(values)
    tracemalloc.start()
    vector = untrusted_tensor(array, (len(values),), dtype)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    torch.testing.assert_close(vector, values, rtol=0, atol=0)
    assert peak < 100_000


def changed(**fields: object) -> Array:
    array = valid_share()
    for name, value in fields.items():
        setattr(array, name, value)
    return array


FORGED = valid_share().data.replace(f"({LENGTH},)".encode(), b"(99999999999,)")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (changed(stype="pickle"), "serialisation of the array should be numpy.ndarray; got pickle"),
        (changed(dtype="float64"), "dtype of the array should be float32; got float64"),
        (changed(shape=(LENGTH + 1,)), r"shape of the array should be \(37,\); got \(38,\)"),
        (changed(shape=(1, LENGTH)), r"got \(1, 37\)"),
        (changed(shape=(10**5000, 1)), r"got \(a huge number, 1\)"),
        (changed(shape=(1,) * 10**6), r"got \(1, 1, 1, 1, 1, \.\.\.\)$"),
        (changed(data=valid_share().data[:-1]), "size in bytes"),
        (changed(data=valid_share().data * 2), "size in bytes"),
        (changed(data=b""), "size in bytes"),
        (changed(data=FORGED), "header|size in bytes"),
        (changed(data=FORGED[: len(valid_share().data)]), "header|size in bytes"),
        (changed(data=b"\x00" * len(valid_share().data)), "header"),
        (to_array(torch.arange(LENGTH)), "dtype"),
        (to_array(torch.zeros(2 * LENGTH)), "shape"),
    ],
)
def test_anything_else_is_refused(array: Array, message: str) -> None:
    with pytest.raises(InvalidReplyError, match=message):
        untrusted_tensor(array, (LENGTH,), torch.float32)


def test_a_forged_header_allocates_nothing() -> None:
    header = npy_header((10**11,), np.dtype(np.float32))
    data = header + b"\x00" * (len(valid_share().data) - len(header))
    tracemalloc.start()
    with pytest.raises(InvalidReplyError, match="header"):
        untrusted_tensor(changed(data=data), (LENGTH,), torch.float32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@given(st.integers(0, len(valid_share().data) - 1), st.integers(0, 255))
def test_changing_any_byte_is_refused_or_changes_a_number_only(position: int, byte: int) -> None:
    data = bytearray(valid_share().data)
    data[position] = byte
    try:
        vector = untrusted_tensor(changed(data=bytes(data)), (LENGTH,), torch.float32)
    except InvalidReplyError:
        assert position < len(npy_header((LENGTH,), np.dtype(np.float32)))
    else:
        assert vector.shape == (LENGTH,)
        assert vector.dtype == torch.float32


@given(st.binary(max_size=400))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidReplyError, match=r"of the array should be|header"):
        untrusted_tensor(changed(data=data), (LENGTH,), torch.float32)


@pytest.mark.parametrize("error", [InvalidReplyError("two\nlines"), MemoryError("two\nlines"), KeyError()])
def test_a_reader_that_raises_makes_a_reply_unusable_in_one_line(error: Exception) -> None:
    def reader(_: Message) -> None:
        raise error

    found = read(Message(RecordDict(), reply_to=question_to(1)), reader)
    assert found == Unusable("two lines" if error.args else "KeyError")


def test_an_error_that_flower_reports_is_never_read() -> None:
    reply = Message(Error(2, "the node\x1b[2J crashed"), reply_to=question_to(1))
    found = read(reply, lambda reply: reply.content)
    assert found == Unusable("error 2: the node [2J crashed", failed=True)


@pytest.mark.parametrize("code", [3, 4, 5])
def test_what_the_superlink_itself_reports_is_silence_and_what_a_node_reports_is_not(code: int) -> None:
    assert read(Message(Error(code, "gone"), reply_to=question_to(1)), str) == Unusable(f"error {code}: gone", True)
    assert read(Message(Error(code, "gone"), reply_to=question_to(7)), str) == Unusable(
        f"error {code}: gone", silence=False, failed=True
    )


def test_replies_are_dropped_as_they_are_read() -> None:
    replies = {slot: Message(RecordDict(), reply_to=question_to(slot)) for slot in (3, 1, 2)}
    left: list[int] = []

    def reader(reply: Message) -> int:
        left.append(len(replies))
        if reply.metadata.src_node_id == 1:
            raise InvalidReplyError("not this one")
        return reply.metadata.src_node_id

    assert read_all(replies, reader) == {3: 3, 1: Unusable("not this one"), 2: 2}
    assert left == [2, 1, 0]
    assert replies == {}
