"""Transfer of messages, contexts and replies between Flower's process and the worker."""

import os
import pickle
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any, BinaryIO

from flwr.app import Array

from solon_fl.resident.errors import ResidentError

__all__ = ["check_peer", "greet", "receive", "send", "welcome"]

CREDENTIALS = struct.Struct("3i")  # process, user, group
SIZE = struct.Struct(">Q")


def check_peer(connection: socket.socket) -> None:
    """Raise ResidentError if the other end belongs to another user, where the system reports this (Linux)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    process, user, _ = CREDENTIALS.unpack(found)
    if user != os.geteuid():
        raise ResidentError(
            f"the worker's socket must belong to user {os.geteuid()}; got process {process} of user {user}."
        )


def greet(connection: socket.socket, key: bytes) -> None:
    """Prove to the worker that this end knows the key, and have the worker prove the same.

    Raises
    ------
    ResidentError
        If the worker doesn't know the key.
    EOFError, OSError
        If the worker closes the connection instead.
    """
    try:
        with _as_multiprocessing(connection) as end:
            answer_challenge(end, key)
            deliver_challenge(end, key)
    except (AuthenticationError, AssertionError, ValueError):
        raise ResidentError("the process that listens at the worker's socket does not know its key.") from None


def welcome(connection: socket.socket, key: bytes) -> None:
    """Do the worker's part of `greet`."""
    with _as_multiprocessing(connection) as end:
        deliver_challenge(end, key)
        answer_challenge(end, key)


@contextmanager
def _as_multiprocessing(connection: socket.socket) -> Iterator[Connection]:
    with Connection(os.dup(connection.fileno())) as end:
        yield end


class _Pickler(pickle.Pickler):
    """A pickler that does not copy the bytes of arrays, and omits values that Flower caches beside them."""

    def reducer_override(self, thing: object) -> Any:
        if type(thing) is Array:
            return Array, (thing.dtype, thing.shape, thing.stype, pickle.PickleBuffer(thing.data))
        return NotImplemented


def send(connection: socket.socket, thing: object) -> None:
    """Send an object without copying the bytes of its arrays first."""
    buffers: list[pickle.PickleBuffer] = []
    head = BytesIO()
    _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(thing)
    parts = [head.getbuffer(), *(buffer.raw() for buffer in buffers)]
    connection.sendall(b"".join(SIZE.pack(size) for size in [len(parts), *(len(part) for part in parts)]))
    for part in parts:
        connection.sendall(part)


def receive(stream: BinaryIO) -> Any:
    """Return the object that the other end sent; the bytes of its arrays are read without a copy.

    Raises
    ------
    EOFError
        If the other end closes the connection before everything has arrived.
    """
    (count,) = SIZE.unpack(_read(stream, SIZE.size))
    sizes = [size for (size,) in SIZE.iter_unpack(_read(stream, count * SIZE.size))]
    head, *buffers = [_read(stream, size) for size in sizes]
    return pickle.loads(head, buffers=buffers)


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError(f"the other end closed after {len(data)} of {size} bytes")
    return data
