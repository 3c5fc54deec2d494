"""Which nodes lie, how nodes are numbered, and what liars know of each other.

A node's number is its place in the run. It is ``group * group_size + slot`` in Solon's groups, the number that Draco
assigns to the node, and the node's partition id under every other strategy.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from solon_fl.baselines.draco.task import DRACO_TASK
from solon_fl.errors import ConfigurationError
from solon_fl.task import TASK, SolonTask

__all__ = ["Addressee", "Liars", "RegroupedLiars", "partition_id", "place_number"]


def place_number(group: int, group_size: int, slot: int) -> int:
    """Return the number of the node in a slot of one of Solon's groups."""
    return group * group_size + slot


def partition_id(context: Context) -> int:
    """Return a node's partition id, or Flower's id of the node if it has none, as in a deployment."""
    number = context.node_config.get("partition-id", context.node_id)
    if not isinstance(number, int):
        raise ConfigurationError(f"partition-id must be a whole number; got partition-id={number!r}.")
    return number


@dataclass(frozen=True, slots=True)
class Addressee:
    """The node that a message addresses, and its peers: the nodes whose vectors the server combines with its own.

    Attributes
    ----------
    message : Message
        The server's message.
    context : Context
        The node's context.
    number : int
        The node's number.
    first : int
        Number of the first peer. Peers are the group, or all nodes, and have consecutive numbers.
    num_peers : int or None
        Number of peers, this node included. None if neither the message nor the context says.
    entry : (str, str) or None
        The record of the message, and its entry, that identify the addressed peer. None if only the context does.
    """

    message: Message
    context: Context
    number: int
    first: int
    num_peers: int | None
    entry: tuple[str, str] | None

    @classmethod
    def of(cls, message: Message, context: Context) -> "Addressee":
        """Return the addressee of a message."""
        records = message.content.config_records
        if (task := records.get(TASK)) is not None:
            size, group, slot = (_whole(task, name) for name in ("group_size", "group", "slot"))
            first = place_number(group, size, 0)
            return cls(message, context, first + slot, first, size, (TASK, "slot"))
        if (task := records.get(DRACO_TASK)) is not None:
            return cls(message, context, _whole(task, "number"), 0, _whole(task, "num_nodes"), (DRACO_TASK, "number"))
        count = context.node_config.get("num-partitions")
        return cls(message, context, partition_id(context), 0, count if isinstance(count, int) else None, None)

    @property
    def is_referee(self) -> bool:
        """Whether this is a referee's task: everything that a group computes, for the server."""
        return self.num_peers == 1 and self.entry is not None

    @property
    def peers(self) -> range:
        """The peers' numbers, the node's own included."""
        if self.num_peers is None:
            raise ConfigurationError(
                "an omniscient attack needs num-partitions in the node's config; got "
                f"num-partitions={self.context.node_config.get('num-partitions')!r}."
            )
        return range(self.first, self.first + self.num_peers)

    def honest_reply(self, number: int, call_next: ClientAppCallable) -> Message:
        """Return the honest reply of the peer with this number to its own copy of the message."""
        message, context = copy(self.message), copy(self.context)
        content = RecordDict(dict(message.content))
        if self.entry is not None:
            record, name = self.entry
            task = self.message.content.config_records[record]
            content[record] = ConfigRecord({**task, name: number - self.first})
        message.content = content
        context.node_config = {**context.node_config, "partition-id": number}
        return call_next(message, context)


class Liars:
    """The nodes that lie, by number. Liars that are peers of each other collude.

    Parameters
    ----------
    numbers : collection of int, optional
        Numbers of the liars, read at every message. Default: every node lies and knows of no other liar.
    """

    def __init__(self, numbers: Collection[int] | None = None) -> None:
        self._numbers = numbers

    @classmethod
    def of(cls, liars: "Liars | Collection[int] | None") -> "Liars":
        """Return `Liars` unchanged, or make them from numbers."""
        return liars if isinstance(liars, Liars) else Liars(liars)

    def include(self, node: Addressee) -> bool:
        """Return whether a node lies. A referee's task is always answered honestly."""
        return not node.is_referee and (self._numbers is None or node.number in self._numbers)

    def know(self, number: int) -> bool:
        """Return whether the liars know that the node with this number is one of them."""
        return self._numbers is not None and number in self._numbers

    def rows(self, node: Addressee, peers: Sequence[int]) -> list[int]:
        """Return the positions, among its peers, of a lying node and of the liars that it knows."""
        return [row for row, number in enumerate(peers) if number == node.number or self.know(number)]

    def learn(self, tasks: Mapping[int, SolonTask]) -> None:
        """Learn which nodes were given which tasks, by partition id. Liars with fixed places ignore this."""


class RegroupedLiars(Liars):
    """The nodes that lie, by partition id, where nodes are regrouped every round.

    Liars tell each other their places as soon as they have their tasks. A liar that is asked later in a round knows the
    places of those asked before.

    Parameters
    ----------
    partitions : collection of int
        Partition ids of the nodes that lie.
    """

    def __init__(self, partitions: Collection[int]) -> None:
        super().__init__()
        self._partitions = frozenset(partitions)
        self._round = 0
        self._places: set[int] = set()  # of this round

    def include(self, node: Addressee) -> bool:
        """See `Liars.include`."""
        return not node.is_referee and partition_id(node.context) in self._partitions

    def know(self, number: int) -> bool:
        """See `Liars.know`."""
        return number in self._places

    def learn(self, tasks: Mapping[int, SolonTask]) -> None:
        """See `Liars.learn`."""
        for partition, task in tasks.items():
            if task.round != self._round:
                self._round, self._places = task.round, set()
            if partition in self._partitions:
                self._places.add(place_number(task.group, task.group_size, task.slot))


def _whole(task: ConfigRecord, name: str) -> int:
    value = task[name]
    if not isinstance(value, int):
        raise ConfigurationError(f"the task's entry {name} must be a whole number; got {name}={value!r}.")
    return value
