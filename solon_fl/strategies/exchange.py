"""Sends messages and passes on replies as they arrive, whatever the Grid or a node does."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from flwr.app import Message, Metadata
from flwr.serverapp import Grid

from solon_fl.strategies.fetching import Fetcher, fetcher_of

__all__ = ["exchange", "reply_keys"]

Key = TypeVar("Key", bound=Hashable)
LONGEST_PAUSE = 0.5  # seconds between two polls for replies


def exchange(
    grid: Grid,
    messages: dict[Key, Message],
    timeout: float | None,
    receive: Callable[[list[tuple[Key, Message]]], bool],
    follow_up: Callable[[bool], dict[Key, Message]] | None = None,
    patience: Callable[[], float] = lambda: math.inf,
) -> tuple[float, dict[str, Key]]:
    """Send messages and hand over the replies as they arrive.

    This ends when all replies are here, when `receive` returns True, or when the time is up.

    Parameters
    ----------
    messages : dict
        The messages, each under a key of the caller's. The dict is emptied when they are sent, so that the models in
        them don't stay in memory while the nodes work.
    timeout : float or None
        Seconds to wait; None waits forever.
    receive : callable
        Called with the replies that arrived together, each with its message's key, at most once per message. It may
        take them out of the list. It returns True when no more replies are needed. It is also called with an empty list
        after a `follow_up` call with True that sent no further messages.
    follow_up : callable, optional
        Returns further messages to send in the same exchange. It is called with False after every `receive` that
        did not return True, and once half of the timeout has passed since the exchange began. It is called with True
        when it is late, that is, when no more replies can come, or when the patience or half of the timeout has passed
        since messages were last sent. Further messages restart that time.
    patience : callable, optional
        Returns the patience in seconds.

    Returns
    -------
    seconds : float
        The time spent outside `receive` and `follow_up`.
    unanswered : dict
        The keys of the messages that have no reply so far, by message id.

    Notes
    -----
    A reply that is announced but does not come delays no other reply, and the deadline is kept to within seconds: see
    `Fetcher`. The server creates the id of each message, and replies are matched by the id that they answer. A second
    reply to the same message is never handed over, and neither is one that claims to answer another message.
    """
    started = time.monotonic()
    inside = 0.0
    fetcher = fetcher_of(grid)
    key_of = push(grid, messages, fetcher)
    pause = 0.005
    late, half_over = False, timeout is None
    sent = started
    while key_of or (follow_up is not None and not late):
        looked = time.monotonic()
        batch = [(key_of.pop(message_id), reply) for message_id, reply in fetcher.fetch(list(key_of)).items()]
        looking = time.monotonic() - looked
        anything = bool(batch)
        if anything:
            entered = time.monotonic()
            enough = receive(batch)
            busy = time.monotonic() - entered
            inside += busy
            sent += busy  # no node is late because the server was busy
            if enough:
                break
            pause = 0.005
        # It is late only if a look that began after the patience was over found nothing.
        is_over = looked - sent >= min(patience(), math.inf if timeout is None else timeout / 2)
        turns_late = not late and (not key_of or (is_over and not anything))
        reaches_half = not half_over and timeout is not None and looked - started >= timeout / 2
        half_over = half_over or reaches_half
        if follow_up is not None and (anything or turns_late or reaches_half):
            late = late or turns_late
            entered = time.monotonic()
            further = follow_up(turns_late)
            inside += time.monotonic() - entered
            more = push(grid, further, fetcher)
            key_of |= more
            if more:
                late = False
                sent = time.monotonic()
                continue
            if turns_late:
                entered = time.monotonic()
                enough = receive([])
                inside += time.monotonic() - entered
                if enough:
                    break
        if timeout is not None and looked - started >= timeout:  # so that the last look is after the deadline
            break
        if key_of and not anything:
            left = math.inf if timeout is None else max(started + timeout - time.monotonic(), 0.0)
            time.sleep(min(max(pause, looking), left))  # spend at most half of the time polling a Grid over a network
            pause = min(1.5 * pause, LONGEST_PAUSE)
    return time.monotonic() - started - inside, key_of


def push(grid: Grid, messages: dict[Key, Message], fetcher: Fetcher) -> dict[str, Key]:
    """Send messages, empty the dict, and return the caller's keys by message id."""
    if not messages:
        return {}
    metadata = {key: message.metadata for key, message in messages.items()}
    message_ids = list(grid.push_messages(list(messages.values())))
    messages.clear()
    keys = reply_keys(metadata, message_ids)
    fetcher.expect({message_id: metadata[key].dst_node_id for message_id, key in keys.items()})
    return keys


def reply_keys(metadata: Mapping[Key, Metadata], message_ids: list[str] | None = None) -> dict[str, Key]:
    """Return the caller's keys by message id, for the messages that were really sent, given their metadata.

    Grids write the id into each message that they send. A Grid that does not must return one id for each message,
    None for those that it refused.
    """
    sent = {data.message_id: key for key, data in metadata.items() if data.message_id}
    if not sent and message_ids is not None and len(message_ids) == len(metadata):
        sent = {message_id: key for message_id, key in zip(message_ids, metadata, strict=True) if message_id}
    return sent
