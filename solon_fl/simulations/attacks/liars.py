"""Who lies: the number that names a node, and what the liars know of each other.

A node's number says where it stands in the run. It is group * group_size + slot in Solon's groups, the number that
Draco gives the node, and the node's partition id under every other strategy.
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
    """Return a node's partition id, or Flower's id for the node where it has none, as in a deployment."""
    number = context.node_config.get("partition-id", context.node_id)
    if not isinstance(number, int):
        raise ConfigurationError(f"partition-id must be a whole number; got partition-id={number!r}.")
    return number


@dataclass(frozen=True, slots=True)
class Addressee:
    """The node that a message is for, seen among its peers: the nodes whose vectors the server combines with its own.

    Attributes
    ----------
    message : Message
        What the server sent.
    context : Context
        Of the node.
    number : int
        Of the node.
    first : int
        Number of the first peer. Peers have consecutive numbers: those of the group, or of all nodes.
    num_peers : int or None
        How many there are, this node included; None if neither message nor context tells.
    entry : (str, str) or None
        The record of the message and its entry that say which of the peers is addressed; None if only the context does.
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
        """Whether the task is that of a referee: all of what a group computes, for the server."""
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
        """Return what the peer with this number would answer to its own copy of the message."""
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
    """The nodes that lie, given by their numbers. Those that are peers of each other collude.

    Parameters
    ----------
    numbers : collection of int, optional
        Looked at whenever a message comes. Default: every node lies, and knows of no other liar.
    """

    def __init__(self, numbers: Collection[int] | None = None) -> None:
        self._numbers = numbers

    @classmethod
    def of(cls, liars: "Liars | Collection[int] | None") -> "Liars":
        """Return liars as they are, or those with these numbers."""
        return liars if isinstance(liars, Liars) else Liars(liars)

    def include(self, node: Addressee) -> bool:
        """Return whether a node lies. A referee's task, which has no peers, is answered honestly."""
        return not node.is_referee and (self._numbers is None or node.number in self._numbers)

    def know(self, number: int) -> bool:
        """Return whether the liars know the node with this number to be one of them."""
        return self._numbers is not None and number in self._numbers

    def rows(self, node: Addressee, peers: Sequence[int]) -> list[int]:
        """Return which of these peers of a lying node lie with it, by their position, its own included."""
        return [row for row, number in enumerate(peers) if number == node.number or self.know(number)]

    def learn(self, tasks: Mapping[int, SolonTask]) -> None:
        """Take in which nodes were given which tasks, by partition id. Liars that keep their places need no telling."""


class RegroupedLiars(Liars):
    """The nodes that lie where places are drawn anew every round, given by their partition ids.

    They tell each other their places as soon as they have their tasks. Those that are asked later in a round learn of
    those asked before.

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
