"""Fetches replies from a Grid so that no node can delay the replies of others.

Flower's ``pull_messages`` waits for a reply that a node has announced until it is uploaded, for up to two hours, and
can't be interrupted. So each reply is fetched separately, in a thread that can be abandoned.
"""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from weakref import WeakKeyDictionary, ref

from flwr.app import Message
from flwr.serverapp import Grid

from solon_fl.strategies.replies import one_line

__all__ = ["Fetcher", "fetcher_of"]

WORKERS = 8  # number of threads that look for replies at the same time
IDLE_SECONDS = 5.0  # a thread without work ends after this time
SLOW_SECONDS = 0.1  # other replies no longer wait for a pull that takes longer than this
STUCK_SECONDS = 2.0  # after this time a reply is stuck (announced but not there), and its thread no longer counts
STUCK_REPLIES = 2  # threads per node with stuck replies; the first may date from before a crash of a node that is back
MESSAGE_UNAVAILABLE = 3  # Flower's error code for a reply that was announced but is incomplete
logger = logging.getLogger("flwr")


class Fetcher:
    """Looks for the replies to messages, and abandons those that are announced but missing.

    Notes
    -----
    Each reply is pulled separately, for two reasons. Flower's SuperLink forgets everything that was pulled together as
    soon as it has handed it out, so one reply that can't be inflated would lose all others. And a reply's own claim
    about which message it answers is written by the node, while the SuperLink only hands out under an id what the node
    that was asked under that id has sent.

    Guarantee: `fetch` takes about ``STUCK_SECONDS`` at most. A node whose replies are stuck occupies at most
    ``STUCK_REPLIES`` threads, however many messages it is sent, so there are never more than ``WORKERS`` threads and
    these. They are daemon threads: the program can end without them. A node that died while it sent a reply is heard
    again as soon as it is back.

    A Grid that computes replies in ``pull_messages``, as `InProcessGrid` does, has a true attribute
    ``replies_at_once``: its replies are pulled in the caller's thread, one after the other.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = ref(grid)
        self._here = bool(getattr(grid, "replies_at_once", False))
        self._node_of: dict[str, int] = {}
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[str, Message | Exception | None]] = queue.SimpleQueue()
        self._asked: set[str] = set()  # messages handed to the workers and not yet done
        self._forgotten: set[str] = set()  # messages among them whose replies are no longer wanted
        self._began: dict[str, float] = {}  # when a worker began with each message
        self._replies: dict[str, Message] = {}  # replies that have arrived and not been returned
        self._never_sent: set[str] = set()
        self._num_workers = 0
        self._lock = threading.Lock()

    def expect(self, node_of: Mapping[str, int]) -> None:
        """Register which node each of these messages went to."""
        if not self._here:
            self._node_of |= node_of

    def fetch(self, message_ids: Collection[str], wait: bool = True) -> dict[str, Message]:
        """Return the replies that have arrived, by the id of the message that each answers.

        Without `wait`, return only those that the threads have found since the last call.
        """
        if self._here:
            return self._fetch_here(message_ids)
        self._collect()
        self._ask(message_ids)
        fresh = [message_id for message_id in message_ids if message_id in self._asked]
        deadline = time.monotonic() + STUCK_SECONDS
        while wait and any(i in self._asked and not self._is_slow(i) for i in fresh) and time.monotonic() < deadline:
            self._collect(timeout=SLOW_SECONDS / 4)
            self._hire()
        found = {i: self._replies.pop(i) for i in message_ids if i in self._replies}
        for message_id in found:
            self._node_of.pop(message_id, None)
        return found

    def _is_slow(self, message_id: str) -> bool:
        return self._seconds(message_id) >= SLOW_SECONDS

    def is_stuck(self, message_id: str) -> bool:
        """Return whether the reply to this message is announced but does not come."""
        return self._seconds(message_id) >= STUCK_SECONDS

    def was_never_sent(self, message_id: str, patience: float) -> bool:
        """Return whether an announced reply has been missing for `patience` seconds, or can no longer come."""
        return message_id in self._never_sent or self._seconds(message_id) >= max(patience, STUCK_SECONDS)

    def _seconds(self, message_id: str) -> float:
        """Return how long a thread has been waiting for the reply to this message; 0 if none is."""
        began = self._began.get(message_id)
        return 0.0 if began is None else time.monotonic() - began

    def forget(self, message_id: str) -> None:
        """Stop looking for the reply to this message."""
        if message_id in self._asked:  # its node counts as busy until the thread returns
            self._forgotten.add(message_id)
        else:
            self._node_of.pop(message_id, None)
        self._replies.pop(message_id, None)
        self._never_sent.discard(message_id)

    def _ask(self, message_ids: Collection[str]) -> None:
        held: Counter[int | None] = Counter()  # how much of its quota of STUCK_REPLIES each node uses
        for message_id in self._asked:
            held[self._node_of.get(message_id)] += 1 if self.is_stuck(message_id) else STUCK_REPLIES
        busy_nodes = {node_id for node_id, count in held.items() if count >= STUCK_REPLIES}
        for message_id in message_ids:
            node_id = self._node_of.get(message_id)
            known = message_id in self._asked or message_id in self._replies or message_id in self._never_sent
            if known or (node_id is not None and node_id in busy_nodes):
                continue
            busy_nodes.add(node_id)
            self._asked.add(message_id)
            self._wanted.put(message_id)
        self._hire()

    def _hire(self) -> None:
        """Start threads until enough of them are not slow."""
        slow = sum(self._is_slow(message_id) for message_id in list(self._began))
        needed = min(WORKERS, len(self._asked) - slow)
        with self._lock:
            while self._num_workers - slow < needed:
                self._num_workers += 1
                threading.Thread(target=self._work, name="solon-fetch", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                message_id = self._wanted.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._wanted.empty():
                        self._num_workers -= 1
                        return
                continue
            began = self._began[message_id] = time.monotonic()
            found: Message | Exception | None
            try:
                found = self._pull(message_id)
            except Exception as error:  # a reply that Flower can't inflate must not end the run
                found = error
            if isinstance(found, Message) and _is_unavailable(found) and time.monotonic() - began >= STUCK_SECONDS:
                self._never_sent.add(message_id)
                found = None
            del self._began[message_id]
            self._done.put((message_id, found))

    def _pull(self, message_id: str) -> Message | None:
        grid = self._grid()
        for reply in grid.pull_messages([message_id]) if grid is not None else ():
            if reply.metadata.reply_to_message_id == message_id:
                return reply
        return None

    def _collect(self, timeout: float = 0.0) -> None:
        """Take the threads' results; wait for the first one for at most `timeout` seconds."""
        while True:
            try:
                message_id, found = self._done.get(timeout=timeout) if timeout else self._done.get_nowait()
            except queue.Empty:
                return
            timeout = 0.0
            self._asked.discard(message_id)
            if message_id in self._forgotten:
                self._forgotten.discard(message_id)
                self.forget(message_id)
            elif isinstance(found, Message):
                self._replies[message_id] = found
            elif found is not None:
                _warn_of(found)

    def _fetch_here(self, message_ids: Collection[str]) -> dict[str, Message]:
        replies: dict[str, Message] = {}
        for message_id in message_ids:
            try:
                reply = self._pull(message_id)
            except Exception as error:
                _warn_of(error)
                continue
            if reply is not None:
                replies[message_id] = reply
        return replies


_fetchers: WeakKeyDictionary[Grid, Fetcher] = WeakKeyDictionary()


def fetcher_of(grid: Grid) -> Fetcher:
    """Return the Grid's fetcher. A Grid keeps the same one, since threads may outlive an exchange."""
    fetcher = _fetchers.get(grid)
    if fetcher is None:
        fetcher = _fetchers[grid] = Fetcher(grid)
    return fetcher


def _is_unavailable(reply: Message) -> bool:
    return reply.has_error() and reply.error.code == MESSAGE_UNAVAILABLE


def _warn_of(error: Exception) -> None:
    logger.warning("A reply can't be read and counts as missing: %s: %s", type(error).__name__, one_line(str(error)))
