"""Strategies for aggregators of whole gradients: Flower's own, and any function of the nodes' gradients."""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from solon_fl.baselines.garbage import quick_collections
from solon_fl.baselines.vectors import Layout, VectorStrategy, Verdict
from solon_fl.config import DownlinkName
from solon_fl.strategies.downlink import Records
from solon_fl.strategies.factories import OptimizerFactory
from solon_fl.strategies.loop import RoundStrategy
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.replies import Unusable, is_silence, one_line, read, read_arrays
from solon_fl.strategies.reports import GroupReport, RoundReport
from solon_fl.strategies.rounds import Aggregated, Round, Run
from solon_fl.task import ARRAYS

__all__ = ["AggregatorStrategy", "GradientStrategy"]

logger = logging.getLogger("flwr")


class AggregatorStrategy(VectorStrategy):
    """Aggregates gradients with a function, and steps a torch optimizer with the result.

    Parameters
    ----------
    num_nodes : int
        P, the number of nodes in the run.
    aggregate : callable
        Takes the gradients, an (n, d) float32 or float64 tensor with one row for each node that sent a valid one, and
        returns a (d,) tensor. It may be a function of yours, the result of `ready_for`, or an object of a library,
        such as ``byzfl.Median()``.
    optimizer, buffers, on_round
        See `SolonStrategy`.
    downlink
        See `SolonConfig`.

    Notes
    -----
    Nodes send gradients as for `GradientStrategy`, so the same ClientApp serves both. Replies that are malformed or not
    finite never reach the function. They are dropped and reported, and n is smaller by their number. Several published
    aggregators return NaN if a single node sends one; here, none has to deal with NaN.

    Guarantee: that of the function. If it raises, or if its result is not finite or has the wrong length, the round is
    skipped.

    Memory: the (n, d) matrix, in addition to the replies.
    """

    def __init__(
        self,
        num_nodes: int,
        aggregate: Callable[[Tensor], Tensor],
        optimizer: OptimizerFactory,
        *,
        buffers: Collection[str] = (),
        on_round: Callable[[RoundReport], object] | None = None,
        downlink: DownlinkName = "full",
    ) -> None:
        self.aggregate = aggregate
        super().__init__(num_nodes, optimizer, buffers=buffers, on_round=on_round, downlink=downlink)

    def summary(self) -> None:
        """Log the name of the aggregator and the number of nodes."""
        name = getattr(self.aggregate, "__name__", type(self.aggregate).__name__)
        logger.info("\t├──> %s on the gradients of %d nodes", name, self.num_nodes)

    def layout(self, model: ServerModel) -> tuple[str, Layout]:
        """See `VectorStrategy.layout`."""
        return ARRAYS, model.layout

    def combine(self, sent: Mapping[int, dict[str, Tensor]], model: ServerModel) -> Verdict:
        """See `VectorStrategy.combine`."""
        vectors = torch.empty(len(sent), model.dim, dtype=model.vector.dtype, device="cpu")
        for row, number in zip(vectors, sorted(sent), strict=True):
            torch.cat([tensor.reshape(-1).to(row.dtype) for tensor in sent[number].values()], out=row)
        try:
            direction = torch.as_tensor(self.aggregate(vectors)).to(model.vector)
        except Exception as error:  # for example, because too few vectors are left
            logger.error("The aggregator failed, and the round is skipped: %s: %s", type(error).__name__, error)
            return None, ()
        if direction.shape != (model.dim,) or not direction.isfinite().all():
            logger.error(
                "The aggregator did not return a finite vector of %d numbers, and the round is skipped.", model.dim
            )
            return None, ()
        return direction, ()


class GradientStrategy(RoundStrategy["InnerRun"]):
    """Aggregates gradients with another strategy, and steps a torch optimizer with the result.

    Flower's strategies replace the model with the aggregate. Here, nodes send gradients, `inner` aggregates them, and
    the optimizer steps as in `SolonStrategy`. All differences in a comparison thus come from the aggregation. Krum's
    distances are meant for gradients, too. A gradient is an ArrayRecord with the model's floating-point entries, and a
    buffer's change at the buffer's place.

    Parameters
    ----------
    inner : Strategy
        For example ``flwr.serverapp.strategy.MultiKrum(...)``. It does everything except the step.
    for_present : callable, optional
        Takes the number n of vectors that arrived and returns the strategy that aggregates them instead of `inner`. It
        can thus use `liars_among` to find the number of liars among them. Replies that are malformed or not finite are
        then dropped and reported, and each vector has the same weight, however many examples its node claims.
    optimizer, buffers, on_round
        See `SolonStrategy`.
    downlink
        See `SolonConfig`.

    Notes
    -----
    Guarantee: that of `inner`, for replies that pass Flower's own checks. Without `for_present`, a single malformed
    reply aborts the run, and a single NaN can enter the model, as in Flower itself.
    """

    def __init__(
        self,
        inner: Strategy,
        optimizer: OptimizerFactory,
        *,
        for_present: Callable[[int], Strategy] | None = None,
        buffers: Collection[str] = (),
        on_round: Callable[[RoundReport], object] | None = None,
        downlink: DownlinkName = "full",
    ) -> None:
        self.inner = inner
        self.for_present = for_present
        super().__init__(optimizer, buffers=buffers, on_round=on_round, downlink=downlink)

    def summary(self) -> None:
        """Log the inner strategy's settings."""
        self.inner.summary()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate to the inner strategy."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Delegate to the inner strategy."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def begin(self, model: ServerModel, timeout: float | None, *, follows_up: bool) -> "InnerRun":
        """See `RoundStrategy.begin`."""
        return InnerRun(self.inner, self.for_present, model, timeout, self._downlink)


