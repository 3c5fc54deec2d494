import json
import time
from collections.abc import Callable, Iterable

import pytest
from flwr.app import Array, Message, MessageType, RecordDict
from flwr.app.message.arraychunk import ArrayChunk

from solon_fl.simulations import InProcessGrid
from solon_fl.strategies.exchange import exchange
from tests.support import Regression

Received = list[tuple[int, Message]]


class ScriptedGrid(InProcessGrid):
    """Answers every message with an empty reply, as a script says.

    Like the SuperLink, a script can record in `taken` what it has handed out, in order not to hand it out again.
    """

    taken: frozenset[str] | set[str] = frozenset()

    def __init__(self, script: Callable[["ScriptedGrid", list[str]], list[Message]]) -> None:
        super().__init__(Regression().client_app(), num_nodes=9)
        self.script = script
        self.pulls = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.pulls += 1
        return self.script(self, list(message_ids))

    def reply(self, message_id: str) -> Message:
        return Message(RecordDict(), reply_to=self._waiting[message_id])


def ask(grid: InProcessGrid, count: int = 3, timeout: float = 0.5, enough: int = 99) -> Received:
    received: Received = []

    def receive(batch: Received) -> bool:
        received.extend(batch)
        return len(received) >= enough

    messages = {node: Message(RecordDict(), node, MessageType.TRAIN) for node in range(1, count + 1)}
    exchange(grid, messages, timeout, receive)
    return received


def test_replies_come_in_any_order_with_their_keys() -> None:
    grid = ScriptedGrid(lambda grid, ids: [grid.reply(ids[-1])])
    received = ask(grid)
    assert sorted(key for key, _ in received) == [1, 2, 3]
    assert all(reply.metadata.src_node_id == key for key, reply in received)


def test_a_second_reply_and_a_reply_to_something_else_are_dropped() -> None:
    stray = ScriptedGrid(lambda grid, ids: [])
    ask(stray, timeout=0.01)
    foreign = stray.reply(next(iter(stray._waiting)))
    grid = ScriptedGrid(lambda grid, ids: [grid.reply(ids[0]), grid.reply(ids[0]), foreign])
    assert [key for key, _ in ask(grid)] == [1, 2, 3]


def test_a_reply_that_cannot_be_inflated_costs_only_itself() -> None:
    def script(grid: ScriptedGrid, ids: list[str]) -> list[Message]:
        poisoned = list(grid._waiting)[1]
        asked, grid.taken = [i for i in ids if i not in grid.taken], grid.taken | set(ids)
        if poisoned in asked:
            raise ValueError("unexpected object tree")
        return [grid.reply(i) for i in asked]

    assert sorted(key for key, _ in ask(ScriptedGrid(script))) == [1, 3]


