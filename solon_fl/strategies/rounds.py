"""What a strategy of this package supplies: a run, and the rounds of it. `RoundStrategy` (loop.py) drives both."""

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
    """What a round's replies amount to.

    Attributes
    ----------
    direction : Tensor or None, (d,)
        What to step with (see `ServerModel.step`); None skips the step. It may be overwritten.
    groups : tuple of GroupReport
        Who sent what.
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
    """One round of a strategy. Each message has a key of the round's own, and its reply comes with that key."""

    @abstractmethod
    def messages(self, arrays: ArrayRecord) -> dict[Key, Message]:
        """Return the messages that begin the round; `arrays` is the model."""

    @abstractmethod
    def again(self, keys: Collection[Key]) -> dict[Key, Message]:
        """Return the messages of these keys once more, for nodes that said that they lack the model."""

    @abstractmethod
    def receive(self, batch: list[tuple[Key, Message]]) -> bool:
        """Take replies that came together, out of the list if it likes; return whether no more are needed."""

    def follow_up(self, late: bool) -> dict[Key, Message]:
        """Return further messages of the same round; `late` as in `exchange`."""
        return {}

    def patience(self) -> float:
        """Return after how many seconds without enough replies it is late."""
        return math.inf

    @abstractmethod
    def close(self) -> Aggregated:
        """Return what was received amounts to; no more will come."""


class Run:
    """What a strategy keeps from round to round of one training run.

    Attributes
    ----------
    model : ServerModel
        The server's.
    timeout : float or None
        Of a round, seconds; None under Flower's own `start`.
    sender : ModelSender
        Brings the model to the nodes.
    num_batches : int
        That each node computes in a round one after the other, which the model's normalisation layers count; 0 if the
        server doesn't know.
    """

    num_batches: int = 0

    def __init__(self, model: ServerModel, timeout: float | None, downlink: DownlinkName = "full") -> None:
        self.model = model
        self.sender = ModelSender(model, downlink)
        self.timeout = timeout
        self.not_evaluating: set[int] = set()  # ids of the nodes that once sent no evaluation, or not in time
        self.evaluation_patience = Patience()
        self.failed_evaluating: set[int] = set()  # ids of the nodes of which the log has said so
        self.told_of_no_metrics = False

    def open_round(self, server_round: int, config: ConfigRecord, grid: Grid) -> Round[Any]:
        """Return the next round."""
        raise NotImplementedError(f"{type(self).__name__} must define open_round")

    def prepare(self, grid: Grid, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """Prepare a run that does not go on from a checkpoint. Not called under Flower's own `start`."""

    def record(self, report: RoundReport) -> None:
        """Look at the report once it is out; raise to stop the run."""

    def record_late(self, node_id: int) -> None:
        """Learn that a node has answered after all, in a later round."""

    def record_stall(self, node_id: int) -> None:
        """Learn that a node announced an answer and never sent it."""

    def label(self, node_id: int) -> str:
        """Return what the log calls a node."""
        return str(node_id)

    def evaluating_nodes(self) -> list[int]:
        """Return the ids of the nodes that evaluate."""
        return []

    def notes(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the model; what json can write."""
        return {}

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Take over what `notes` returned; if it was something else, raise, whatever it is, and change nothing."""
