"""The Flower strategy."""

import logging
import time
from collections.abc import Callable, Collection, Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from solon_fl.config import SolonConfig
from solon_fl.errors import GroupFailedError
from solon_fl.strategies.evaluation import median_metrics
from solon_fl.strategies.exchange import exchange, reply_keys
from solon_fl.strategies.group import GroupReport, GroupRound
from solon_fl.strategies.model import OptimizerFactory, ServerModel
from solon_fl.strategies.nodes import Groups, assign_groups
from solon_fl.strategies.report import RoundReport
from solon_fl.task import ARRAYS, CONFIG, TASK, SolonTask

__all__ = ["SolonStrategy"]

Place = tuple[int, int]  # group, slot
logger = logging.getLogger("flwr")


class SolonStrategy(Strategy):
    """Trains with the exact gradients of groups of nodes, of which up to s each may lie.

    Parameters
    ----------
    config : SolonConfig
        The run.
    optimizer : callable
        Makes the server's torch optimizer of a list of parameters; any of `torch.optim`, for instance
        ``functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)``. In mode "update" it is given minus the
        average change as a gradient: SGD with lr=1 adds the change as it is.
    buffers : collection of str
        Entries of the model that no gradient moves, from `buffer_names(model)`: BatchNorm's statistics and
        frozen weights. Nodes send their change, coded like the gradient, and the average is added.
    on_round : callable, optional
        Called with a `RoundReport` after every round.
    client_evaluation : bool
        Whether to ask the nodes to evaluate too. Their metrics are aggregated by the median, but nothing protects a
        median from a lying majority, or from nodes whose data differ: prefer `evaluate_fn`.
    projection_seed : int, optional
        Makes the decoder's random projection reproducible, for simulation only: a node that knew it
        could hide a lie. Default: fresh entropy in every decode.

    Notes
    -----
    Guarantee: as long as each group has at most s liars and e silent nodes, the parameters after every round
    are those of a run without any, up to the rounding error that `GroupReport.error_bound` bounds; a group
    for which that can't be had is reported and left to `config.on_group_failure`. Nothing that a node
    reports, but its share, has any influence.
    Memory of the server: the shares of the round, two models, and the optimizer's state.
    Differs from the paper: shares are real-Fourier coded, projections are drawn afresh, and a group is decoded as
    soon as k + s of its shares agree.

    References
    ----------
    Chen et al., "Solon", arXiv:2110.01595.
    """

    def __init__(
        self,
        config: SolonConfig,
        optimizer: OptimizerFactory,
        *,
        buffers: Collection[str] = (),
        on_round: Callable[[RoundReport], None] | None = None,
        client_evaluation: bool = False,
        projection_seed: int | None = None,
    ) -> None:
        self.config = config
        self._optimizer = optimizer
        self._buffers = tuple(buffers)
        self._on_round = on_round
        self._client_evaluation = client_evaluation
        self._projection = None if projection_seed is None else torch.Generator().manual_seed(projection_seed)
        self._reset()

    def _reset(self) -> None:
        self._model: ServerModel | None = None
        self._groups: Groups = ()
        self._timeout: float | None = None  # of a round; None under Flower's own start
        self._messages: dict[Place, Message] = {}  # of the round under way
        self._rounds: tuple[GroupRound, ...] = ()
        self._bytes_out = 0

    def summary(self) -> None:
        """Log the settings and the certificate."""
        config, code = self.config, self.config.make_code()
        logger.info("\t├──> Solon: %d groups of %d nodes", config.num_groups, config.group_size)
        logger.info("\t│\t├── Liars tolerated per group: %d", config.byzantine)
        logger.info("\t│\t├── Silent nodes tolerated per group: %d", config.stragglers)
        logger.info("\t│\t├── A share is 1/%d of the gradient", config.compression)
        logger.info("\t│\t├── Batches a node computes per round: %d", config.batches_per_group)
        logger.info("\t│\t└── Certificate (worst relative error): %.1e", code.certificate)

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
        have not answered by then are erasures. It also bounds the wait for the nodes at the start.

        Raises
        ------
        NodesMissingError
            If fewer than num_nodes nodes connect within the timeout.
        GroupFailedError
            If a group can't be decoded and config.on_group_failure is "stop" (its `result` holds all so far), or no
            node at all sends a share in the first round.
        """
        self._reset()
        self._timeout = timeout
        self.summary()
        result = Result(arrays=initial_arrays)
        train_config = train_config or ConfigRecord()
        evaluate_config = evaluate_config or ConfigRecord()
        self._evaluate_centrally(0, result, evaluate_fn)
        for server_round in range(1, num_rounds + 1):
            logger.info("[ROUND %d/%d]", server_round, num_rounds)
            messages = self.configure_train(server_round, result.arrays, train_config, grid)
            waited = exchange(grid, self._messages, timeout, self._receive)
            del messages
            try:
                arrays, metrics = self._finish_round(server_round, waited)
            except GroupFailedError as error:
                error.result = result
                raise
            if arrays is not None:
                result.arrays = arrays
            result.train_metrics_clientapp[server_round] = metrics
            if self._client_evaluation:
                evaluated = self._evaluate_on_nodes(server_round, result.arrays, evaluate_config, grid)
                if evaluated is not None:
                    result.evaluate_metrics_clientapp[server_round] = evaluated
            self._evaluate_centrally(server_round, result, evaluate_fn)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message per node: the shared model, and a config and a task of its own."""
        if self._model is None:
            self._model = ServerModel(arrays, self._buffers, self._optimizer)
        if not self._groups:
            self._groups = assign_groups(grid, self.config, self._timeout)
        model = self._model
        self._rounds = tuple(
            GroupRound(
                group=group,
                nodes=nodes,
                code=self.config.make_code(),
                dim=model.dim,
                dtype=model.vector.dtype,
                projection=self._projection,
            )
            for group, nodes in enumerate(self._groups)
        )
        self._messages = {}
        for group, nodes in enumerate(self._groups):
            for slot, node_id in enumerate(nodes):
                content = RecordDict(
                    {
                        ARRAYS: arrays,
                        CONFIG: ConfigRecord({**config, "server-round": server_round}),
                        TASK: self._task(server_round, group, slot, model).to_record(),
                    }
                )
                message = Message(content, node_id, MessageType.TRAIN, ttl=self._timeout, group_id=str(server_round))
                self._messages[group, slot] = message
        self._bytes_out = self.config.num_nodes * sum(len(array.data) for array in arrays.values())
        return list(self._messages.values())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode all groups from the replies given, average them, step; None if no step was made."""
        place_of = reply_keys(self._messages)
        by_node = {node: (g, s) for g, nodes in enumerate(self._groups) for s, node in enumerate(nodes)}
        for reply in replies:
            place = place_of.get(reply.metadata.reply_to_message_id)
            if place is None and not place_of:  # a Grid that copies messages does not tell us their ids
                place = by_node.get(reply.metadata.src_node_id)
            if place is not None:
                self._rounds[place[0]].receive(place[1], reply)
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
            for nodes in self._groups
            for node_id in nodes
        ]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the median of every metric that more than half of the nodes reported as one finite number."""
        return median_metrics(replies, self.config.num_nodes)

    def _task(self, server_round: int, group: int, slot: int, model: ServerModel) -> SolonTask:
        config = self.config
        return SolonTask(
            round=server_round,
            group=group,
            slot=slot,
            seed=config.seed,
            num_batches=config.batches_per_group,
            dim=model.dim,
            mode=config.mode,
            code=config.code,
            byzantine=config.byzantine,
            compression=config.compression,
            stragglers=config.stragglers,
            group_size=config.group_size,
            buffers=model.buffers,
        )

    def _receive(self, batch: list[tuple[Place, Message]]) -> bool:
        """Take replies that came together; return whether every group's outcome is certain."""
        for (group, slot), reply in batch:
            self._rounds[group].receive(slot, reply)
        for group_round in self._rounds:
            group_round.decode(last=False)
        return all(group_round.closed for group_round in self._rounds)

    def _finish_round(self, server_round: int, seconds_waiting: float) -> tuple[ArrayRecord | None, MetricRecord]:
        """Decode what is open, average the groups, step, report; None if no step was made."""
        model = self._model
        if model is None:
            raise RuntimeError("aggregate_train was called before configure_train")
        for group_round in self._rounds:
            group_round.decode(last=True)
        groups = tuple(_closed_report(group_round) for group_round in self._rounds)
        started = time.monotonic()
        failed = [group for group in groups if self._rounds[group.group].gradient is None]
        policy = self.config.on_group_failure
        stepped = len(failed) < len(groups) and (not failed or policy == "exclude")
        for failure in failed:
            _log_failure(failure, policy)
        arrays = None
        if stepped:
            model.step(self._average(), self.config.mode)
            arrays = model.to_record()
        report = RoundReport(
            round=server_round,
            groups=groups,
            stepped=stepped,
            bytes_out=self._bytes_out,
            bytes_in=sum(group_round.bytes_in for group_round in self._rounds),
            seconds_waiting=seconds_waiting,
            seconds_decoding=sum(group_round.seconds for group_round in self._rounds),
            seconds_stepping=time.monotonic() - started,
        )
        self._rounds, self._messages = (), {}
        if server_round == 1 and report.bytes_in == 0:
            reasons = [reason for group in groups for reason in group.malformed_nodes.values()]
            raise GroupFailedError(
                "no node sent a share in the first round, so there is nothing to train with; "
                f"the first node's reason: {reasons[0] if reasons else 'none answered within the timeout'}"
            )
        if report.corrupt_nodes:
            logger.info("\tround %d: nodes caught lying: %s", server_round, list(report.corrupt_nodes))
        if self._on_round is not None:
            self._on_round(report)
        if failed and policy == "stop":
            raise GroupFailedError(
                f"round {server_round}: groups {[group.group for group in failed]} of {len(groups)} could not be "
                "decoded and on_group_failure='stop'; the log says why."
            )
        return arrays, report.to_metrics()

    def _average(self) -> torch.Tensor:
        """Return the weighted mean of the gradients of the groups that were decoded, summed in place."""
        weights = self.config.group_weights or (1.0,) * self.config.num_groups
        total: torch.Tensor | None = None
        sum_of_weights = 0.0
        for group_round, weight in zip(self._rounds, weights, strict=True):
            if group_round.gradient is None:
                continue
            sum_of_weights += weight
            total = (
                group_round.gradient.mul_(weight) if total is None else total.add_(group_round.gradient, alpha=weight)
            )
            group_round.gradient = None
        if total is None:
            raise RuntimeError("no group was decoded")
        return total.div_(sum_of_weights)

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


def _closed_report(group_round: GroupRound) -> GroupReport:
    if group_round.report is None:
        raise RuntimeError("the group is still open")
    return group_round.report


def _log_failure(report: GroupReport, policy: str) -> None:
    reasons = "; ".join(f"node {node}: {reason}" for node, reason in list(report.malformed_nodes.items())[:3])
    logger.error(
        "Group %d failed (%s): %d silent, %d malformed%s. Either more nodes lie or are missing than configured, or "
        "the nodes of the group do not compute the same (batches must come from the task alone, not from a data "
        "loader or the global random state), or they differ by float noise above rtol. Policy: %s.",
        report.group,
        report.status,
        len(report.silent_nodes),
        len(report.malformed_nodes),
        f" ({reasons})" if reasons else "",
        policy,
    )
