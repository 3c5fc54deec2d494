"""The resident process, which computes the messages of one node in one run, one after another.

`solon_fl.resident.app` starts it as ``python -m solon_fl.resident.worker DESCRIPTOR ERRAND``.
"""

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pkgutil import resolve_name
from typing import NoReturn

from flwr.app import Context, Message

from solon_fl.resident.channel import check_peer, receive, send, welcome
from solon_fl.resident.errand import Errand
from solon_fl.resident.errors import ResidentError
from solon_fl.resident.folder import Folder, opened
from solon_fl.resident.outcome import Failure, Outcome
from solon_fl.resident.processes import is_alive

WATCH_SECONDS = 0.5  # between two checks whether the SuperExec is alive


class Worker:
    """The worker of one errand, which listens at a socket that already is in the folder."""

    def __init__(self, errand: Errand, listener: socket.socket) -> None:
        self._errand = errand
        self._listener = listener
        with opened() as place:
            self._key = place.read_key(errand.name)
            self._inode = place.inode(errand.name)

    def serve(self) -> None:
        """Compute messages until none has come for the errand's idle_seconds."""
        while (connection := self._next()) is not None:
            with connection:
                self._answer(connection)

    def end_with_superexec(self) -> NoReturn:
        """Wait until the SuperExec has ended, then end this process, whatever it is doing."""
        while is_alive(self._errand.superexec, self._errand.started):
            time.sleep(WATCH_SECONDS)
        try:
            self.clear()
        finally:
            os._exit(0)

    def clear(self) -> None:
        """Delete the files of this worker and of dead ones."""
        with suppress(ResidentError), opened() as place:
            self._remove(place)
            place.tidy()
            place.remove_if_empty()

    def _remove(self, place: Folder) -> None:
        if place.inode(self._errand.name) == self._inode:  # the socket is not another worker's
            place.remove(self._errand.name)

    def _next(self) -> socket.socket | None:
        self._listener.settimeout(self._errand.idle_seconds)
        try:
            return self._listener.accept()[0]
        except TimeoutError:
            pass
        with opened() as place:  # so that no message can come between the last check and the end
            self._listener.settimeout(0)
            try:
                return self._listener.accept()[0]
            except BlockingIOError:
                self._remove(place)
                return None

    def _answer(self, connection: socket.socket) -> None:
        """Compute the message that comes through a connection; drop an invalid connection."""
        connection.settimeout(None)
        try:
            check_peer(connection)
            welcome(connection, self._key)
            with connection.makefile("rb") as stream:
                message, context, identity = receive(stream)
        except Exception as error:
            print(f"solon_fl: a connection to the worker was dropped: {error!r}", file=sys.stderr)
            return
        identity.assume()
        outcome = self._compute(message, context)
        with suppress(OSError):  # no process waits for the outcome any more
            send(connection, outcome)

    def _compute(self, message: Message, context: Context) -> Outcome:
        try:
            return Outcome(resolve_name(self._errand.reference)(message, context), None, context)
        except Exception as error:
            return Outcome(None, Failure.of(error), context)


def main() -> None:
    """Run a worker."""
    descriptor, errand = sys.argv[1:]
    os.environ.setdefault("SOLON_FL_STATE", "")  # solon_fl.clients.keeping then keeps the model in memory
    worker = Worker(Errand.from_json(errand), socket.socket(fileno=int(descriptor)))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    threading.Thread(target=worker.end_with_superexec, daemon=True).start()
    try:
        worker.serve()
    finally:
        worker.clear()


if __name__ == "__main__":
    main()
