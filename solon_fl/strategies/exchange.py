"""Sending messages and taking replies as they come, whatever the Grid or a node does."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from flwr.app import Message, Metadata
from flwr.serverapp import Grid

from solon_fl.strategies.fetching import Fetcher, fetcher_of

__all__ = ["exchange", "reply_keys"]

Key = TypeVar("Key", bound=Hashable)
LONGEST_PAUSE = 0.5  # seconds between two looks for replies


def exchange(
    grid: Grid,
    messages: dict[Key, Message],
    timeout: float | None,
    receive: Callable[[list[tuple[Key, Message]]], bool],
    follow_up: Callable[[bool], dict[Key, Message]] | None = None,
    patience: Callable[[], float] = lambda: math.inf,
) -> tuple[float, dict[str, Key]]:
    """Send messages and hand over the replies as they come, until all are there, `receive` says stop, or time is up.

    Parameters
    ----------
    messages : dict
        A key of the caller's to each message. It is emptied when they are sent: while the nodes work, nobody needs
        the model that is in them.
    timeout : float or None
        Seconds; None waits for ever.
    receive : callable
        Gets the replies that came together, each with its message's key, once per message that was
        answered; returns True when no more are needed. It may take them out of the list. Called with an empty one, too,
        after `follow_up` was told that it is late.
    follow_up : callable, optional
        Returns further messages to send in the same exchange. Called after every `receive` that did not say stop, and
        when half of the timeout has passed since the exchange began, with False; and with True when it is late: when
        the patience, or half of the timeout, has passed since messages were last sent, or no more replies can come.
        Further messages start that time again.
    patience : callable, optional
        Returns seconds.

    Returns
    -------
    seconds : float
        That passed outside `receive` and `follow_up`.
    unanswered : dict
        The keys of messages without a reply so far, by message id.

    Notes
    -----
    A reply that is announced and does not come holds up no other one, and the deadline is kept within seconds: see
    `Fetcher`. Replies are matched by the id of the message that they answer, which the server made; a second
    reply to the same message, or one that says that it answers another message, is never handed over.
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
            sent += busy  # nobody is late because the server was at work
            if enough:
                break
            pause = 0.005
        # Late is what a look did not find that began when the patience was over.
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
            time.sleep(min(max(pause, looking), left))  # a Grid over a network is asked half of the time at most
            pause = min(1.5 * pause, LONGEST_PAUSE)
    return time.monotonic() - started - inside, key_of


def push(grid: Grid, messages: dict[Key, Message], fetcher: Fetcher) -> dict[str, Key]:
    """Send messages, empty the dict, and return the caller's key to each message id."""
    if not messages:
        return {}
    metadata = {key: message.metadata for key, message in messages.items()}
    message_ids = list(grid.push_messages(list(messages.values())))
    messages.clear()
    keys = reply_keys(metadata, message_ids)
    fetcher.expect({message_id: metadata[key].dst_node_id for message_id, key in keys.items()})
    return keys


def reply_keys(metadata: Mapping[Key, Metadata], message_ids: list[str] | None = None) -> dict[str, Key]:
    """Return the caller's key by message id, for the messages that were really sent, given their metadata.

    Grids write the id into the message that they send; one that does not must return as many ids as it got
    messages (None for those that it refused).
    """
    sent = {data.message_id: key for key, data in metadata.items() if data.message_id}
    if not sent and message_ids is not None and len(message_ids) == len(metadata):
        sent = {message_id: key for message_id, key in zip(message_ids, metadata, strict=True) if message_id}
    return sent
