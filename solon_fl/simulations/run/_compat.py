"""All private parts of Flower that an in-process Grid needs."""

from uuid import uuid4

from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["assign_message_id", "become_server"]

SERVER_NODE_ID = 1


def become_server() -> None:
    """Give this process the identity that Flower requires for making a Message, unless it has one."""
    for name in ("run_id", "node_id", "task_id"):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:
            setattr(TaskIdentity, name, SERVER_NODE_ID)


def assign_message_id(message: Message) -> str:
    """Write a new id into a message's metadata, as Flower's own Grids do, and return the id."""
    message_id = str(uuid4())
    message.metadata.__dict__["_message_id"] = message_id
    return message_id
