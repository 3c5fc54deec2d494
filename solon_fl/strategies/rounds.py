"""The interface that a strategy of this package implements: a run and its rounds.

`RoundStrategy` (loop.py) drives both.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from solon_fl.config import DownlinkName
from solon_fl.strategies.downlink import ModelSender
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.patience import Patience
from solon_fl.strategies.reports import GroupReport, RoundReport

__all__ = ["Aggregated", "Round", "Run"]

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """The aggregate of a round's replies.

    Attributes
    ----------
    direction : Tensor or None, (d,)
        The direction to step with (see `ServerModel.step`); None skips the step. It may be overwritten.
    groups : tuple of GroupReport
        The reports of the groups.
    bytes_in : int
        Bytes of the arrays that nodes sent.
    unreached : frozenset of str
        Parameters without a gradient.
    """

    direction: Tensor | None
    groups: tuple[GroupReport, ...]
    bytes_in: int
    unreached: frozenset[str] = frozenset()


class Round(ABC, Generic[Key]):
    """One round of a strategy. Each message has a key of the round's choice, and its reply comes with that key."""

    @abstractmethod
    def messages(self, arrays: ArrayRecord) -> dict[Key, Message]:
        """Return the messages that begin the round; `arrays` is the model."""

    @abstractmethod
    def again(self, keys: Collection[Key]) -> dict[Key, Message]:
        """Return the messages of these keys again, for nodes that said that they lack the model."""

    @abstractmethod
    def receive(self, batch: list[tuple[Key, Message]]) -> bool:
        """Take replies that arrived together; return whether no more are needed. It may empty the list."""

    def follow_up(self, late: bool) -> dict[Key, Message]:
        """Return further messages of the same round; `late` as in `exchange`."""
        return {}

    def patience(self) -> float:
        """Return the seconds without enough replies after which it is late."""
        return math.inf

    @abstractmethod
    def close(self) -> Aggregated:
        """Return the aggregate of the replies; no more will come."""


class Run:
    """The state that a strategy keeps from round to round of one training run.

    Attributes
    ----------
    model : ServerModel
        The server's model.
    timeout : float or None
        Deadline of a round in seconds; None under Flower's own ``start``.
    sender : ModelSender
        Sends the model to the nodes.
    num_batches : int
        Number of batches that each node computes one after the other in a round, which the model's normalisation layers
        count; 0 if the server doesn't know.
    """

    num_batches: int = 0

    def __init__(self, model: ServerModel, timeout: float | None, downlink: DownlinkName = "full") -> None:
        self.model = model
        self.sender = ModelSender(model, downlink)
        self.timeout = timeout
        self.not_evaluating: set[int] = set()  # ids of the nodes that once sent no evaluation in time
        self.evaluation_patience = Patience()
        self.failed_evaluating: set[int] = set()  # ids of the nodes whose failed evaluation has been logged
        self.told_of_no_metrics = False

    def open_round(self, server_round: int, config: ConfigRecord, grid: Grid) -> Round[Any]:
        """Return the next round."""
        raise NotImplementedError(f"{type(self).__name__} must define open_round")

    def prepare(self, grid: Grid, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """Prepare a run that does not resume from a checkpoint. Not called under Flower's own ``start``."""

    def record(self, report: RoundReport) -> None:
        """Take note of a round's report after `on_round`; raise to stop the run."""

    def record_late(self, node_id: int) -> None:
        """Record that a node has replied in a later round."""

    def record_stall(self, node_id: int) -> None:
        """Record that a node announced a reply and never sent it."""

    def label(self, node_id: int) -> str:
        """Return the node's name in the log."""
        return str(node_id)

    def evaluating_nodes(self) -> list[int]:
        """Return the ids of the nodes that evaluate."""
        return []

    def notes(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the model, as JSON-serializable values."""
        return {}

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Take over what `notes` returned. If given anything else, raise any exception and change nothing."""
