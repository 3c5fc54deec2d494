"""A Flower Grid that runs the ClientApp in this process, with the same messages as in a deployment."""

import logging
from collections.abc import Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from solon_fl.clients.keeping import keep_in_memory
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.attacks import Liars
from solon_fl.simulations.own import OwnCodeError
from solon_fl.simulations.run._compat import assign_message_id, become_server
from solon_fl.task import TASK, SolonTask

__all__ = ["ColludersGrid", "InProcessGrid", "partition_of"]

CLIENT_APP_RAISED = 2  # Flower's error code for an exception in the ClientApp
logger = logging.getLogger("flwr")


def partition_of(node_id: int) -> int:
    """Return the partition id of a node of an `InProcessGrid`."""
    return node_id - 1


class InProcessGrid(Grid):
    """A Grid of the nodes 1..num_nodes, which all run one ClientApp. A message is handled when its reply is pulled.

    Parameters
    ----------
    client_app : ClientApp
        Called for every message. Each node has a Context whose node_config holds "partition-id" (0 for node 1) and
        "num-partitions", as in Flower's simulation. As in a deployment, an exception becomes an error reply, and there
        is no reply for None.
    num_nodes : int
        P, the number of nodes.
    run_config : mapping, optional
        The run's settings, for ``context.run_config``.
    """

    replies_at_once = True  # pull_messages computes them, in the caller's thread

    def __init__(
        self, client_app: ClientApp, num_nodes: int, run_config: Mapping[str, bool | float | int | str] | None = None
    ) -> None:
        if num_nodes < 1:
            raise ConfigurationError(f"num_nodes must be at least 1; got num_nodes={num_nodes}.")
        become_server()
        keep_in_memory()
        self._client_app = client_app
        self._run = Run.create_empty(run_id=1)
        self._contexts = {
            node_id: Context(
                run_id=self._run.run_id,
                node_id=node_id,
                node_config={"partition-id": partition_of(node_id), "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for node_id in range(1, num_nodes + 1)
        }
        self._waiting: dict[str, Message] = {}
        self.own_code_error: OwnCodeError | None = None  # an error in the user's own attack, not a crash of a node

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message (Flower has deprecated this in favour of Message itself)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages. They are handled when their replies are pulled."""
        message_ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self._contexts:
                raise ConfigurationError(f"there is no node {message.metadata.dst_node_id} in this grid")
            message_ids.append(assign_message_id(message))
            self._waiting[message_ids[-1]] = message
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Handle the messages with these ids, and return the replies."""
        replies = [self._handle(self._waiting.pop(i)) for i in list(message_ids) if i in self._waiting]
        return [reply for reply in replies if reply is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Handle messages at once, and return the replies."""
        return self.pull_messages(self.push_messages(messages))

    def _handle(self, message: Message) -> Message | None:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            reply: Message | None = self._client_app(message, context)
        except Exception as error:  # an error reply, as in a deployment
            if isinstance(error, OwnCodeError):
                self.own_code_error = error
            logger.debug("Node %d raised", context.node_id, exc_info=True)
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(code=CLIENT_APP_RAISED, reason=reason), reply_to=message)
        if reply is not None:
            assign_message_id(reply)
        return reply


class ColludersGrid(InProcessGrid):
    """An `InProcessGrid` whose liars tell each other which tasks they were given.

    Parameters
    ----------
    client_app, num_nodes
        See `InProcessGrid`.
    liars : Liars
        The liars that the ClientApp's mods use.
    """

    def __init__(self, client_app: ClientApp, num_nodes: int, liars: Liars) -> None:
        super().__init__(client_app, num_nodes)
        self._liars = liars

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `InProcessGrid.push_messages`."""
        kept = list(messages)
        tasks = {partition_of(m.metadata.dst_node_id): SolonTask.from_message(m) for m in kept if TASK in m.content}
        if tasks:
            self._liars.learn(tasks)
        return super().push_messages(kept)
