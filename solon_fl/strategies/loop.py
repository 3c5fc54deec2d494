"""The training loop that all strategies here share.

A `Round` (rounds.py) supplies the messages and aggregates the replies, and a `Run` holds a strategy's state from round
to round. `RoundStrategy` drives them in its own ``start`` or in Flower's.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from typing import Any, Generic, TypeVar, get_args

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from solon_fl.checks import check_one_of, check_timeout, check_whole
from solon_fl.coding import Code
from solon_fl.config import DownlinkName, Mode
from solon_fl.errors import CheckpointError, GroupFailedError
from solon_fl.strategies.checkpoint import Checkpoint, Checkpoints
from solon_fl.strategies.evaluating import Evaluate, evaluate_centrally, evaluations, warn_of_failed_evaluations
from solon_fl.strategies.exchange import exchange
from solon_fl.strategies.factories import OptimizerFactory, SchedulerFactory, check_factories
from solon_fl.strategies.failing import refuse_silence_at_the_start
from solon_fl.strategies.late import collect_late
from solon_fl.strategies.ledger import NodeRecord
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.monitors import Monitor, Monitors, RunStatus
from solon_fl.strategies.open_round import OpenRound
from solon_fl.strategies.replies import median_metrics
from solon_fl.strategies.reports import RoundReport
from solon_fl.strategies.rounds import Run
from solon_fl.task import CONFIG, time_to_live
from solon_fl.wire import BufferNames

__all__ = ["RoundStrategy"]

METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")  # fields of Result
logger = logging.getLogger("flwr")


RunType = TypeVar("RunType", bound=Run)


class RoundStrategy(Strategy, ABC, Generic[RunType]):
    """A Flower strategy with its own training loop and a torch optimizer on the server.

    Its ``start`` handles replies as they arrive and frees each one once it is read. Flower's own ``start`` collects all
    replies of a round while it still holds those of the previous one, and has no callback. These strategies work under
    it, too.

    Parameters
    ----------
    optimizer, scheduler, buffers, on_round, monitors, client_evaluation, checkpoints
        See `SolonStrategy`.
    downlink
        See `SolonConfig`.
    """

    mode: Mode = "gradient"
    decoded_from: Code | None = None  # the code that directions are decoded from

    def __init__(
        self,
        optimizer: OptimizerFactory,
        *,
        scheduler: SchedulerFactory | None = None,
        buffers: Collection[str] = (),
        on_round: Callable[[RoundReport], object] | None = None,
        monitors: Monitor | Iterable[Monitor] = (),
        client_evaluation: bool = False,
        checkpoints: Checkpoints | None = None,
        downlink: DownlinkName = "full",
    ) -> None:
        check_one_of("downlink", downlink, get_args(DownlinkName))
        check_factories(optimizer, scheduler)
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._buffers = BufferNames.of(buffers)
        self._on_round = on_round
        self._monitors = Monitors(monitors)
        self._client_evaluation = client_evaluation
        self._checkpoints = checkpoints
        self._downlink: DownlinkName = downlink
        self._latest: RunType | None = None
        self._open: OpenRound[Any] | None = None  # between configure_train and aggregate_train
        self._stop = False  # whether on_round has returned True
        self._handed_out: dict[str, bytes] = {}  # the model's data, as last given to or by Flower's loop

    # Supplied by subclasses

    @abstractmethod
    def begin(self, model: ServerModel, timeout: float | None, *, follows_up: bool) -> RunType:
        """Return a new run. Without `follows_up`, as in Flower's own ``start``, rounds can't send further messages."""

    @property
    def ledger(self) -> dict[str, NodeRecord]:
        """What the server knows of each node, by its identity; empty for strategies without a ledger."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return the settings that must not differ in a run that resumes, as JSON-serializable values."""
        return {}

    # Our own loop

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float | None = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:
        """Train for `num_rounds` rounds, and return the final model and all metrics.

        The parameters are those of Flower's ``Strategy.start``. `timeout` is the deadline of each round in seconds:
        nodes that have not replied by then count as silent. It also bounds the wait for the nodes to connect. None
        means no deadline.

        Raises
        ------
        ConfigurationError
            If `timeout` or `num_rounds` is invalid, or the model and the optimizer don't fit together.
        NodesMissingError
            If fewer nodes than needed connect within the timeout.
        CheckpointError
            If there are checkpoints but none can be used, or the newest is beyond `num_rounds`. If a checkpoint could
            not be read again. If another run uses the folder, or it can't be written to when the run begins.
        GroupFailedError
            If a group can't be decoded and the strategy's policy is to stop. If no node sends anything in the first
            round, or no group can be decoded in it and none can be expected to be later. The attribute ``result`` has
            everything up to then.
        """
        num_rounds, timeout = check_whole("num_rounds", num_rounds, 0), check_timeout(timeout)
        locked = nullcontext() if self._checkpoints is None else self._checkpoints.locked()
        with locked, self._monitors.watching():
            self.summary()
            return self._start(
                *(grid, initial_arrays, num_rounds, timeout, train_config or ConfigRecord()),
                *(evaluate_config or ConfigRecord(), evaluate_fn),
            )

    def _start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int,
        timeout: float | None,
        train_config: ConfigRecord,
        evaluate_config: ConfigRecord,
        evaluate_fn: Evaluate | None,
    ) -> Result:
        result = Result(arrays=initial_arrays)
        run = self._latest = self.begin(self._new_model(initial_arrays), timeout, follows_up=True)
        rounds_done = self._resume(run, result, num_rounds)
        first, self._stop = rounds_done + 1, False
        try:
            if rounds_done == 0:
                evaluate_centrally(0, result, evaluate_fn)
                run.prepare(grid, result.arrays, train_config)
            unanswered: dict[str, tuple[int, int]] = {}  # round and node of the last rounds' messages, by message id
            stepped = 0
            for server_round in range(first, num_rounds + 1):
                logger.info("[ROUND %d/%d]", server_round, num_rounds)
                unanswered = collect_late(server_round, grid, run, unanswered)
                report = self._play(run, server_round, result, grid, train_config, unanswered)
                stepped += report.stepped
                last = server_round == num_rounds or self._stop
                rounds_done = server_round
                if self._client_evaluation:
                    self._evaluate_on_nodes(run, server_round, result, grid, evaluate_config)
                evaluate_centrally(server_round, result, evaluate_fn)
                self._tell_monitors(
                    report,
                    num_rounds=num_rounds,
                    ended=last,
                    training=result.train_metrics_clientapp,
                    evaluation=result.evaluate_metrics_serverapp,
                    node_evaluation=result.evaluate_metrics_clientapp,
                )
                if self._checkpoints and (server_round % self._checkpoints.every == 0 or last):
                    self._checkpoints.save_if_possible(self._checkpoint(run, server_round, result))
                if last and server_round < num_rounds:
                    logger.info("Stopped after round %d of %d: on_round returned True.", server_round, num_rounds)
                    break
        except GroupFailedError as error:
            if not result.arrays:  # the round had not ended: see `_play`
                result.arrays = run.model.to_record()
            error.result = result
            raise
        if (failed := rounds_done - first + 1 - stepped) > 0:
            logger.error("%d of %d rounds made no step: see the log above.", failed, rounds_done - first + 1)
        return result

    def _play(
        self,
        run: RunType,
        server_round: int,
        result: Result,
        grid: Grid,
        config: ConfigRecord,
        unanswered: dict[str, tuple[int, int]],
    ) -> RoundReport:
        """Play one round, and put the model and its metrics into the result."""
        opened = self._opened(run, server_round, config, grid, result.arrays)
        result.arrays = ArrayRecord()  # hold the model in memory only once while the nodes work
        waited, open_messages = exchange(
            grid, opened.first_messages, run.timeout, opened.receive, opened.follow_up, opened.patience
        )
        for message_id, key in open_messages.items():
            unanswered[message_id] = (server_round, opened.addressed[key].dst_node_id)
        report, arrays = self._finish(run, opened, waited)
        result.arrays = run.model.to_record() if arrays is None else arrays
        result.train_metrics_clientapp[server_round] = report.to_metrics()
        return report

    def _opened(
        self, run: RunType, server_round: int, config: ConfigRecord, grid: Grid, arrays: ArrayRecord
    ) -> OpenRound[Any]:
        run.sender.begin(server_round)
        return OpenRound(server_round, run.open_round(server_round, config, grid), arrays, run.sender)

    def _finish(
        self, run: RunType, opened: OpenRound[Any], seconds_waiting: float
    ) -> tuple[RoundReport, ArrayRecord | None]:
        """Aggregate, step and report; return the report, and the model if a step was made."""
        started = time.monotonic()
        aggregated = opened.close()
        aggregated_at = time.monotonic()
        arrays = None
        if aggregated.direction is not None:
            run.model.step(aggregated.direction, self.mode, run.num_batches, aggregated.unreached)
            run.sender.publish()
            arrays = run.model.to_record()
        report = RoundReport(
            round=opened.number,
            groups=aggregated.groups,
            stepped=arrays is not None,
            bytes_out=opened.bytes_out,
            bytes_in=aggregated.bytes_in,
            lacking_nodes=run.sender.lacking,
            seconds_waiting=seconds_waiting,
            seconds_aggregating=opened.seconds_receiving + aggregated_at - started,
            seconds_stepping=time.monotonic() - aggregated_at,
        )
        refuse_silence_at_the_start(report, in_parts=run.sender.keeps_state)
        if report.corrupt_nodes:
            labels = ", ".join(map(run.label, report.corrupt_nodes))
            logger.info("\tround %d: nodes caught lying: %s", report.round, labels)
        if report.different_nodes:
            labels = ", ".join(map(run.label, report.different_nodes))
            logger.info("\tround %d: nodes that sent different bits than their groups: %s", report.round, labels)
        if self._on_round is not None:
            answer = self._on_round(report)
            self._stop = isinstance(answer, (bool, np.bool_, Tensor)) and bool(answer)
        run.record(report)
        return report, arrays

    def _tell_monitors(self, report: RoundReport, **known: Any) -> None:
        if self._monitors:
            self._monitors.tell(RunStatus(report=report, ledger=self.ledger, settings=self.settings(), **known))

    def _evaluate_on_nodes(
        self, run: RunType, server_round: int, result: Result, grid: Grid, config: ConfigRecord
    ) -> None:
        messages = {
            m.metadata.dst_node_id: m for m in self.configure_evaluate(server_round, result.arrays, config, grid)
        }
        metrics = self.aggregate_evaluate(server_round, evaluations(run, messages, grid))
        if metrics is not None:
            result.evaluate_metrics_clientapp[server_round] = metrics

    # Flower's loop

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the round's training messages.

        Round 1 begins a new run. Changes that a strategy around this one has made to the model since the previous round
        are taken over.
        """
        if self._latest is None or server_round == 1:
            self._latest = self.begin(self._new_model(arrays), None, follows_up=False)
        elif changed := self._latest.model.take_over(arrays, self._handed_out):
            logger.info("\tround %d: the model was changed since the previous round: %s", server_round, changed[:5])
            self._latest.sender.publish()
        self._handed_out = {name: array.data for name, array in arrays.items()}
        self._open = self._opened(self._latest, server_round, config, grid, arrays)
        return list(self._open.first_messages.values())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the replies, make a step, and return the model and the metrics; no model if no step was made."""
        if self._open is None:
            raise RuntimeError("aggregate_train was called before configure_train")
        opened, self._open = self._open, None
        opened.receive(opened.keyed(replies))
        report, arrays = self._finish(self._run(), opened, seconds_waiting=0.0)
        if arrays is not None:
            self._handed_out = {name: array.data for name, array in arrays.items()}
        metrics = report.to_metrics()
        self._tell_monitors(report, training={server_round: metrics})
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message per node that may be sent the model; none without `client_evaluation`."""
        if not self._client_evaluation:
            return []
        run = self._run()
        settings = {**config, "server-round": server_round}
        nodes = run.evaluating_nodes()
        denied = run.sender.denied(nodes)
        return [
            Message(
                RecordDict({**records, CONFIG: ConfigRecord(dict(settings))}),
                node_id,
                MessageType.EVALUATE,
                ttl=time_to_live(run.timeout),
                group_id=str(server_round),
            )
            for node_id, records in run.sender.records([n for n in nodes if n not in denied], arrays).items()
        ]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the median of every metric that more than half of the nodes reported as one finite number."""
        run, replies = self._run(), list(replies)
        metrics = median_metrics(replies, len(run.evaluating_nodes()))
        warn_of_failed_evaluations(run, replies, metrics)
        return metrics

    def _run(self) -> RunType:
        if self._latest is None:
            raise RuntimeError("the run has not begun: call start or configure_train")
        return self._latest

    def _new_model(self, arrays: ArrayRecord) -> ServerModel:
        return ServerModel(*(arrays, self._buffers, self._optimizer, self._scheduler), code=self.decoded_from)

    # Checkpoints

    def _describe(self, model: ServerModel) -> dict[str, Any]:
        return {
            "strategy": type(self).__name__,
            **self.settings(),
            "model": {name: [list(shape), str(dtype)] for name, (shape, dtype) in model.layout.items()},
            "buffers": list(model.buffers),
            **({"frozen": model.frozen_sha256} if model.frozen else {}),
            **{f"optimizer.{name}": value for name, value in model.optimizer_settings.items()},
        }

    def _checkpoint(self, run: RunType, server_round: int, result: Result) -> Checkpoint:
        metrics = {name: {number: dict(record) for number, record in getattr(result, name).items()} for name in METRICS}
        return Checkpoint(
            round=server_round,
            run=self._describe(run.model),
            notes={"metrics": metrics, **run.notes()},
            tensors={**run.model.state(), **run.sender.state()},
        )

    def _resume(self, run: RunType, result: Result, num_rounds: int) -> int:
        """Take over the newest checkpoint and return its round; 0 if there is none."""
        if self._checkpoints is None:
            return 0

        def take_over(checkpoint: Checkpoint) -> None:
            noted = checkpoint.notes["metrics"]
            metrics = {name: {int(n): MetricRecord(record) for n, record in noted[name].items()} for name in METRICS}
            run.model.restore(checkpoint.tensors)
            run.sender.restore(checkpoint.tensors)
            run.restore(checkpoint.notes)
            for name, records in metrics.items():
                getattr(result, name).update(records)

        checkpoint = self._checkpoints.load(self._describe(run.model), take_over)
        if checkpoint is None:
            return 0
        if checkpoint.round > num_rounds:
            raise CheckpointError(
                f"the run in {self._checkpoints.folder} has reached round {checkpoint.round}, beyond "
                f"num_rounds={num_rounds}; give more rounds, or another folder to start anew."
            )
        result.arrays = run.model.to_record()
        return checkpoint.round
