"""Any function of the nodes' gradients as a strategy: the adapter for other libraries' aggregators."""

import logging
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from solon_fl.strategies.model import OptimizerFactory, ServerModel
from solon_fl.strategies.report import RoundReport
from solon_fl.strategies.vectors import Layout, VectorStrategy, Verdict
from solon_fl.task import ARRAYS

__all__ = ["AggregatorStrategy"]

logger = logging.getLogger("flwr")


class AggregatorStrategy(VectorStrategy):
    """Lets a function aggregate gradients, and steps a torch optimizer with the result.

    Parameters
    ----------
    num_nodes : int
        P, nodes in the run.
    aggregate : callable
        Takes the gradients, an (n, d) float32 or float64 tensor, one row a node that sent a valid one, and returns
        a (d,) tensor: a function of yours, or an object of byzfl, such as ``byzfl.GeometricMedian()``.
    optimizer, buffers, on_round
        See `SolonStrategy`.

    Notes
    -----
    Nodes send gradients as for `GradientStrategy`, so the same ClientApp serves both. What is malformed or not
    finite never reaches the function: it is dropped and reported, and n is that much smaller. Several published
    aggregators return NaN if a single node sends one; here none of them is asked to deal with it.
    Guarantee: that of the function. If it raises, or what it returns is not finite or has another length, the
    round is skipped.
    Memory: the (n, d) matrix beside the replies.
    """

    def __init__(
        self,
        num_nodes: int,
        aggregate: Callable[[Tensor], Tensor],
        optimizer: OptimizerFactory,
        *,
        buffers: Collection[str] = (),
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> None:
        self.aggregate = aggregate
        super().__init__(num_nodes, optimizer, buffers=buffers, on_round=on_round)

    def summary(self) -> None:
        """Log what aggregates."""
        name = getattr(self.aggregate, "__name__", type(self.aggregate).__name__)
        logger.info("\t├──> %s on the gradients of %d nodes", name, self.num_nodes)

    def _layout(self, model: ServerModel) -> tuple[str, Layout]:
        return ARRAYS, model.layout

    def _combine(self, sent: Mapping[int, dict[str, Tensor]], model: ServerModel) -> Verdict:
        vectors = torch.empty(len(sent), model.dim, dtype=model.vector.dtype)
        for row, number in zip(vectors, sorted(sent), strict=True):
            torch.cat([tensor.reshape(-1).to(row.dtype) for tensor in sent[number].values()], out=row)
        try:
            direction = torch.as_tensor(self.aggregate(vectors)).to(model.vector)
        except Exception as error:  # too few vectors left, for one
            logger.error("The aggregator failed, and the round is skipped: %s: %s", type(error).__name__, error)
            return None, ()
        if direction.shape != (model.dim,) or not direction.isfinite().all():
            logger.error("What the aggregator returned is no finite vector of %d numbers; skipped.", model.dim)
            return None, ()
        return direction, ()
