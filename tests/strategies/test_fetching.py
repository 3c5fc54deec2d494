"""Replies that are announced and never sent, or sent slowly, delay no others."""

import threading
import time
from collections.abc import Callable, Iterable

import pytest
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from solon_fl.simulations import InProcessGrid
from solon_fl.strategies import SolonStrategy, fetching
from solon_fl.strategies.exchange import exchange
from solon_fl.strategies.fetching import Fetcher, fetcher_of
from tests.support import SGD, Regression, initial_model, record_of, small_config

STUCK = 0.15


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "STUCK_SECONDS", STUCK)


class SlowGrid(InProcessGrid):
    """A grid like the SuperLink's. `hold(node)` is called before a node's reply is handed over, and may block."""

    replies_at_once = False

    def __init__(self, hold: Callable[[int], None], num_nodes: int = 5, app: object = None) -> None:
        super().__init__(app or Regression().client_app(), num_nodes)  # type: ignore[arg-type]
        self._hold = hold
        self._lock = threading.Lock()
        self.nodes: dict[str, int] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        ids = list(super().push_messages(kept))
        self.nodes |= {message_id: m.metadata.dst_node_id for message_id, m in zip(ids, kept, strict=True)}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        (message_id,) = message_ids
        self._hold(self.nodes[message_id])
        with self._lock:
            return super().pull_messages([message_id])


def ask(grid: Grid, nodes: Iterable[int] = range(1, 6), timeout: float = 10.0, enough: int = 99) -> list[int]:
    received: list[int] = []

    def receive(batch: list[tuple[int, Message]]) -> bool:
        received.extend(node for node, _ in batch)
        return len(received) >= enough

    messages = {node: Message(RecordDict(), node, MessageType.TRAIN) for node in nodes}
    exchange(grid, messages, timeout, receive)
    return received


def blocking(*nodes: int) -> tuple[Callable[[int], None], threading.Event]:
    release = threading.Event()

    def hold(node: int) -> None:
        if node in nodes:
            release.wait(30)

    return hold, release


def test_one_announced_reply_that_does_not_come_holds_up_no_other() -> None:
    hold, release = blocking(1)
    started = time.monotonic()
    assert sorted(ask(SlowGrid(hold), enough=4)) == [2, 3, 4, 5]
    assert time.monotonic() - started < 10  # the stalled reply takes 30
    release.set()


