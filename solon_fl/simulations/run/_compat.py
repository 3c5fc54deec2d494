"""All private parts of Flower that an in-process Grid uses."""

from uuid import uuid4

from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["assign_message_id", "become_server"]

SERVER_NODE_ID = 1


def become_server() -> None:
    """Give this process the identity that Flower needs to create a Message, unless it has one."""
    for name in ("run_id", "node_id", "task_id"):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:
            setattr(TaskIdentity, name, SERVER_NODE_ID)


def assign_message_id(message: Message) -> str:
    """Set a new id in a message's metadata, as Flower's own Grids do, and return it."""
    message_id = str(uuid4())
    message.metadata.__dict__["_message_id"] = message_id
    return message_id
