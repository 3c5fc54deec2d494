"""The server's log after the user's code has raised on the nodes."""

import logging
import re
from typing import Any

import pytest
from flwr.app import Context, Error, Message
from torch import Tensor, nn

from solon_fl.clients import Batch
from solon_fl.clients.failures import explained
from solon_fl.errors import ConfigurationError, GroupFailedError, NodeFailedError
from solon_fl.task import WHERE
from tests.support import Regression, train


class Broken(Regression):
    """Some of its nodes read a missing entry."""

    def __init__(self, nodes: frozenset[int]) -> None:
        super().__init__()
        self.nodes = nodes

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        if context.node_id in self.nodes:
            settings: dict[str, float] = {}
            return settings["weight"] * super().batch_loss(model, batch, context)
        return super().batch_loss(model, batch, context)


def said_by_server(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def test_the_server_logs_once_where_nodes_failed(caplog: pytest.LogCaptureFixture) -> None:
    _, reports = train(client=Broken(frozenset({2, 9})), rounds=3)
    assert reports[0].groups[0].malformed_nodes == {2: "error 2: NodeFailedError: KeyError: 'weight'"}
    place = r"test_failures\.py:\d+ in batch_loss: return settings\[\"weight\"\]"
    assert len(re.findall(place, said_by_server(caplog))) == 1
    assert re.search(r"it failed here \(innermost call last\):\n\tmixin\.py:\d+ in train: ", said_by_server(caplog))


def test_what_all_nodes_raise_is_in_the_error_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(GroupFailedError, match="first node's reason: error 2: NodeFailedError: KeyError: 'weight'"):
        train(client=Broken(frozenset(range(1, 15))), rounds=1)
    assert said_by_server(caplog).count('return settings["weight"]') == 1


def test_our_own_errors_stay_as_they_are() -> None:
    with pytest.raises(ConfigurationError, match="as it is"), explained():
        raise ConfigurationError("as it is")


def test_neither_long_lines_nor_deep_recursion_make_a_long_error() -> None:
    def deep(depth: int) -> None:
        if depth == 0:
            raise ValueError
        deep(depth - 1)

    with pytest.raises(NodeFailedError) as caught, explained():
        deep(100)
    told, _, where = str(caught.value).partition(WHERE)
    assert told == "ValueError"
    assert 0 < len(where.splitlines()) <= 12


def test_liars_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    sent = []

    def made_up(message: Message, context: Context, call_next: Any) -> Message:
        if context.node_id not in {3, 9}:
            reply: Message = call_next(message, context)
            return reply
        sent.append(message)
        text = f"lie {len(sent)}{WHERE}" + "\n".join(["\x1b[2J" + "x" * 100] * 10_000)
        return Message(Error(2, text), reply_to=message)

    train(mods=[made_up], rounds=5)
    assert len(sent) == 10
    assert said_by_server(caplog).count("innermost call last") == 5
    assert "\x1b" not in caplog.text
    assert len(said_by_server(caplog)) < 15_000
