"""Fetching replies from a Grid so that no node can hold up another's reply, whatever it announces and does not send.

Flower's `pull_messages` waits until a reply that a node has announced is uploaded, up to two hours, and can't be
interrupted. So every reply is fetched by itself, in a thread that may be left behind.
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

WORKERS = 8  # threads that look for replies at the same time
IDLE_SECONDS = 5.0  # after which a thread without work ends
SLOW_SECONDS = 0.1  # after which other replies no longer wait for a thread that is at work
STUCK_SECONDS = 2.0  # after which a thread no longer counts as one of them: its reply is announced, and not there
STUCK_REPLIES = 2  # of a node that are looked at, each by a thread; the first may be of one that died and is back
MESSAGE_UNAVAILABLE = 3  # Flower's error code for a reply that was announced, and of which something is missing
logger = logging.getLogger("flwr")


class Fetcher:
    """Looks for the replies to messages, and leaves those that are announced and not there to themselves.

    Notes
    -----
    Every reply is pulled by itself. Flower's SuperLink forgets what was pulled together as soon as it has handed it
    out, so that one reply that can't be inflated would take all others with it; and what a reply says that it answers
    is written by the node, while the SuperLink hands out under an id only what the node asked under that id has sent.

    Guarantee: `fetch` takes about `STUCK_SECONDS` at most. A node whose replies are stuck holds at most `STUCK_REPLIES`
    threads, however many messages it is sent; so there are never more than `WORKERS` threads and those. They are
    daemons: the program ends without them. A node that died while it sent is heard as soon as it is back.

    A Grid that computes replies in `pull_messages`, as `InProcessGrid` does, says so by an attribute `replies_at_once`
    that is true: its replies are pulled in the caller's thread, one after the other.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = ref(grid)
        self._here = bool(getattr(grid, "replies_at_once", False))
        self._node_of: dict[str, int] = {}
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[str, Message | Exception | None]] = queue.SimpleQueue()
        self._asked: set[str] = set()  # messages that were handed to the workers, which have not answered yet
        self._forgotten: set[str] = set()  # of these, those whose replies nobody wants any more
        self._began: dict[str, float] = {}  # when a worker began with it
        self._replies: dict[str, Message] = {}  # that nobody has asked for since they came
        self._never_sent: set[str] = set()
        self._num_workers = 0
        self._lock = threading.Lock()

    def expect(self, node_of: Mapping[str, int]) -> None:
        """Learn which node each of these messages went to."""
        if not self._here:
            self._node_of |= node_of

    def fetch(self, message_ids: Collection[str], wait: bool = True) -> dict[str, Message]:
        """Return the replies that are there, by the id of the message that each answers.

        Without `wait`, only those that the threads have found since the last call.
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
        """Return whether the reply to this message is announced, but does not come."""
        return self._seconds(message_id) >= STUCK_SECONDS

    def was_never_sent(self, message_id: str, patience: float) -> bool:
        """Return whether the reply was announced, and has not come for so many seconds, or can't come any more."""
        return message_id in self._never_sent or self._seconds(message_id) >= max(patience, STUCK_SECONDS)

    def _seconds(self, message_id: str) -> float:
        """Return for how long a thread has waited for the reply to this message; 0 if none does."""
        began = self._began.get(message_id)
        return 0.0 if began is None else time.monotonic() - began

    def forget(self, message_id: str) -> None:
        """Stop looking for the reply to this message."""
        if message_id in self._asked:  # its node is busy until the thread is back
            self._forgotten.add(message_id)
        else:
            self._node_of.pop(message_id, None)
        self._replies.pop(message_id, None)
        self._never_sent.discard(message_id)

    def _ask(self, message_ids: Collection[str]) -> None:
        held: Counter[int | None] = Counter()  # by each node, of what it may hold
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
        """See to it that enough threads are at work that are not slow."""
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
        """Take what the threads have found; wait for the first of it until the timeout."""
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
    """Return the fetcher of a Grid: one for its life, since threads may outlive an exchange."""
    fetcher = _fetchers.get(grid)
    if fetcher is None:
        fetcher = _fetchers[grid] = Fetcher(grid)
    return fetcher


def _is_unavailable(reply: Message) -> bool:
    return reply.has_error() and reply.error.code == MESSAGE_UNAVAILABLE


def _warn_of(error: Exception) -> None:
    logger.warning("A reply can't be read and counts as missing: %s: %s", type(error).__name__, one_line(str(error)))
