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

SLOW_UPDATES = 0.95  # of a change, in mode "update"
# Settings, when a run goes on from a checkpoint.
MAY_CHANGE = ("audit", "on_group_failure", "strangers", "quarantine_after")
logger = logging.getLogger("flwr")


class SolonStrategy(RoundStrategy[SolonRun]):
    """Trains with the exact gradients of groups of nodes, of which up to s each may lie.

    Parameters
    ----------
    config : SolonConfig
        The run.
    optimizer : callable
        Makes the server's torch optimizer of a list of parameters; any of `torch.optim`, for instance
        ``functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)``. In mode "update" it is given minus the
        average change as a gradient: SGD with lr=1 adds the change as it is, and a
        smaller one only as much of it.
    scheduler : callable, optional
        Makes the learning-rate schedule of that optimizer; any of `torch.optim.lr_scheduler` but ReduceLROnPlateau, for
        instance ``functools.partial(torch.optim.lr_scheduler.StepLR, step_size=30)``. It counts the steps that were
        made, as in torch: a round without a step does not move it. Checkpoints keep its state.
    buffers : collection of str
        Entries of the model that no gradient moves, from `buffer_names(model)`: BatchNorm's statistics and
        frozen weights. Nodes send their change, coded like the gradient, and the average is added.
    on_round : callable, optional
        Called with a `RoundReport` after every round. If it returns True, `start` ends after this round as if it had
        been the last: evaluation and checkpoint included. Under Flower's own `start` what it returns means nothing.
    monitors : callable, or several, optional
        Called with a `RunStatus` after every round, when the model has been evaluated: `solon_fl.monitoring` has a live
        page and writers for TensorBoard, Weights & Biases and MLflow. One that raises is logged, and disturbs nothing.
    client_evaluation : bool
        Whether to ask the nodes to evaluate too. Their metrics are aggregated by the median, but nothing protects a
        median from a lying majority, or from nodes whose data differ: prefer `evaluate_fn`.
    projection_seed : int, optional
        Makes the decoder's random projection reproducible, for simulation only: a node that knew it
        could hide a lie. With `SolonConfig.regroup` "round" the places that are drawn follow from it, too. Default:
        fresh entropy in every decode and for every draw.
    referee : client object, LocalReferee, or names of nodes, optional
        Who computes a group's gradient where its nodes' shares don't settle it, if ``config.referee``. What the nodes
        run, such as ``MyClient()`` or a ClientApp: it computes in the server's process, on its devices, and so needs
        the data (`LocalReferee` says what it finds in its context). Or names of registered nodes that you trust, which
        then are in no group. Before round 1 it computes one batch, so that one that can't is an error at once; later
        errors of it end the run, too. See docs/explanation/referee.md.
    checkpoints : Checkpoints, optional
        Where to save the run, and to go on with it after the server was stopped or killed. Unused under Flower's
        own `start`.
    calibrate : bool
        Whether to measure the float noise between the nodes before the first round, as `calibrate` does, and to raise
        rtol for this run if it must be: never to lower it. One more round, without a step; a silent node costs the
        timeout. Unused under Flower's own `start`.

    Notes
    -----
    Guarantee: as long as each group has at most s liars and e silent nodes, the parameters after every round
    are those of a run without any, bit by bit with code "exact", else up to the rounding error that
    `GroupReport.error_bound` bounds; a group for which that can't be had is reported and left to
    `config.on_group_failure`. Nothing that a node reports, but its share, has any influence.
    Memory of the server: the shares of the round, two models (its own, and the gradient), and the optimizer's
    state; flat over the rounds (`benchmarks/server_memory.py`).
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
                f"a referee must be given and be in the config; got referee={str(referee)[:80]} with "
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
                "In mode 'update' the server's optimizer is given the nodes' change of the model, to which their own "
                "learning rate has been applied already: this SGD adds %.3g of it. Give the server SGD with lr=1, "
                "which adds it as it is, and the nodes their rate: train_config=ConfigRecord({'lr': ...}).",
                share,
            )

    @property
    def config(self) -> SolonConfig:
        """Of the run; after a calibration, with the rtol that is used."""
        return self._given_config if self._latest is None else self._latest.config

    @property
    def ledger(self) -> dict[str, NodeRecord]:
        """What is known of each node, by its identity: how often it lied, was silent, ..."""
        return {} if self._latest is None else self._latest.roster.ledger

    def begin(self, model: ServerModel, timeout: float | None, *, follows_up: bool) -> SolonRun:
        """See `RoundStrategy.begin`."""
        self._warn_of_slow_updates(model.share_of_an_update)
        if isinstance(self._referee, TrustedNodes) and not follows_up:
            raise ConfigurationError(
                "trusted nodes are asked in the middle of a round, which Flower's own start can't; use "
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
        """See `RoundStrategy.configure_evaluate`; nodes are told the run's seed, to build the model as in training."""
        settings = ConfigRecord({**config, RUN_SEED: self._given_config.seed})
        return super().configure_evaluate(server_round, arrays, settings, grid)

    def settings(self) -> dict[str, Any]:
        """See `RoundStrategy.settings`."""
        settings = asdict(self._given_config)
        return {name: value for name, value in settings.items() if name not in MAY_CHANGE}

    def summary(self) -> None:
        """Log the settings and the certificate."""
        config = self._given_config
        logger.info("\t├──> Solon: %d groups of %d nodes", config.num_groups, config.group_size)
        if config.regroup == "round":
            logger.info("\t│\t├── Places drawn anew every round")
        logger.info("\t│\t├── Liars tolerated per group: %d", config.byzantine)
        logger.info("\t│\t├── Silent nodes tolerated per group: %d", config.stragglers)
        logger.info("\t│\t├── Verification: %s; redundancy: %s", config.verification, config.redundancy)
        if config.referee:
            kind = "trusted nodes" if isinstance(self._referee, TrustedNodes) else "in this process"
            logger.info("\t│\t├── Referee: %s; audits: %g of all groups and rounds", kind, config.audit)
        logger.info("\t│\t├── A share is 1/%d of the gradient", config.compression)
        logger.info("\t│\t├── Batches a node computes per round: %d", config.batches_per_group)
        certificate = config.make_decoder().certificate
        promised = f"certificate (worst relative error): {certificate:.1e}" if certificate else "no bit is wrong"
        logger.info("\t│\t└── Code: %s; %s", config.code, promised)