def test_many_stalls_in_front_of_the_queue_hold_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each occupies its thread for a moment, not for the time after which it counts as stuck."""
    monkeypatch.setattr(fetching, "STUCK_SECONDS", 60.0)
    hold, release = blocking(*range(1, 33))
    grid = SlowGrid(hold, 36)
    try:
        fetcher = fetcher_of(grid)
        messages = [Message(RecordDict(), node, MessageType.TRAIN) for node in range(1, 37)]
        ids = list(grid.push_messages(messages))
        fetcher.expect({message_id: grid.nodes[message_id] for message_id in ids})
        assert {grid.nodes[message_id] for message_id in fetcher.fetch(ids)} == {33, 34, 35, 36}
        assert fetcher._num_workers <= 32 + fetching.WORKERS
    finally:
        release.set()


def test_the_deadline_is_kept_though_every_node_stalls() -> None:
    hold, release = blocking(1, 2, 3, 4, 5)
    started = time.monotonic()
    assert ask(SlowGrid(hold), timeout=0.5) == []
    assert time.monotonic() - started < 10  # the stalled replies take 30
    release.set()


def test_what_is_ready_at_the_deadline_is_taken() -> None:
    hold, release = blocking(1)
    ready = time.monotonic() + 0.4
    grid = SlowGrid(hold)
    pull = grid.pull_messages

    def not_before(message_ids: Iterable[str]) -> Iterable[Message]:
        (message_id,) = message_ids
        return [] if time.monotonic() < ready and grid.nodes[message_id] != 1 else pull([message_id])

    grid.pull_messages = not_before  # type: ignore[method-assign]
    assert sorted(ask(grid, timeout=0.5)) == [2, 3, 4, 5]
    release.set()


def test_threads_are_bounded_by_the_nodes_that_stall_however_many_messages_they_get() -> None:
    hold, release = blocking(1, 2)
    grid = SlowGrid(hold)
    before = threading.active_count()
    for _ in range(6):
        assert sorted(ask(grid, enough=3)) == [3, 4, 5]
    assert threading.active_count() - before <= fetching.WORKERS + 2 * fetching.STUCK_REPLIES
    release.set()


def test_a_node_that_stalled_is_heard_again_once_its_reply_has_come() -> None:
    hold, release = blocking(1)
    grid = SlowGrid(hold)
    assert sorted(ask(grid, enough=4)) == [2, 3, 4, 5]
    assert ask(grid, nodes=[1], timeout=0.3) == []
    release.set()
    time.sleep(0.1)
    assert ask(grid, nodes=[1], timeout=5.0) == [1]


def test_a_node_that_died_while_it_sent_is_heard_as_soon_as_it_is_back() -> None:
    """Flower waits for the first reply for three minutes."""
    first, release = blocking(1)
    died: list[int] = []

    def hold(node: int) -> None:
        if node == 1 and not died:
            died.append(node)
            first(node)

    grid = SlowGrid(hold)
    assert sorted(ask(grid, enough=4)) == [2, 3, 4, 5]
    time.sleep(2 * STUCK)
    assert ask(grid, nodes=[1]) == [1]
    release.set()


def test_what_was_announced_and_has_gone_is_told_apart_from_silence() -> None:
    class Expired(SlowGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            (message_id,) = message_ids
            node = self.nodes[message_id]
            if node == 1:
                time.sleep(2 * STUCK)  # Flower waits for the upload in vain
            if node <= 2:
                return [Message(Error(code=3, reason="gone"), reply_to=self._waiting[message_id])]
            return super().pull_messages([message_id])

    grid = Expired(lambda node: None)
    assert sorted(ask(grid, timeout=2.0)) == [2, 3, 4, 5]
    fetcher = fetcher_of(grid)
    assert {grid.nodes[i]: fetcher.was_never_sent(i, patience=100) for i in grid.nodes}[1]
    assert not any(fetcher.was_never_sent(i, patience=100) for i, node in grid.nodes.items() if node != 1)


def test_nothing_is_kept_of_messages_that_are_answered_or_forgotten() -> None:
    hold, release = blocking(1)
    grid = SlowGrid(hold)
    fetcher = fetcher_of(grid)
    assert sorted(ask(grid, enough=4)) == [2, 3, 4, 5]
    (stalled,) = fetcher._node_of
    fetcher.forget(stalled)
    release.set()
    deadline = time.monotonic() + 10
    while fetcher._asked and time.monotonic() < deadline:
        fetcher.fetch([], wait=False)
        time.sleep(0.02)
    for kept in (fetcher._node_of, fetcher._asked, fetcher._forgotten, fetcher._replies, fetcher._never_sent):
        assert not kept


def test_a_fetcher_lives_no_longer_than_its_grid() -> None:
    grid = InProcessGrid(Regression().client_app(), 2)
    assert fetcher_of(grid) is fetcher_of(grid)
    assert isinstance(fetcher_of(grid), Fetcher)
    known = len(fetching._fetchers)
    del grid
    assert len(fetching._fetchers) == known - 1


@pytest.mark.slow
def test_a_stall_is_in_the_ledger_and_from_the_second_on_an_offence() -> None:
    stall, release = blocking(5)

    def hold(node: int) -> None:
        stall(node)
        time.sleep(0.1 * (node != 5))  # makes a round take a while

    strategy = SolonStrategy(small_config(num_nodes=7, stragglers=1, compression=2), SGD)
    result = strategy.start(SlowGrid(hold, 7), record_of(initial_model()), num_rounds=12, timeout=0.4)
    release.set()
    assert all(metrics["stepped"] == 1 for metrics in result.train_metrics_clientapp.values())
    records = {record.node_id: record for record in strategy.ledger.values()}
    assert records[5].stalled == fetching.STUCK_REPLIES, "no more are looked at"
    assert records[5].offences == 1
    records[5].stalled = 1
    assert records[5].offences == 0, "the first may be a node that died while it sent"
    assert all(record.stalled == record.offences == 0 for node, record in records.items() if node != 5)
