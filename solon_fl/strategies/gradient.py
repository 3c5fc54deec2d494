"""Any of Flower's aggregators, used on gradients with a server optimizer: what Solon is compared with."""

import math
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from solon_fl.strategies.group import GroupReport
from solon_fl.strategies.loop import Aggregated, RoundStrategy
from solon_fl.strategies.model import OptimizerFactory, ServerModel
from solon_fl.strategies.report import RoundReport

__all__ = ["GradientStrategy"]


class GradientStrategy(RoundStrategy):
    """Lets another strategy aggregate gradients, and steps a torch optimizer with the result.

    Flower's strategies replace the model by what they aggregate. Here nodes send gradients (as an ArrayRecord with the
    model's floating-point entries; where a buffer stands, its change), `inner` aggregates them, and the
    optimizer steps, just as `SolonStrategy` does: so that all differences in a comparison come from the
    aggregation. Krum's distances, too, are meant for gradients.

    Parameters
    ----------
    inner : Strategy
        For example ``flwr.serverapp.strategy.MultiKrum(...)``; does everything but the step.
    optimizer, buffers, on_round
        See `SolonStrategy`.

    Notes
    -----
    Guarantee: that of `inner`, for replies that Flower's own checks let through. One odd reply aborts the run, and
    one NaN can pass into the model, as they do in Flower.
    """

    def __init__(
        self,
        inner: Strategy,
        optimizer: OptimizerFactory,
        *,
        buffers: Collection[str] = (),
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> None:
        self.inner = inner
        super().__init__(optimizer, buffers=buffers, on_round=on_round)

    def _reset(self) -> None:
        super()._reset()
        self._replies: dict[Hashable, Message] = {}

    def summary(self) -> None:
        """Log the inner strategy's settings."""
        self.inner.summary()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the inner strategy."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Leave it to the inner strategy."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def _make_messages(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> dict[Hashable, Message]:
        """Leave it to the inner strategy."""
        self._replies = {}
        return dict(enumerate(self.inner.configure_train(server_round, arrays, config, grid)))

    def _receive(self, batch: list[tuple[Hashable, Message]]) -> bool:
        self._replies.update(batch)
        return len(self._replies) == len(self._addressed)

    def _aggregate(self, server_round: int) -> Aggregated:
        """Let the inner strategy aggregate the gradients."""
        replies, self._replies = self._replies, {}
        bytes_in = sum(_size(reply) for reply in replies.values())
        report = self._report(replies)
        gradient, _ = self.inner.aggregate_train(server_round, list(replies.values()))
        model = cast(ServerModel, self._model)
        direction = None if gradient is None else model.to_vector(gradient)
        return Aggregated(direction=direction, groups=(report,), bytes_in=bytes_in)

    def _report(self, replies: dict[Hashable, Message]) -> GroupReport:
        """Report who answered; whether what they sent is true, nobody knows here."""
        return GroupReport(
            group=0,
            nodes=tuple(sorted(metadata.dst_node_id for metadata in self._addressed.values())),
            status="clean",
            corrupt_nodes=(),
            silent_nodes=tuple(m.dst_node_id for key, m in self._addressed.items() if key not in replies),
            malformed_nodes={
                self._addressed[key].dst_node_id: str(reply.error.reason)[:300]
                for key, reply in replies.items()
                if reply.has_error()
            },
            residual=0.0,
            tolerance=math.inf,
            error_bound=math.inf,
        )


def _size(reply: Message) -> int:
    """Return the bytes of a reply's arrays."""
    if reply.has_error():
        return 0
    return sum(len(array.data) for record in reply.content.array_records.values() for array in record.values())
