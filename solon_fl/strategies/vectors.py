"""What strategies without coded groups share: numbered nodes, each of which sends the same arrays."""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from solon_fl.errors import ConfigurationError, InvalidReplyError
from solon_fl.strategies.group import GroupReport, one_line
from solon_fl.strategies.loop import Aggregated, RoundStrategy
from solon_fl.strategies.model import OptimizerFactory, ServerModel
from solon_fl.strategies.nodes import wait_for_nodes
from solon_fl.strategies.report import RoundReport
from solon_fl.task import ARRAYS, CONFIG
from solon_fl.wire import untrusted_tensor

__all__ = ["Layout", "VectorStrategy", "Verdict"]

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # of each array that a node sends, by name
Verdict = tuple[Tensor | None, tuple[int, ...]]  # the direction, (d,), and the numbers of the nodes held to lie
logger = logging.getLogger("flwr")


class VectorStrategy(RoundStrategy):
    """Nodes numbered 0 to P - 1 send arrays of a known layout; subclasses combine them.

    Their order is that of registered names, then of Flower's ids. Whatever else a node sends, it counts as having sent
    nothing, and is logged and reported.

    Parameters
    ----------
    num_nodes : int
        P, nodes in the run.
    optimizer, buffers, on_round
        See `SolonStrategy`.
    """

    def __init__(
        self,
        num_nodes: int,
        optimizer: OptimizerFactory,
        *,
        buffers: Collection[str] = (),
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> None:
        if num_nodes < 1:
            raise ConfigurationError(f"num_nodes must be at least 1; got num_nodes={num_nodes}.")
        self.num_nodes = num_nodes
        super().__init__(optimizer, buffers=buffers, on_round=on_round)

    def _reset(self) -> None:
        super()._reset()
        self._nodes: list[int] = []
        self._sent: dict[int, dict[str, Tensor]] = {}
        self._malformed: dict[int, str] = {}

    # What subclasses say

    @abstractmethod
    def _layout(self, model: ServerModel) -> tuple[str, Layout]:
        """Return the name of the record in a reply, and its arrays."""

    @abstractmethod
    def _combine(self, sent: Mapping[int, dict[str, Tensor]], model: ServerModel) -> Verdict:
        """Return what the arrays of the nodes that sent some amount to. They must not be written to."""

    def _task(self, server_round: int, number: int, model: ServerModel) -> dict[str, ConfigRecord]:
        """Return what node `number` is told beside model and config."""
        return {}

    # The round

    def _make_messages(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> dict[Hashable, Message]:
        if not self._nodes:
            nodes = wait_for_nodes(grid, self.num_nodes, self._timeout)
            self._nodes = [node.node_id for node in nodes[: self.num_nodes]]
        model = cast(ServerModel, self._model)
        self._sent, self._malformed = {}, {}
        messages: dict[Hashable, Message] = {}
        for number, node_id in enumerate(self._nodes):
            settings = ConfigRecord({**config, "server-round": server_round})
            content = RecordDict({ARRAYS: arrays, CONFIG: settings, **self._task(server_round, number, model)})
            messages[number] = Message(
                content, node_id, MessageType.TRAIN, ttl=self._timeout, group_id=str(server_round)
            )
        return messages

    def _receive(self, batch: list[tuple[Hashable, Message]]) -> bool:
        name, layout = self._layout(cast(ServerModel, self._model))
        for key, reply in batch:
            number = cast(int, key)
            if number in self._sent or number in self._malformed:
                continue  # the first reply counts
            try:
                self._sent[number] = read_arrays(reply, name, layout)
            except Exception as error:  # InvalidReplyError, or whatever a hostile record makes Flower raise
                self._malformed[number] = one_line(str(error)) or type(error).__name__
                logger.warning("Node %d: unusable: %s", self._nodes[number], self._malformed[number])
        return len(self._sent) + len(self._malformed) == self.num_nodes

    def _aggregate(self, server_round: int) -> Aggregated:
        sent, self._sent = self._sent, {}
        direction, liars = self._combine(sent, cast(ServerModel, self._model)) if sent else (None, ())
        status = "undecodable" if direction is None else "corrected" if liars else "clean"
        report = GroupReport(
            group=0,
            nodes=tuple(self._nodes),
            status=status,
            corrupt_nodes=tuple(self._nodes[number] for number in liars if number in sent),
            silent_nodes=tuple(
                node_id for number, node_id in enumerate(self._nodes) if number not in {*sent, *self._malformed}
            ),
            malformed_nodes={self._nodes[number]: reason for number, reason in self._malformed.items()},
            residual=0.0,
            tolerance=math.inf,
            error_bound=math.inf,
        )
        bytes_in = sum(tensor.numel() * tensor.element_size() for arrays in sent.values() for tensor in arrays.values())
        return Aggregated(direction=direction, groups=(report,), bytes_in=bytes_in)


def read_arrays(reply: Message, name: str, layout: Layout) -> dict[str, Tensor]:
    """Return the arrays of the record `name` of a reply, on the message's own bytes.

    Raises
    ------
    InvalidReplyError
        If the reply holds anything else: an error, other records or arrays, other shapes, dtypes or sizes, or
        numbers that are not finite.
    """
    if reply.has_error():
        raise InvalidReplyError(f"error {reply.error.code}: {reply.error.reason}")
    record = reply.content.get(name)
    if not isinstance(record, ArrayRecord) or list(record) != list(layout):
        raise InvalidReplyError(f"expected an ArrayRecord {name!r} with the arrays {list(layout)[:5]}")
    arrays = {key: untrusted_tensor(record[key], shape, dtype) for key, (shape, dtype) in layout.items()}
    for key, tensor in arrays.items():
        if tensor.is_floating_point() and not tensor.sum().isfinite():  # a sum is not finite if an entry is not
            raise InvalidReplyError(f"the array {key!r} holds NaN or inf, or numbers too large to add up")
    return arrays
