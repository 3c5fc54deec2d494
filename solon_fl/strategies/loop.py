"""The loop that all strategies here share: rounds of messages out, replies in as they come, one step."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from solon_fl.config import Mode
from solon_fl.errors import CheckpointError, GroupFailedError
from solon_fl.strategies.checkpoint import Checkpoint, Checkpoints
from solon_fl.strategies.evaluation import median_metrics
from solon_fl.strategies.exchange import exchange, pull, reply_keys
from solon_fl.strategies.group import GroupReport
from solon_fl.strategies.model import OptimizerFactory, ServerModel
from solon_fl.strategies.report import RoundReport
from solon_fl.task import ARRAYS, CONFIG

__all__ = ["Aggregated", "RoundStrategy"]

METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")  # of a Result
LATE_ROUNDS = 3  # for which answers to earlier rounds are looked for
logger = logging.getLogger("flwr")


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """What a strategy made of a round's replies.

    Attributes
    ----------
    direction : Tensor or None, (d,)
        What to step with (see `ServerModel.step`); None skips the step. It may be overwritten.
    groups : tuple of GroupReport
        Who sent what.
    bytes_in : int
        Bytes of the arrays that nodes sent.
    """

    direction: Tensor | None
    groups: tuple[GroupReport, ...]
    bytes_in: int


class RoundStrategy(Strategy, ABC):
    """A Flower strategy with a loop of its own, and a torch optimizer on the server.

    Replies are handed over as they come, and dropped as soon as they are read; Flower's own `start` collects a
    round while it still holds the one before, and has no callback. Under that one, too, these strategies work.

    Subclasses say which messages go out (`_make_messages`), take replies (`_receive`) and aggregate (`_aggregate`).

    Parameters
    ----------
    optimizer, buffers, on_round, client_evaluation, checkpoints
        See `SolonStrategy`.
    """

    mode: Mode = "gradient"

    def __init__(
        self,
        optimizer: OptimizerFactory,
        *,
        buffers: Collection[str] = (),
        on_round: Callable[[RoundReport], None] | None = None,
        client_evaluation: bool = False,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._buffers = tuple(buffers)
        self._on_round = on_round
        self._client_evaluation = client_evaluation
        self._checkpoints = checkpoints
        self._reset()

    def _reset(self) -> None:
        """Forget the run."""
        self._model: ServerModel | None = None
        self._own_loop = False  # in `start`; Flower's own has no follow-ups
        self._timeout: float | None = None  # of a round; None under Flower's own start
        self._addressed: dict[Hashable, Metadata] = {}  # of the round's messages, each with a key of the subclass's
        self._unanswered: dict[str, tuple[int, int]] = {}  # round and node by message id, of the last few rounds
        self._bytes_out = 0
        self._seconds_receiving = 0.0

    # What subclasses say

    @abstractmethod
    def _make_messages(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> dict[Hashable, Message]:
        """Return the round's training messages."""

    @abstractmethod
    def _receive(self, batch: list[tuple[Hashable, Message]]) -> bool:
        """Take replies that came together, each with its message's key; return whether no more are needed."""

    @abstractmethod
    def _aggregate(self, server_round: int) -> Aggregated:
        """Aggregate what was received; no more will come."""

    def _follow_up(self, late: bool) -> dict[Hashable, Message]:
        """Return further messages of the same round; `late` as in `exchange`."""
        return {}

    def _before_first_round(self, grid: Grid, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """Prepare a run that does not go on from a checkpoint, under this class's own `start`."""

    def _after_round(self, report: RoundReport) -> None:
        """Look at the report once it is out; raise to stop the run."""

    def _label(self, node_id: int) -> str:
        """Return what the log calls a node."""
        return str(node_id)

    def _receive_late(self, node_id: int) -> None:
        """Learn that a node has answered after all, in a later round."""

    def _run(self) -> dict[str, Any]:
        """Return what must be the same in a run that goes on from a checkpoint; what json can write."""
        return {}

    def _notes(self) -> dict[str, Any]:
        """Return what else a checkpoint must hold; what json can write."""
        return {}

    def _restore(self, notes: Mapping[str, Any]) -> None:
        """Take over what `_notes` returned."""

    # The loop

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run num_rounds rounds and return the final model and all metrics.

        Parameters are those of Flower's `Strategy.start`. `timeout` is the deadline of a round in seconds: nodes that
        have not answered by then count as silent. It also bounds the wait for the nodes at the start.

        Raises
        ------
        NodesMissingError
            If fewer nodes than needed connect within the timeout.
        CheckpointError
            If there are checkpoints of which none can be used, of a round beyond num_rounds, or one can't be written.
        GroupFailedError
            If a group can't be decoded and the strategy's policy is to stop (its `result` holds all so far), or no
            node at all sends anything in the first round.
        """
        self._reset()
        self._own_loop = True
        self._timeout = timeout
        self.summary()
        result = Result(arrays=initial_arrays)
        train_config = train_config or ConfigRecord()
        evaluate_config = evaluate_config or ConfigRecord()
        stepped = 0
        rounds_done = self._resume(result, num_rounds)
        if rounds_done == 0:
            self._evaluate_centrally(0, result, evaluate_fn)
            try:
                self._before_first_round(grid, result.arrays, train_config)
            except GroupFailedError as error:
                error.result = result
                raise
        for server_round in range(rounds_done + 1, num_rounds + 1):
            logger.info("[ROUND %d/%d]", server_round, num_rounds)
            self._collect_late(server_round, grid)
            messages = self._prepare(server_round, result.arrays, train_config, grid)
            model = cast(ServerModel, self._model)
            result.arrays = ArrayRecord()  # while the nodes work, the model is in memory once
            waited, unanswered = exchange(grid, messages, timeout, self._receive_timed, self._address_follow_up)
            for message_id, key in unanswered.items():
                self._unanswered[message_id] = (server_round, self._addressed[key].dst_node_id)
            try:
                arrays, metrics = self._finish_round(server_round, waited)
            except GroupFailedError as error:
                result.arrays = model.to_record()
                error.result = result
                raise
            stepped += arrays is not None
            result.arrays = model.to_record() if arrays is None else arrays
            del arrays  # or it would be here twice in the next round
            result.train_metrics_clientapp[server_round] = metrics
            if self._client_evaluation:
                evaluated = self._evaluate_on_nodes(server_round, result.arrays, evaluate_config, grid)
                if evaluated is not None:
                    result.evaluate_metrics_clientapp[server_round] = evaluated
            self._evaluate_centrally(server_round, result, evaluate_fn)
            if self._checkpoints and (server_round % self._checkpoints.every == 0 or server_round == num_rounds):
                self._checkpoints.save(self._checkpoint(server_round, result))
        if stepped < num_rounds - rounds_done:
            failed = num_rounds - rounds_done - stepped
            logger.error("%d of %d rounds made no step: the log above says why.", failed, num_rounds - rounds_done)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the round's training messages."""
        return list(self._prepare(server_round, arrays, config, grid).values())

    def _prepare(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> dict[Hashable, Message]:
        self._model = self._model or self._new_model(arrays)
        self._seconds_receiving = 0.0
        messages = self._make_messages(server_round, arrays, config, grid)
        self._addressed, self._bytes_out = {}, 0
        self._address(messages)
        return messages

    def _new_model(self, arrays: ArrayRecord) -> ServerModel:
        return ServerModel(arrays, self._buffers, self._optimizer)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step with what the replies given amount to; None if no step was made."""
        key_of = reply_keys(self._addressed)
        by_node = {metadata.dst_node_id: key for key, metadata in self._addressed.items()}
        batch = []
        for reply in replies:
            key = key_of.get(reply.metadata.reply_to_message_id)
            if key is None and not key_of:  # a Grid that copies messages does not tell us their ids
                key = by_node.get(reply.metadata.src_node_id)
            if key is not None:
                batch.append((key, reply))
        self._receive_timed(batch)
        return self._finish_round(server_round, seconds_waiting=0.0)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message per node if `client_evaluation`, else none."""
        if not self._client_evaluation:
            return []
        settings = {**config, "server-round": server_round}
        return [
            Message(
                RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord(dict(settings))}),
                node_id,
                MessageType.EVALUATE,
                ttl=self._timeout,
                group_id=str(server_round),
            )
            for node_id in self._evaluating_nodes()
        ]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the median of every metric that more than half of the nodes reported as one finite number."""
        return median_metrics(replies, len(self._evaluating_nodes()))

    def _evaluating_nodes(self) -> list[int]:
        """Return the ids of the nodes that evaluate."""
        return []

    def _collect_late(self, server_round: int, grid: Grid) -> None:
        """See who has answered an earlier round after all; without this, such answers would stay in the grid."""
        self._unanswered = {i: v for i, v in self._unanswered.items() if server_round - v[0] <= LATE_ROUNDS}
        for message_id, reply in pull(grid, list(self._unanswered)).items():
            _, node_id = self._unanswered.pop(message_id)
            if not reply.has_error():
                self._receive_late(node_id)

    def _describe_run(self, model: ServerModel) -> dict[str, Any]:
        return {
            "strategy": type(self).__name__,
            **self._run(),
            "model": {name: [list(shape), str(dtype)] for name, (shape, dtype) in model.layout.items()},
            "buffers": list(model.buffers),
            **{f"optimizer.{name}": value for name, value in model.optimizer_settings.items()},
        }

    def _checkpoint(self, server_round: int, result: Result) -> Checkpoint:
        model = cast(ServerModel, self._model)
        metrics = {name: {number: dict(record) for number, record in getattr(result, name).items()} for name in METRICS}
        return Checkpoint(
            round=server_round,
            run=self._describe_run(model),
            notes={"metrics": metrics, **self._notes()},
            tensors=model.state(),
        )

    def _resume(self, result: Result, num_rounds: int) -> int:
        """Take over the newest checkpoint and return its round; 0 if there is none."""
        if self._checkpoints is None:
            return 0
        model = self._new_model(result.arrays)
        checkpoint = self._checkpoints.load(self._describe_run(model))
        if checkpoint is None:
            return 0
        if checkpoint.round > num_rounds:
            raise CheckpointError(
                f"the run in {self._checkpoints.folder} has come to round {checkpoint.round}, beyond "
                f"num_rounds={num_rounds}; give more rounds, or another folder to start anew."
            )
        model.restore(checkpoint.tensors)
        self._model = model
        result.arrays = model.to_record()
        for name, records in checkpoint.notes["metrics"].items():
            getattr(result, name).update({int(number): MetricRecord(record) for number, record in records.items()})
        self._restore(checkpoint.notes)
        return checkpoint.round

    def _address_follow_up(self, late: bool) -> dict[Hashable, Message]:
        messages = self._follow_up(late)
        self._address(messages)
        return messages

    def _address(self, messages: Mapping[Hashable, Message]) -> None:
        """Note who gets what, and how many bytes of model that makes."""
        self._addressed |= {key: message.metadata for key, message in messages.items()}
        for message in messages.values():
            models = [record for record in message.content.values() if isinstance(record, ArrayRecord)]
            self._bytes_out += sum(len(array.data) for model in models for array in model.values())

    def _receive_timed(self, batch: list[tuple[Hashable, Message]]) -> bool:
        started = time.monotonic()
        enough = self._receive(batch)
        self._seconds_receiving += time.monotonic() - started
        return enough

    def _finish_round(self, server_round: int, seconds_waiting: float) -> tuple[ArrayRecord | None, MetricRecord]:
        """Aggregate, step, report; None if no step was made."""
        model = self._model
        if model is None:
            raise RuntimeError("aggregate_train was called before configure_train")
        started = time.monotonic()
        aggregated = self._aggregate(server_round)
        self._addressed = {}
        aggregated_at = time.monotonic()
        arrays = None
        if aggregated.direction is not None:
            model.step(aggregated.direction, self.mode)
            arrays = model.to_record()
        report = RoundReport(
            round=server_round,
            groups=aggregated.groups,
            stepped=arrays is not None,
            bytes_out=self._bytes_out,
            bytes_in=aggregated.bytes_in,
            seconds_waiting=seconds_waiting,
            seconds_aggregating=self._seconds_receiving + aggregated_at - started,
            seconds_stepping=time.monotonic() - aggregated_at,
        )
        if server_round == 1 and report.bytes_in == 0:
            reasons = [reason for group in report.groups for reason in group.malformed_nodes.values()]
            raise GroupFailedError(
                "no node sent anything usable in the first round, so there is nothing to train with; "
                f"the first node's reason: {reasons[0] if reasons else 'none answered within the timeout'}"
            )
        if report.corrupt_nodes:
            labels = ", ".join(map(self._label, report.corrupt_nodes))
            logger.info("\tround %d: nodes caught lying: %s", server_round, labels)
        if self._on_round is not None:
            self._on_round(report)
        self._after_round(report)
        return arrays, report.to_metrics()

    def _evaluate_on_nodes(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> MetricRecord | None:
        messages = dict(enumerate(self.configure_evaluate(server_round, arrays, config, grid)))
        replies: list[Message] = []

        def receive(batch: list[tuple[int, Message]]) -> bool:
            replies.extend(reply for _, reply in batch)
            return False

        exchange(grid, messages, self._timeout, receive)
        return self.aggregate_evaluate(server_round, replies)

    def _evaluate_centrally(
        self,
        server_round: int,
        result: Result,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None,
    ) -> None:
        metrics = evaluate_fn(server_round, result.arrays) if evaluate_fn else None
        if metrics is not None:
            logger.info("\tround %d: %s", server_round, dict(metrics))
            result.evaluate_metrics_serverapp[server_round] = metrics
