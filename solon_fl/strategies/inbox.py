"""Collects the usable replies of one group in one round."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from flwr.app import Message
from torch import Tensor

from solon_fl.coding.sections import Sections
from solon_fl.strategies.replies import Unusable, read_all, read_loss, read_share, read_unreached

__all__ = ["GroupInbox"]

logger = logging.getLogger("flwr")


@dataclass(kw_only=True)
class GroupInbox:
    """Collects the replies of one group, and keeps track of the nodes that have yet to reply.

    Attributes
    ----------
    group : int
        The group's number.
    nodes : tuple of (int or None)
        Node ids by slot; None if the slot has no node to ask.
    resting : set of int
        Slots of nodes that have no task unless the others turn out not to be enough.
    denied : set of int
        Slots among them whose nodes get a task only if the other resting nodes are not enough, either.
    unheard : set of int
        Slots of nodes that have not replied in the last rounds and are not waited for.
    also : mapping from int to tuple of int
        Maps the slot of a node to the empty slots whose shares it also sends. They take no more computation of
        gradients.
    byzantine : int
        Number of liars that there may be among the nodes.
    sections : Sections
        The model's tensors; the result is padded like them.
    dtype : torch.dtype
        The dtype of the shares.
    parameters : collection of str
        Names of parameters that nodes may report as having no gradient; other names are dropped.
    label : callable
        Returns the name of a node in the log, given its id.
    explain : callable
        Called with the id of a node whose reply can't be used, and the reason.
    bytes_in : int
        Bytes received.
    """

    group: int
    nodes: tuple[int | None, ...]
    byzantine: int
    sections: Sections
    dtype: torch.dtype
    parameters: Collection[str] = frozenset()
    label: Callable[[int], str] = str
    explain: Callable[[int, Unusable], None] = lambda node_id, unusable: None
    resting: set[int] = field(default_factory=set)
    denied: set[int] = field(default_factory=set)
    unheard: set[int] = field(default_factory=set)
    also: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    bytes_in: int = 0
    _shares: dict[int, Tensor] = field(default_factory=dict)
    _losses: dict[int, float] = field(default_factory=dict)  # as reported, unprotected
    _unreached: dict[int, frozenset[str]] = field(default_factory=dict)  # the parameters that each node reports
    _malformed: dict[int, str] = field(default_factory=dict)
    _garbled: set[int] = field(default_factory=set)  # slots of nodes whose reply no honest node sends
    _gone: set[int] = field(default_factory=set)  # slots of nodes that the SuperLink could not reach in time

    @property
    def asked(self) -> list[int]:
        """Slots of the nodes that have a task."""
        return [slot for slot, node in enumerate(self.nodes) if node is not None and slot not in self.resting]

    def receive(self, replies: dict[int, Message]) -> None:
        """Take replies by slot out of the dict. Nothing is raised, whatever they hold.

        The first reply of a slot counts.
        """
        for slot in self._known_slots() & replies.keys():
            del replies[slot]
        losses = {slot: read_loss(reply) for slot, reply in replies.items()}
        self._losses |= {slot: loss for slot, loss in losses.items() if loss is not None}
        told = {slot: read_unreached(reply) for slot, reply in replies.items() if not reply.has_error()}
        self._unreached |= {slot: names.intersection(self.parameters) for slot, names in told.items()}
        self._take(replies)

    def _known_slots(self) -> set[int]:
        """Return the slots whose replies are no longer wanted."""
        slots = range(len(self.nodes))
        done = {slot for slot in slots if self.nodes[slot] is None or self.nodes[slot] in self._malformed}
        return done | self._shares.keys() | self._gone

    def _take(self, replies: dict[int, Message]) -> None:
        """Read replies, and keep their content."""
        reader = partial(read_share, length=self.sections.num_columns, dtype=self.dtype)
        for slot, share in read_all(replies, reader).items():
            if isinstance(share, Unusable):
                self._refuse(slot, share)
            else:
                self._keep(slot, share)

    def _keep(self, slot: int, share: Tensor) -> None:
        self._shares[slot] = share
        self.bytes_in += share.numel() * share.element_size()

    def _refuse(self, slot: int, unusable: Unusable) -> None:
        node_id = self.nodes[slot]
        if unusable.silence:
            self._gone.add(slot)
        elif node_id is not None:
            self._malformed[node_id] = unusable.reason
            if not unusable.failed:
                self._garbled.add(slot)
            logger.warning("Node %s (group %d): not a share: %s", self.label(node_id), self.group, unusable.reason)
            self.explain(node_id, unusable)

    @property
    def _all_here(self) -> bool:
        malformed = {slot for slot, node_id in enumerate(self.nodes) if node_id in self._malformed}
        return self.unheard.union(self._shares, malformed, self._gone).issuperset(self.asked)

    @property
    def _votes_are_clear(self) -> bool:
        """Whether each parameter's status, with or without a gradient, is confirmed by at least one honest node."""
        voters = len(self._unreached)
        return all(max(count, voters - count) > self.byzantine for count in self._without_gradient.values())

    @property
    def _without_gradient(self) -> Counter[str]:
        """How many nodes say that no loss depends on a parameter, by its name."""
        return Counter(name for names in self._unreached.values() for name in names)

    @property
    def _elected_unreached(self) -> set[str]:
        """Parameters without a gradient, according to more than s nodes."""
        return {name for name, count in self._without_gradient.items() if count > self.byzantine}

    @property
    def _false_voters(self) -> set[int]:
        """Slots of nodes that contradict more than s others on whether a parameter has a gradient."""
        voters, counts = len(self._unreached), self._without_gradient
        without = {name for name, count in counts.items() if count > self.byzantine}
        having = {name for name, count in counts.items() if voters - count > self.byzantine}
        has, lacks = having - without, without - having  # on parameters in both, honest nodes disagree
        return {slot for slot, names in self._unreached.items() if names & has or lacks - names}

    def _ids(self, slots: Iterable[int]) -> tuple[int, ...]:
        """Return the ids of the nodes that sent, or should have sent, the shares of these slots."""
        ids = (self.nodes[self._sender_of(slot)] for slot in sorted(slots))
        return tuple(dict.fromkeys(node_id for node_id in ids if node_id is not None))

    def _sender_of(self, slot: int) -> int:
        """Return the slot of the node that sends the share of this slot."""
        return next((sender for sender, slots in self.also.items() if slot in slots), slot)
