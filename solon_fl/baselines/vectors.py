"""The base of the baselines' strategies: numbered nodes without coded groups, which all send arrays of one layout."""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import partial

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from solon_fl.checks import check_whole
from solon_fl.config import DownlinkName
from solon_fl.strategies.factories import OptimizerFactory
from solon_fl.strategies.loop import RoundStrategy
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.presence import wait_for_nodes
from solon_fl.strategies.replies import Layout, Unusable, read, read_arrays
from solon_fl.strategies.reports import GroupReport, RoundReport
from solon_fl.strategies.rounds import Aggregated, Round, Run
from solon_fl.task import CONFIG, time_to_live

__all__ = ["Layout", "VectorStrategy", "Verdict"]

Verdict = tuple[Tensor | None, tuple[int, ...]]  # the direction, (d,), and the numbers of the nodes found to lie
Sent = Mapping[int, dict[str, Tensor]]  # the arrays of each node, by its number
logger = logging.getLogger("flwr")


class VectorStrategy(RoundStrategy["VectorRun"]):
    """A strategy whose nodes, numbered 0 to P - 1, send arrays of a known layout; subclasses combine them.

    Nodes are ordered by registered name, then by Flower's id. Any other reply counts as missing, and is logged and
    reported.

    Parameters
    ----------
    num_nodes : int
        P, the number of nodes in the run.
    optimizer, buffers, on_round
        See `SolonStrategy`.
    downlink
        See `SolonConfig`.

    Attributes
    ----------
    num_batches : int
        See `Run`. It is 0 unless a subclass sets it; a BatchNorm with ``momentum=None`` then has no count of batches.
    """

    num_batches: int = 0

    def __init__(
        self,
        num_nodes: int,
        optimizer: OptimizerFactory,
        *,
        buffers: Collection[str] = (),
        on_round: Callable[[RoundReport], object] | None = None,
        downlink: DownlinkName = "full",
    ) -> None:
        check_whole("num_nodes", num_nodes, 1)
        self.num_nodes = num_nodes
        super().__init__(optimizer, buffers=buffers, on_round=on_round, downlink=downlink)

    @abstractmethod
    def layout(self, model: ServerModel) -> tuple[str, Layout]:
        """Return the name of the record in a reply, and the layout of its arrays."""

    @abstractmethod
    def combine(self, sent: Sent, model: ServerModel) -> Verdict:
        """Combine the arrays of the nodes that sent valid ones. The arrays must not be written to."""

    def task(self, server_round: int, number: int, model: ServerModel) -> dict[str, ConfigRecord]:
        """Return the records that node `number` gets in addition to the model and the config."""
        return {}

    def begin(self, model: ServerModel, timeout: float | None, *, follows_up: bool) -> "VectorRun":
        """See `RoundStrategy.begin`."""
        return VectorRun(self, model, timeout, self._downlink)


class VectorRun(Run):
    """A run whose nodes are those that were present when it started."""

    def __init__(
        self, strategy: VectorStrategy, model: ServerModel, timeout: float | None, downlink: DownlinkName
    ) -> None:
        super().__init__(model, timeout, downlink)
        self.num_batches = strategy.num_batches
        self.strategy = strategy
        self._nodes: list[int] = []  # Flower's ids, by number

    def open_round(self, server_round: int, config: ConfigRecord, grid: Grid) -> "VectorRound":
        """See `Run.open_round`; the first call waits for the nodes."""
        if not self._nodes:
            found = wait_for_nodes(grid, self.strategy.num_nodes, self.timeout)
            self._nodes = [node.node_id for node in found[: self.strategy.num_nodes]]
        return VectorRound(self, server_round, config, self._nodes)


class VectorRound(Round[int]):
    """One round; messages are numbered by node."""

    def __init__(self, run: VectorRun, server_round: int, config: ConfigRecord, nodes: list[int]) -> None:
        self._run = run
        self._round = server_round
        self._config = config
        self._nodes = nodes
        name, layout = run.strategy.layout(run.model)
        self._reader = partial(read_arrays, name=name, layout=layout)
        self._sent: dict[int, dict[str, Tensor]] = {}
        self._malformed: dict[int, str] = {}
        self._gone: set[int] = set()  # numbers of nodes that could not be reached in time

    def messages(self, arrays: ArrayRecord) -> dict[int, Message]:
        """See `Round.messages`."""
        return self._messages(range(len(self._nodes)), arrays)

    def again(self, keys: Collection[int]) -> dict[int, Message]:
        """See `Round.again`."""
        return self._messages(keys)

    def _messages(self, numbers: Collection[int], arrays: ArrayRecord | None = None) -> dict[int, Message]:
        run, messages = self._run, {}
        models = run.sender.records([self._nodes[number] for number in numbers], arrays)
        for number in numbers:
            node_id = self._nodes[number]
            settings = ConfigRecord({**self._config, "server-round": self._round})
            task = run.strategy.task(self._round, number, run.model)
            content = RecordDict({**models[node_id], CONFIG: settings, **task})
            messages[number] = Message(
                content, node_id, MessageType.TRAIN, ttl=time_to_live(run.timeout), group_id=str(self._round)
            )
        return messages

    def receive(self, batch: list[tuple[int, Message]]) -> bool:
        """See `Round.receive`; only the first reply of a node counts."""
        for number, reply in batch:
            if number in self._sent or number in self._malformed or number in self._gone:
                continue
            found = read(reply, self._reader)
            if isinstance(found, Unusable) and found.silence:
                self._gone.add(number)
            elif isinstance(found, Unusable):
                self._malformed[number] = found.reason
                logger.warning("Node %d: its reply can't be used: %s", self._nodes[number], found.reason)
            else:
                self._sent[number] = found
        return len(self._sent) + len(self._malformed) + len(self._gone) == len(self._nodes)

    def close(self) -> Aggregated:
        """See `Round.close`."""
        sent, self._sent = self._sent, {}
        run = self._run
        direction, liars = run.strategy.combine(sent, run.model) if sent else (None, ())
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
