import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from solon_fl.errors import ConfigurationError
from solon_fl.simulations import InProcessGrid


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def echo(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise OSError("no space left")
        if context.node_config["partition-id"] == 2:
            return None  # type: ignore[return-value]  # a node that never replies
        return Message(RecordDict(), reply_to=message)

    return app


def test_nodes_answer_raise_or_stay_silent_as_in_a_deployment() -> None:
    grid = InProcessGrid(echo_app(), 3)
    assert list(grid.get_node_ids()) == [1, 2, 3]
    ids = list(grid.push_messages([Message(RecordDict(), node, MessageType.TRAIN) for node in (1, 2, 3)]))
    assert len(set(ids)) == 3
    replies = list(grid.pull_messages(ids))
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids[:2]
    assert replies[0].has_content()
    assert replies[1].error.code == 2
    assert "OSError: no space left" in str(replies[1].error.reason)
    assert list(grid.pull_messages(ids)) == []


def test_an_unknown_node_and_an_empty_grid_are_refused() -> None:
    grid = InProcessGrid(echo_app(), 3)
    with pytest.raises(ConfigurationError, match="no node 7"):
        grid.push_messages([Message(RecordDict(), 7, MessageType.TRAIN)])
    with pytest.raises(ConfigurationError, match="num_nodes=0"):
        InProcessGrid(echo_app(), 0)
