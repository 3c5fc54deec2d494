"""Draco as a strategy: exact gradients from redundant computation alone, without compression."""

import logging
from collections.abc import Callable, Collection, Mapping

import torch
from flwr.app import ConfigRecord
from torch import Tensor

from solon_fl.baselines.draco.task import DRACO_TASK, DracoCodeName, DracoTask, make_draco_code
from solon_fl.baselines.vectors import Layout, VectorStrategy, Verdict
from solon_fl.config import DownlinkName
from solon_fl.strategies.factories import OptimizerFactory
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.reports import RoundReport
from solon_fl.task import SHARE

__all__ = ["DracoStrategy"]

logger = logging.getLogger("flwr")


class DracoStrategy(VectorStrategy):
    """Trains on the exact mean gradient of P batches, of which every node computes 2 s + 1 or more.

    Nodes run `draco_client_app`. This is a baseline to compare Solon with.

    Parameters
    ----------
    num_nodes : int
        P, the number of nodes in the run and of batches in a round.
    byzantine : int
        s, the number of liars that are tolerated: in each group with the repetition code, among all nodes with the
        cyclic code.
    optimizer, buffers, on_round
        See `SolonStrategy`.
    code : "repetition" or "cyclic"
        See `RepetitionCode` and `CyclicCode`.
    seed : int
        Seed of the run, ``0 <= seed < 2**63``. Together with the round and the batch's number, it determines a batch.
    projection_seed : int, optional
        See `SolonStrategy`.
    downlink
        See `SolonConfig`.

    Notes
    -----
    Guarantee: with at most s liars, the step is that of a run without liars. Draco has no erasures, so nodes that send
    nothing or malformed replies count as liars. If the decoder finds no consistent answer, the round is skipped. See
    `RepetitionCode` for the effect of rounding, and `CyclicCode` for its limits with many nodes.

    Memory: the replies, n d numbers (2 n d with the cyclic code).

    Differs from the paper: see `RepetitionCode` and `CyclicCode`.

    References
    ----------
    Chen, Wang, Charles, Papailiopoulos, "DRACO: Byzantine-resilient distributed training via redundant
    gradients", ICML 2018.
    """

    def __init__(
        self,
        num_nodes: int,
        byzantine: int,
        optimizer: OptimizerFactory,
        *,
        code: DracoCodeName = "repetition",
        seed: int = 0,
        buffers: Collection[str] = (),
        on_round: Callable[[RoundReport], object] | None = None,
        projection_seed: int | None = None,
        downlink: DownlinkName = "full",
    ) -> None:
        self.code = make_draco_code(code, num_nodes, byzantine)
        self.num_batches = 1 if self.code.is_complex else len(self.code.batches(0))
        self._code_name = code
        self._seed = seed
        self._projection = None if projection_seed is None else torch.Generator().manual_seed(projection_seed)
        super().__init__(num_nodes, optimizer, buffers=buffers, on_round=on_round, downlink=downlink)

    def summary(self) -> None:
        """Log the settings."""
        logger.info("\t├──> Draco, %s code: %d nodes", self._code_name, self.num_nodes)
        logger.info("\t│\t├── Liars tolerated: %d", self.code.byzantine)
        logger.info("\t│\t└── Batches per node and round: %d", len(self.code.batches(0)))

    def task(self, server_round: int, number: int, model: ServerModel) -> dict[str, ConfigRecord]:
        """See `VectorStrategy.task`."""
        task = DracoTask(
            round=server_round,
            number=number,
            seed=self._seed,
            code=self._code_name,
            num_nodes=self.num_nodes,
            byzantine=self.code.byzantine,
            buffers=model.buffers,
        )
        return {DRACO_TASK: task.to_record()}

    def layout(self, model: ServerModel) -> tuple[str, Layout]:
        """See `VectorStrategy.layout`."""
        shape = (2, model.dim) if self.code.is_complex else (model.dim,)
        return SHARE, {SHARE: (shape, model.vector.dtype)}

    def combine(self, sent: Mapping[int, dict[str, Tensor]], model: ServerModel) -> Verdict:
        """See `VectorStrategy.combine`."""
        decoded = self.code.decode(
            {number: arrays[SHARE] for number, arrays in sent.items()}, generator=self._projection
        )
        if decoded.gradient is None:
            logger.error(
                "Draco can't decode the round, which is skipped: more than %d nodes lie or are missing.",
                self.code.byzantine,
            )
        return decoded.gradient, decoded.corrupt_nodes
