"""Sends the model to the nodes: tracks which version each node has, and sends what brings it to the newest."""

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from torch import Tensor

from solon_fl.config import DownlinkName
from solon_fl.downlink.codec import make_patch
from solon_fl.parts import FIXED, MODEL, PATCHES, TRAINED, Parts
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.replies import read_kept
from solon_fl.task import ARRAYS
from solon_fl.wire import real_view, tensors_sha256, to_array

__all__ = ["ModelSender", "Records"]

Records = Mapping[str, ArrayRecord | MetricRecord | ConfigRecord]
MOST_PATCHES = 16
MOST_BEHIND = 3  # most unacknowledged versions sent to a node, as late replies arrive a round or two later


@dataclass(slots=True)
class _Node:
    """What the server knows of a node.

    Attributes
    ----------
    version, fixed : str
        SHA-256 of the trained and of the fixed entries that it has; "" if unknown.
    expected : str
        SHA-256 of the version that it was sent last.
    whole_in : int
        The last round in which the whole model was sent to it; 0 for never.
    asked : int
        How often it needed the whole model although it had it, or was sent it, before.
    free_in : int
        The first round in which it is sent the whole model again without delay.
    """

    version: str = ""
    fixed: str = ""
    expected: str = ""
    whole_in: int = 0
    asked: int = 0
    free_in: int = 0


