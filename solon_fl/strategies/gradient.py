"""Any of Flower's aggregators, used on gradients with a server optimizer: what Solon is compared with."""

from collections.abc import Collection, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from solon_fl.strategies.model import OptimizerFactory, ServerModel

__all__ = ["GradientStrategy"]


class GradientStrategy(Strategy):
    """Lets another strategy aggregate gradients, and steps a torch optimizer with the result.

    Flower's strategies replace the model by what they aggregate. Here nodes send gradients (as an ArrayRecord with the
    model's floating-point entries; where a buffer stands, its change), `inner` aggregates them, and the
    optimizer steps, just as `SolonStrategy` does: so that all differences in a comparison come from the
    aggregation. Krum's distances, too, are meant for gradients.

    Parameters
    ----------
    inner : Strategy
        For example ``flwr.serverapp.strategy.MultiKrum(...)``; does everything but the step.
    optimizer : callable
        See `SolonStrategy`.
    buffers : collection of str
        See `SolonStrategy`.

    Notes
    -----
    Guarantee: that of `inner`, for replies that Flower's own checks let through. One odd reply aborts the run, and
    one NaN can pass into the model, as they do in Flower.
    """

    def __init__(self, inner: Strategy, optimizer: OptimizerFactory, *, buffers: Collection[str] = ()) -> None:
        self.inner = inner
        self._optimizer = optimizer
        self._buffers = tuple(buffers)
        self._model: ServerModel | None = None

    def summary(self) -> None:
        """Log the inner strategy's settings."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the inner strategy."""
        if self._model is None or server_round == 1:
            self._model = ServerModel(arrays, self._buffers, self._optimizer)
        return list(self.inner.configure_train(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step with what the inner strategy makes of the gradients."""
        gradient, metrics = self.inner.aggregate_train(server_round, replies)
        if gradient is None or self._model is None:
            return None, metrics
        self._model.step(self._model.to_vector(gradient), "gradient")
        return self._model.to_record(), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave it to the inner strategy."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Leave it to the inner strategy."""
        return self.inner.aggregate_evaluate(server_round, replies)
