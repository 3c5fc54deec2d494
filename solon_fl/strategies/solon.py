"""The Flower strategy."""

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.strategies.checkpoint import Checkpoints
from solon_fl.strategies.factories import OptimizerFactory, SchedulerFactory, made_by, share_of_an_update
from solon_fl.strategies.ledger import NodeRecord
from solon_fl.strategies.loop import RoundStrategy
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.monitors import Monitor
from solon_fl.strategies.referee import TrustedNodes, referee_of
from solon_fl.strategies.reports import RoundReport
from solon_fl.strategies.solon_run import SolonRun
from solon_fl.task import RUN_SEED

__all__ = ["SolonStrategy"]

SLOW_UPDATES = 0.95  # mode "update": warn if the optimizer adds less than this share of the nodes' change
# Settings that may differ when a run resumes from a checkpoint.
MAY_CHANGE = ("audit", "on_group_failure", "strangers", "quarantine_after")
logger = logging.getLogger("flwr")


class SolonStrategy(RoundStrategy[SolonRun]):
    """Train on the exact gradient even when up to s nodes of each group lie.

    Parameters
    ----------
    config : SolonConfig
        The run's configuration.
    optimizer : callable
        Makes the server's torch optimizer from a list of parameters, for instance
        ``functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)``. Any optimizer of ``torch.optim`` that steps with
        one dense gradient works. In mode "update", the optimizer receives the negative of the average change as its
        gradient: SGD with ``lr=1`` adds the whole change, and a smaller rate adds that fraction of it.
    scheduler : callable, optional
        Makes a learning-rate scheduler from that optimizer, for instance
        ``functools.partial(torch.optim.lr_scheduler.StepLR, step_size=30)``. Any scheduler of
        ``torch.optim.lr_scheduler`` works except ``ReduceLROnPlateau``. As in torch, it counts optimizer steps: a round
        without a step does not advance it. Checkpoints save its state.
    buffers : collection of str
        Entries of the model that no gradient moves, from ``buffer_names(model)``: BatchNorm's statistics and frozen
        weights. Nodes send the change of the former, coded like the gradient, and the server adds the average.
    on_round : callable, optional
        Called with a `RoundReport` after every round. If it returns True, ``start`` ends after this round as if it
        were the last one, with evaluation and checkpoint. Flower's own ``start`` ignores the returned value.
    monitors : callable or iterable of callables, optional
        Each is called with a `RunStatus` after every round, once the model has been evaluated. ``solon_fl.monitoring``
        has a live page and writers for TensorBoard, Weights & Biases and MLflow. An exception in a monitor is logged
        and does not affect the run.
    client_evaluation : bool
        Whether to ask the nodes to evaluate, too. The server takes the median of their metrics. A median is wrong if
        most nodes lie, and says little if the nodes' data differ: prefer ``evaluate_fn``.
    projection_seed : int, optional
        Seeds the decoder's random projection. With ``SolonConfig(regroup="round")`` it seeds the draw of the places,
        too. For simulation only: a node that knew the projection could hide a lie. Default: fresh entropy for every
        decode and every draw.
    checkpoints : Checkpoints, optional
        Where to save the run, and where to find it again after the server was stopped or killed. Unused under Flower's
        own ``start``.
    calibrate : bool
        Whether to measure the float noise between the nodes before the first round, as `calibrate` does, and to raise
        ``rtol`` for this run if needed. It is never lowered. This takes one more round, without a step, in which a
        silent node costs the whole timeout. Unused under Flower's own ``start``.
    referee : client object, LocalReferee, or names of nodes, optional
        Computes a group's gradient when the shares of its nodes don't settle it. Required if ``config.referee`` is
        True. Give the program that the nodes run, such as ``MyClient()`` or a ClientApp: it runs in the server's
        process, on its devices, and needs the data (`LocalReferee` describes its context). Or give the names of
        registered nodes that you trust; they then belong to no group. The referee computes one batch before round 1,
        so that a referee that can't compute fails at once. If it fails later, the run ends, too. See
        docs/explanation/referee.md.

    Notes
    -----
    Guarantee: as long as each group has at most s liars and e silent nodes, the parameters after every round equal
    those of a run without any. With code "exact" they are equal bit by bit, otherwise up to the rounding error that
    ``GroupReport.error_bound`` bounds. A group that can't be decoded to this guarantee is reported and handled as
    ``config.on_group_failure`` says. Losses and metrics that nodes report never affect the model.

    The server holds the round's shares, two models (its own and the gradient), and the optimizer's state. Its memory
    does not grow over the rounds (``benchmarks/server_memory.py``).

    This differs from the paper in three ways: shares use a real Fourier code (or the exact code), projections are
    drawn afresh for each decode, and a group is decoded as soon as k + s of its shares agree.

    References
    ----------
    Chen et al., "Solon", arXiv:2110.01595.
    """

    def __init__(
        self,
        config: SolonConfig,
        optimizer: OptimizerFactory,
        *,
        scheduler: SchedulerFactory | None = None,
        buffers: Collection[str] = (),
        on_round: Callable[[RoundReport], object] | None = None,
        monitors: Monitor | Iterable[Monitor] = (),
        client_evaluation: bool = False,
        projection_seed: int | None = None,
        checkpoints: Checkpoints | None = None,
        calibrate: bool = False,
        referee: Any = None,
    ) -> None:
        self.mode = config.mode
        self.decoded_from = config.make_code()
        self._given_config = config
        self._projection_seed = projection_seed
        self._calibrate = calibrate
        self._referee = referee_of(referee)
        if (self._referee is not None) != config.referee:
            remedy = (
                "give SolonStrategy(..., referee=MyClient())" if config.referee else "set SolonConfig(referee=True)"
            )
            raise ConfigurationError(
                f"a referee must be both given and enabled in the config; got referee={str(referee)[:80]} with "
                f"SolonConfig(referee={config.referee}); {remedy}."
            )
        self._told_of_slow_updates = False
        super().__init__(
            optimizer,
            scheduler=scheduler,
            buffers=buffers,
            on_round=on_round,
            monitors=monitors,
            client_evaluation=client_evaluation,
            checkpoints=checkpoints,
            downlink=config.downlink,
        )
        self._warn_of_slow_updates(share_of_an_update(*made_by(optimizer)))

    def _warn_of_slow_updates(self, share: float) -> None:
        if self.mode == "update" and share < SLOW_UPDATES and not self._told_of_slow_updates:
            self._told_of_slow_updates = True
            logger.warning(
                "In mode 'update' the server's optimizer gets the nodes' change of the model, which already includes "
                "their own learning rate. This SGD adds %.3g of it. Give the server SGD with lr=1, "
                "which adds the whole change, and give the nodes their rate: train_config=ConfigRecord({'lr': ...}).",
                share,
            )

    @property
    def config(self) -> SolonConfig:
        """The run's configuration; after a calibration, with the ``rtol`` in use."""
        return self._given_config if self._latest is None else self._latest.config

    @property
    def ledger(self) -> dict[str, NodeRecord]:
        """What the server knows of each node, by its identity: how often it lied, was silent, and so on."""
        return {} if self._latest is None else self._latest.roster.ledger

    def begin(self, model: ServerModel, timeout: float | None, *, follows_up: bool) -> SolonRun:
        """See ``RoundStrategy.begin``."""
        self._warn_of_slow_updates(model.share_of_an_update)
        if isinstance(self._referee, TrustedNodes) and not follows_up:
            raise ConfigurationError(
                "trusted nodes are asked in the middle of a round, which Flower's own start does not allow; use "
                "SolonStrategy.start, or a referee in the server's process."
            )
        return SolonRun(
            self._given_config,
            model,
            timeout,
            follows_up=follows_up,
            seed=self._projection_seed,
            calibrate=self._calibrate,
            referee=self._referee,
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See ``RoundStrategy.configure_evaluate``. Nodes also get the run's seed, to build the same model."""
        settings = ConfigRecord({**config, RUN_SEED: self._given_config.seed})
        return super().configure_evaluate(server_round, arrays, settings, grid)

    def settings(self) -> dict[str, Any]:
        """See ``RoundStrategy.settings``."""
        settings = asdict(self._given_config)
        return {name: value for name, value in settings.items() if name not in MAY_CHANGE}

    def summary(self) -> None:
        """Log the settings and the certificate of the code."""
        config = self._given_config
        logger.info("\t├──> Solon: %d groups of %d nodes", config.num_groups, config.group_size)
        if config.regroup == "round":
            logger.info("\t│\t├── Places are drawn anew every round")
        logger.info("\t│\t├── Liars tolerated per group: %d", config.byzantine)
        logger.info("\t│\t├── Silent nodes tolerated per group: %d", config.stragglers)
        logger.info("\t│\t├── Verification: %s; redundancy: %s", config.verification, config.redundancy)
        if config.referee:
            kind = "trusted nodes" if isinstance(self._referee, TrustedNodes) else "in this process"
            logger.info("\t│\t├── Referee: %s; audits: %g of all groups and rounds", kind, config.audit)
        logger.info("\t│\t├── A share is 1/%d of the gradient", config.compression)
        logger.info("\t│\t├── Batches per node and round: %d", config.batches_per_group)
        certificate = config.make_decoder().certificate
        promised = f"certificate (worst relative error): {certificate:.1e}" if certificate else "exact to the bit"
        logger.info("\t│\t└── Code: %s; %s", config.code, promised)