class ModelSender:
    """Sends nodes the parts of the model that they lack.

    With `downlink` "full" and no frozen weights, this is always the whole model, and nodes keep nothing. With "delta",
    the server holds a copy of the trained entries that all nodes in step hold, too, bit by bit. After each step, a
    patch brings the copy close to the model, and nodes compute their gradients at the copy. The next patch includes
    what this one leaves out.

    Parameters
    ----------
    model : ServerModel
        The run's model.
    downlink : "full" or "delta"
        See `SolonConfig`.

    Attributes
    ----------
    keeps_state : bool
        Whether nodes keep some of the model, so that it is sent in parts.

    Notes
    -----
    Nodes report what they have, and the server never assumes that a node has something it was not sent. A node that
    lacks the model says so and is sent the whole model in the same round, once. A node that reports none of the last 3
    versions that it was sent, or replies late, is sent the whole model, too. A node that needs this again and again
    gets it less and less often: after the n-th time it is `denied` for 2^(n-1) - 1 rounds. A round then does without
    it, or sends it the model anyway if it can't.

    With "delta", the memory holds the copy, and patches of at most 16 rounds that are at most as large as the copy.
    Nodes that were not asked for longer are sent the whole model.
    """

    def __init__(self, model: ServerModel, downlink: DownlinkName) -> None:
        self._model = model
        self.keeps_state = downlink == "delta" or bool(model.frozen)
        self._copy: dict[str, Tensor] | None = None
        self._patches: deque[tuple[str, Array]] = deque()  # each with the version that it starts from
        self._version = ""
        self._nodes: dict[int, _Node] = {}
        self._round = 0
        self._lacking: set[int] = set()  # see `lacking`
        if downlink == "delta":
            self._copy = self._new_copy()
            self._version = self._sha256()

    def begin(self, server_round: int) -> None:
        """Begin a round."""
        self._round = server_round
        self._lacking = set()

    @property
    def lacking(self) -> tuple[int, ...]:
        """Ids of the nodes that lacked the model in this round, or did not say that they have it, ascending."""
        return tuple(sorted(self._lacking))

    def publish(self) -> None:
        """Make a patch that brings the nodes to the current model."""
        if self._copy is None:
            return
        target = self._model.trained_values()
        patch = make_patch(list(target.values()), [real_view(value) for value in self._copy.values()])
        before = self._version
        if patch is None:
            self._copy = self._new_copy()
            self._patches.clear()
        else:
            self._patches.append((before, to_array(torch.frombuffer(bytearray(patch), dtype=torch.uint8))))
            most = sum(value.numel() * value.element_size() for value in self._copy.values())
            while len(self._patches) > 1 and (self._size_of_patches > most or len(self._patches) > MOST_PATCHES):
                self._patches.popleft()
        self._version = self._sha256()

    def _new_copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._model.trained().items()}

    @property
    def _fixed_sha256(self) -> str:
        """SHA-256 of the fixed entries; "" if there are none."""
        return self._model.fixed_sha256 if self._model.fixed else ""

    @property
    def _size_of_patches(self) -> int:
        return sum(len(patch.data) for _, patch in self._patches)

    def _sha256(self) -> str:
        assert self._copy is not None
        return tensors_sha256(self._copy)

    def records(self, node_ids: Collection[int], arrays: ArrayRecord | None = None) -> dict[int, Records]:
        """Return the model's records for a message to each of these nodes. Equal records are one object.

        Parameters
        ----------
        arrays : ArrayRecord, optional
            The model, if the caller has it as a record already.
        """
        if not self.keeps_state:
            whole: Records = {ARRAYS: self._model.to_record() if arrays is None else arrays}
            return dict.fromkeys(node_ids, whole)
        model, names = self._model, tuple(self._model.names)
        sha256 = self._fixed_sha256
        kept = {*model.fixed, *(self._copy or ())}
        others = model.to_record([name for name in names if name not in kept])

        @cache
        def fixed() -> Records:
            return {FIXED: model.to_record(model.fixed)}

        @cache
        def trained(start: str) -> Records:
            versions, records = self._trained(start)
            parts = Parts(names=names, fixed=sha256, versions=versions)
            return {ARRAYS: others, MODEL: parts.to_record(), **records}

        found: dict[int, Records] = {}
        for node_id in node_ids:
            node = self._nodes.setdefault(node_id, _Node())
            start = self._start_of(node)
            if not self._can_go_on(node):
                self._note_whole(node)
                start = ""
            found[node_id] = {**trained(start), **(fixed() if node.fixed != sha256 else {})}
            node.expected = self._version
        return found

    def as_nodes_have_it(self) -> ArrayRecord:
        """Return the whole model that nodes compute with."""
        copy = {name: to_array(value) for name, value in (self._copy or {}).items()}
        return ArrayRecord({name: copy.get(name, array) for name, array in self._model.to_record().items()})

    def _trained(self, start: str) -> tuple[tuple[str, ...], Records]:
        """Return the versions from `start` to the newest, and the records that bring a node there.

        Without a `start`, these are all trained entries.
        """
        if self._copy is None:
            return (), {}
        if not start:
            return (self._version,), {TRAINED: ArrayRecord({name: to_array(v) for name, v in self._copy.items()})}
        versions = self._versions[self._versions.index(start) :]
        patches = list(self._patches)[len(self._patches) + 1 - len(versions) :]
        record = ArrayRecord({str(number): patch for number, (_, patch) in enumerate(patches)})
        return tuple(versions), {PATCHES: record} if patches else {}

    @property
    def _versions(self) -> list[str]:
        return [*(before for before, _ in self._patches), self._version]

    def _start_of(self, node: _Node) -> str:
        """Return the version that a node's patches start from; "" if there are none for it."""
        versions = self._versions
        if node.version not in versions:
            return ""
        behind = versions.index(node.expected) - versions.index(node.version)
        return node.version if behind <= MOST_BEHIND else ""

    def _has_fixed(self, node: _Node) -> bool:
        return not self._model.fixed or bool(node.fixed)

    def _can_go_on(self, node: _Node) -> bool:
        """Whether a node has a version that patches, and changed fixed entries, can be applied to."""
        return self._has_fixed(node) and (self._copy is None or bool(self._start_of(node)))

    def _has_lost(self, node: _Node) -> bool:
        """Whether a node needs the whole model, neither for the first time nor after a long absence."""
        was_absent = self._has_fixed(node) and bool(node.version) and node.version == node.expected
        return bool(node.whole_in) and not self._can_go_on(node) and not was_absent

    def _note_whole(self, node: _Node) -> None:
        """Record that a node is sent the whole model, and count this if it had lost it."""
        if self._has_lost(node):
            node.asked += 1
            node.free_in = self._round + 2 ** min(node.asked - 1, 30)
        node.whole_in = max(self._round, 1)
        node.version = node.fixed = ""  # until it reports that it has them

    def learn(self, node_id: int, reply: Message) -> bool:
        """Remove from a reply what it says of the model; return whether the node must be sent the whole model.

        A node that lacks the model although it was sent all of it in this round is not sent it again.
        """
        if not self.keeps_state or reply.has_error():
            return False
        node, kept = self._nodes.setdefault(node_id, _Node()), read_kept(reply)
        sha256 = self._fixed_sha256
        in_step = kept.version == node.expected if self._copy is not None else True
        node.version = kept.version if in_step and not kept.lacks else ""
        node.fixed = kept.fixed if kept.fixed == sha256 else ""
        if kept.lacks or not in_step or node.fixed != sha256:
            self._lacking.add(node_id)
        return kept.lacks and node.whole_in != self._round

    def learn_late(self, node_id: int, reply: Message) -> None:
        """Learn from a late reply, as the node may have a newer version than the server knows of."""
        if not self.keeps_state or reply.has_error() or node_id not in self._nodes:
            return
        node, kept, versions = self._nodes[node_id], read_kept(reply), self._versions
        if kept.lacks:
            return
        if self._model.fixed and kept.fixed == self._model.fixed_sha256:
            node.fixed = kept.fixed
        sent = versions[: versions.index(node.expected) + 1] if node.expected in versions else []
        newer = sent[sent.index(node.version) :] if node.version in sent else sent
        if kept.version in newer:
            node.version = kept.version

    def denied(self, node_ids: Collection[int]) -> set[int]:
        """Return the nodes among these that need the whole model and have needed it too often already."""
        if not self.keeps_state:
            return set()
        nodes = {node_id: self._nodes[node_id] for node_id in node_ids if node_id in self._nodes}
        return {node_id for node_id, node in nodes.items() if self._has_lost(node) and self._round < node.free_in}

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, which `restore` takes. Nothing is copied."""
        return {} if self._copy is None else {"copy": dict(self._copy)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the result of `state`. Nodes are sent the whole model when they are next asked.

        Raises
        ------
        ValueError
            If it is the state of another model. Other exceptions if it is something else altogether.
        """
        if self._copy is None:
            return
        copy: dict[str, Tensor] = state["copy"]
        ours = {name: (value.shape, value.dtype) for name, value in self._copy.items()}
        if {name: (value.shape, value.dtype) for name, value in copy.items()} != ours:
            raise ValueError("the copy that nodes hold belongs to another model")
        self._copy = {name: copy[name].clone() for name in self._copy}
        self._patches.clear()
        self._version = self._sha256()
        self._nodes.clear()