def test_a_reply_too_large_for_the_memory_counts_as_missing() -> None:
    """An array's object may name one chunk many times. When Flower inflates it, it multiplies the bytes of the node."""
    chunk = ArrayChunk(memoryview(b"x" * 1000))
    facts = json.dumps({"dtype": "u1", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": [0] * 300}).encode()
    content = f"Array {chunk.object_id} {len(facts)}".encode() + b"\0" + facts
    assert len(content) < 1500
    assert len(Array.inflate(content, {chunk.object_id: chunk}).data) == 300_000

    def script(grid: ScriptedGrid, ids: list[str]) -> list[Message]:
        if ids[0] == list(grid._waiting)[1]:
            raise MemoryError
        return [grid.reply(ids[0])]

    assert sorted(key for key, _ in ask(ScriptedGrid(script), timeout=0.05)) == [1, 3]


def test_a_reply_can_not_pass_for_that_of_another_node() -> None:
    """The id of the message that a reply answers is in the bytes that the node sent."""

    def script(grid: ScriptedGrid, ids: list[str]) -> list[Message]:
        first, second, _ = grid._waiting
        reply = grid.reply(ids[0])
        if ids[0] == first:
            reply.metadata.__dict__["_reply_to_message_id"] = second
        return [reply]

    received = ask(ScriptedGrid(script), timeout=0.05)
    assert [(key, reply.metadata.src_node_id) for key, reply in received] == [(2, 2), (3, 3)]


def test_silence_ends_with_the_timeout_and_stopping_needs_no_more_replies() -> None:
    assert ask(ScriptedGrid(lambda grid, ids: []), timeout=0.05) == []
    grid = ScriptedGrid(lambda grid, ids: [grid.reply(ids[0])])
    assert len(ask(grid, enough=2)) == 3  # each was looked for once
    assert grid.pulls == 3


def test_messages_that_a_grid_refuses_are_not_waited_for() -> None:
    class Refusing(ScriptedGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            kept = [message for message in messages if message.metadata.dst_node_id != 2]
            return super().push_messages(kept)

    grid = Refusing(lambda grid, ids: [grid.reply(i) for i in ids])
    assert sorted(key for key, _ in ask(grid, timeout=60)) == [1, 3]


def ask_in_two_steps(grid: InProcessGrid, wanted: int, timeout: float = 60.0) -> tuple[Received, list[bool]]:
    """Ask nodes 1 and 2, and then node 3 if there are fewer replies than wanted when no more can come, or half-way."""
    received: Received = []
    calls: list[bool] = []

    def receive(batch: Received) -> bool:
        received.extend(batch)
        return len(received) >= wanted

    def follow_up(late: bool) -> dict[int, Message]:
        calls.append(late)
        return {3: Message(RecordDict(), 3, MessageType.TRAIN)} if late and calls.count(True) == 1 else {}

    messages = {node: Message(RecordDict(), node, MessageType.TRAIN) for node in (1, 2)}
    exchange(grid, messages, timeout, receive, follow_up)
    return received, calls


def test_who_is_to_follow_up_is_told_when_it_is_late_and_again_for_further_messages() -> None:
    def all_but_node_2(grid: ScriptedGrid, ids: list[str]) -> list[Message]:
        return [grid.reply(i) for i in ids if grid._waiting[i].metadata.dst_node_id != 2]

    received, calls = ask_in_two_steps(ScriptedGrid(all_but_node_2), 2, timeout=0.2)
    assert [key for key, _ in received] == [1, 3]
    assert calls == [False, True]
    received, calls = ask_in_two_steps(ScriptedGrid(all_but_node_2), 3, timeout=0.2)
    assert [key for key, _ in received] == [1, 3]
    assert calls == [False, True, False]


def test_nobody_is_late_because_the_server_was_at_work() -> None:
    """The server looks for replies that arrived meanwhile before it sends any further message."""
    handled = 0

    def one_at_a_time(grid: ScriptedGrid, ids: list[str]) -> list[Message]:
        return [grid.reply(i) for i in ids if grid._waiting[i].metadata.dst_node_id == handled + 1]

    calls: list[bool] = []
    received: Received = []

    def receive(batch: Received) -> bool:
        nonlocal handled
        received.extend(batch)
        handled += len(batch)
        time.sleep(0.1)
        return False

    def follow_up(late: bool) -> dict[int, Message]:
        calls.append(late)
        return {}

    grid = ScriptedGrid(one_at_a_time)
    messages = {node: Message(RecordDict(), node, MessageType.TRAIN) for node in (1, 2, 3)}
    exchange(grid, messages, 60, receive, follow_up, patience=lambda: 0.05)
    assert [key for key, _ in received] == [1, 2, 3]
    assert calls == [False, False, True]  # late only when no more replies can come


@pytest.mark.parametrize("refused", [{2}, {1, 2}])
def test_a_follow_up_does_not_wait_for_messages_that_were_refused(refused: set[int]) -> None:
    class Refusing(ScriptedGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return super().push_messages([m for m in messages if m.metadata.dst_node_id not in refused])

    received, calls = ask_in_two_steps(Refusing(lambda grid, ids: [grid.reply(i) for i in ids]), 3)
    assert {key for key, _ in received} == {1, 2, 3} - refused
    assert calls.count(True) == 2  # once more for the message that followed


def test_nothing_follows_when_enough_is_there() -> None:
    received, calls = ask_in_two_steps(ScriptedGrid(lambda grid, ids: [grid.reply(i) for i in ids]), 2)
    assert sorted(key for key, _ in received) == [1, 2]
    assert True not in calls