class InnerRun(Run):
    """A run in which the inner strategy chooses the nodes of every round."""

    def __init__(
        self,
        inner: Strategy,
        for_present: Callable[[int], Strategy] | None,
        model: ServerModel,
        timeout: float | None,
        downlink: DownlinkName,
    ) -> None:
        super().__init__(model, timeout, downlink)
        self.inner = inner
        self.for_present = for_present

    def open_round(self, server_round: int, config: ConfigRecord, grid: Grid) -> "InnerRound":
        """See `Run.open_round`."""
        return InnerRound(self, server_round, config, grid)


class InnerRound(Round[int]):
    """One round; messages are numbered as the inner strategy returns them."""

    def __init__(self, run: InnerRun, server_round: int, config: ConfigRecord, grid: Grid) -> None:
        self._run = run
        self._reader = partial(read_arrays, name=ARRAYS, layout=run.model.layout)
        self._round = server_round
        self._config = config
        self._grid = grid
        self._sent: dict[int, tuple[Metadata, Records]] = {}  # without the model
        self._replies: dict[int, Message] = {}
        self._unusable: dict[int, str] = {}  # the reasons why replies are not aggregated

    def messages(self, arrays: ArrayRecord) -> dict[int, Message]:
        """See `Round.messages`; the messages are the inner strategy's."""
        messages = self._run.inner.configure_train(self._round, arrays, self._config, self._grid)
        for key, message in enumerate(messages):
            others = {name: record for name, record in message.content.items() if name != ARRAYS}
            self._sent[key] = (message.metadata, others)
        return self._messages(list(self._sent), arrays)

    def again(self, keys: Collection[int]) -> dict[int, Message]:
        """See `Round.again`."""
        return self._messages(keys)

    def _messages(self, keys: Collection[int], arrays: ArrayRecord | None = None) -> dict[int, Message]:
        models = self._run.sender.records([self._nodes[key] for key in keys], arrays)
        messages = {}
        for key in keys:
            metadata, others = self._sent[key]
            content = RecordDict({**others, **models[metadata.dst_node_id]})
            messages[key] = Message(
                *(content, metadata.dst_node_id, metadata.message_type), ttl=metadata.ttl, group_id=metadata.group_id
            )
        return messages

    @property
    def _nodes(self) -> dict[int, int]:
        """Node ids, by message number."""
        return {key: metadata.dst_node_id for key, (metadata, _) in self._sent.items()}

    def receive(self, batch: list[tuple[int, Message]]) -> bool:
        """See `Round.receive`."""
        for key, reply in batch:
            self._replies[key] = reply
            if self._run.for_present is not None and not reply.has_error():
                self._check(key, reply)
        return len(self._replies) == len(self._nodes)

    def _check(self, key: int, reply: Message) -> None:
        """Give a valid gradient the weight of one example; record why any other reply is unusable."""
        found = read(reply, self._reader)
        if isinstance(found, Unusable):
            self._unusable[key] = found.reason
            logger.warning("Node %d: its reply can't be used: %s", self._nodes[key], found.reason)
            return
        weighted_by = getattr(self._run.inner, "weighted_by_key", "num-examples")
        reply.content = RecordDict({ARRAYS: reply.content[ARRAYS], "metrics": MetricRecord({weighted_by: 1})})

    def close(self) -> Aggregated:
        """See `Round.close`; the inner strategy aggregates the gradients."""
        replies, self._replies = self._replies, {}
        bytes_in = sum(_size(reply) for reply in replies.values())
        report = self._report(replies)
        inner = self._run.inner
        if self._run.for_present is not None:
            present = {key: reply for key, reply in replies.items() if not reply.has_error()}
            replies = {key: reply for key, reply in present.items() if key not in self._unusable}
            if not replies:
                return Aggregated(direction=None, groups=(report,), bytes_in=bytes_in)
            inner = self._run.for_present(len(replies))
        with quick_collections():
            gradient, _ = inner.aggregate_train(self._round, list(replies.values()))
        direction = None if gradient is None else self._run.model.to_vector(gradient)
        return Aggregated(direction=direction, groups=(report,), bytes_in=bytes_in)

    def _report(self, replies: dict[int, Message]) -> GroupReport:
        """Report which nodes answered; whether they told the truth is unknown here."""
        silent = {key for key, reply in replies.items() if reply.has_error() and is_silence(reply)}
        failed = {
            self._nodes[key]: one_line(str(reply.error.reason))
            for key, reply in replies.items()
            if reply.has_error() and key not in silent
        }
        return GroupReport(
            group=0,
            nodes=tuple(sorted(self._nodes.values())),
            status="clean",
            corrupt_nodes=(),
            silent_nodes=tuple(node_id for key, node_id in self._nodes.items() if key not in replies or key in silent),
            malformed_nodes=failed | {self._nodes[key]: reason for key, reason in self._unusable.items()},
            residual=0.0,
            tolerance=math.inf,
            error_bound=math.inf,
        )


def _size(reply: Message) -> int:
    """Return the size of a reply's arrays in bytes."""
    if reply.has_error():
        return 0
    return sum(len(array.data) for record in reply.content.array_records.values() for array in record.values())
