"""The Flower strategy."""

import logging
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from solon_fl.config import SolonConfig, num_agreeing
from solon_fl.errors import GroupFailedError
from solon_fl.strategies.calibration import Calibration, measure
from solon_fl.strategies.checkpoint import Checkpoints
from solon_fl.strategies.group import GroupReport, GroupRound
from solon_fl.strategies.loop import Aggregated, RoundStrategy
from solon_fl.strategies.model import OptimizerFactory, ServerModel
from solon_fl.strategies.nodes import NodeRecord, Roster
from solon_fl.strategies.report import RoundReport
from solon_fl.task import SolonTask, digest_key

__all__ = ["SolonStrategy"]

Place = tuple[int, int]  # group, slot: the key of a node's messages
# Settings, when a run goes on from a checkpoint.
MAY_CHANGE = ("beyond_bound", "on_group_failure", "strangers", "quarantine_after")
logger = logging.getLogger("flwr")


class SolonStrategy(RoundStrategy):
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
        could hide a lie. With `SolonConfig.regroup` "round" the places that are drawn follow from it, too. Default:
        fresh entropy in every decode and for every draw.
    checkpoints : Checkpoints, optional
        Where to save the run, and to go on with it after the server was stopped or killed. Unused under Flower's
        own `start`.
    calibrate : bool
        Whether to measure the float noise between the nodes before the first round, as `calibrate` does, and to raise
        rtol for this run if it must be: never to lower it. One more round, without a step; a silent node costs the
        timeout. Unused under Flower's own `start`.

    Attributes
    ----------
    config : SolonConfig
        Of the run; after a calibration, with the rtol that is used.

    Notes
    -----
    Guarantee: as long as each group has at most s liars and e silent nodes, the parameters after every round
    are those of a run without any, up to the rounding error that `GroupReport.error_bound` bounds; a group
    for which that can't be had is reported and left to `config.on_group_failure`. Nothing that a node
    reports, but its share, has any influence. With ``config.beyond_bound="accept"``, groups with more faults may be
    decoded too; such a result, of status "beyond-bound", is right if k + 1 of the shares that arrived are honest.
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
        buffers: Collection[str] = (),
        on_round: Callable[[RoundReport], None] | None = None,
        client_evaluation: bool = False,
        projection_seed: int | None = None,
        checkpoints: Checkpoints | None = None,
        calibrate: bool = False,
    ) -> None:
        self._given_config = config
        self._calibrate = calibrate
        self.mode = config.mode
        self._seed = projection_seed
        self._projection = None if projection_seed is None else torch.Generator().manual_seed(projection_seed)
        super().__init__(
            optimizer,
            buffers=buffers,
            on_round=on_round,
            client_evaluation=client_evaluation,
            checkpoints=checkpoints,
        )

    def _reset(self) -> None:
        super()._reset()
        self.config = self._given_config
        self._roster = Roster(self.config, self._seed)
        self._round, self._train_config = 0, ConfigRecord()
        self._told: set[int] = set()  # of nodes with different bits
        self._rounds: tuple[GroupRound, ...] = ()
        self._sum: torch.Tensor | None = None  # of the round's gradients, weighted, and of their weights
        self._sum_of_weights = 0.0

    @property
    def ledger(self) -> dict[str, NodeRecord]:
        """What is known of each node, by its identity: how often it lied, was silent, ..."""
        return self._roster.ledger

    def summary(self) -> None:
        """Log the settings and the certificate."""
        config, code = self.config, self.config.make_code()
        logger.info("\t├──> Solon: %d groups of %d nodes", config.num_groups, config.group_size)
        if config.regroup == "round":
            logger.info("\t│\t├── Places drawn anew every round")
        logger.info("\t│\t├── Liars tolerated per group: %d", config.byzantine)
        logger.info("\t│\t├── Silent nodes tolerated per group: %d", config.stragglers)
        logger.info("\t│\t├── Verification: %s; redundancy: %s", config.verification, config.redundancy)
        logger.info("\t│\t├── More faults than that: %s", config.beyond_bound)
        logger.info("\t│\t├── A share is 1/%d of the gradient", config.compression)
        logger.info("\t│\t├── Batches a node computes per round: %d", config.batches_per_group)
        logger.info("\t│\t└── Certificate (worst relative error): %.1e", code.certificate)

    def _before_first_round(self, grid: Grid, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """Raise rtol above the nodes' float noise, if asked to."""
        if not self._calibrate:
            return
        self._model = self._new_model(arrays)
        found = measure(
            *(grid, self._roster, self._model, arrays, self.config),
            rounds=1,
            train_config=config,
            timeout=self._timeout,
            liars=self.config.byzantine,
        )
        _log_calibration(found)
        if found.rtol > self.config.rtol:
            logger.info("\trtol is raised from %g to %g for this run.", self.config.rtol, found.rtol)
            self.config = replace(self.config, rtol=found.rtol)

    def _make_messages(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> dict[Hashable, Message]:
        """Return one message per node: the shared model, and a config and a task of its own."""
        self._roster.update(grid, self._timeout, server_round)
        self._round, self._train_config = server_round, config
        digests = self.config.verification == "digest"
        model = cast(ServerModel, self._model)
        self._rounds = tuple(
            GroupRound(
                group=group,
                nodes=nodes,
                resting=self._resting(group, nodes),
                byzantine=self._liars_left(group),
                digest_key=digest_key(self.config.seed, server_round, group) if digests else None,
                code=self.config.make_code(),
                dim=model.dim,
                dtype=model.vector.dtype,
                projection=self._projection,
                label=self._label,
            )
            for group, nodes in enumerate(self._roster.places)
        )
        self._sum, self._sum_of_weights = None, 0.0
        return self._messages({(group.group, slot) for group in self._rounds for slot in group.asked}, arrays)

    def _messages(self, places: Collection[Place], arrays: ArrayRecord) -> dict[Hashable, Message]:
        messages: dict[Hashable, Message] = {}
        model = cast(ServerModel, self._model)
        for group, slot in sorted(places):
            task = SolonTask.of_run(
                self.config, round=self._round, group=group, slot=slot, dim=model.dim, buffers=model.buffers
            )
            node_id = cast(int, self._rounds[group].nodes[slot])
            messages[group, slot] = task.to_message(arrays, self._train_config, node_id, self._timeout)
        return messages

    def _follow_up(self, late: bool) -> dict[Hashable, Message]:
        """Wake the nodes at rest of groups that need them."""
        places = [(group.group, slot) for group in self._rounds for slot in group.wake(late)]
        return self._messages(places, cast(ServerModel, self._model).to_record()) if places else {}

    def _resting(self, group: int, nodes: tuple[int | None, ...]) -> set[int]:
        """Return the slots of nodes that rest at first: drawn, but those that gave most trouble before all others."""
        slots = [slot for slot, node_id in enumerate(nodes) if node_id is not None]
        if self.config.redundancy == "full" or not self._own_loop:
            return set()
        if self._projection is None:  # fresh entropy, so that nobody knows who will be watched
            order = np.random.default_rng().permutation(len(slots)).tolist()
        else:
            order = torch.randperm(len(slots), generator=self._projection).tolist()
        drawn = sorted((slots[i] for i in order), key=lambda slot: self._roster.troubles(cast(int, nodes[slot])))
        config = self.config
        enough = num_agreeing(config.verification, self._liars_left(group), config.compression)
        return set(drawn[enough + config.stragglers :])

    def _liars_left(self, group: int) -> int:
        """Return how many of a group may still lie: s, less those in quarantine if the user agrees."""
        s, least = self.config.byzantine, cast(int, self.config.least_byzantine)
        if self.config.redundancy == "full" or least >= s:
            return s
        return max(s - self._roster.liars_gone(group), least)

    def _evaluating_nodes(self) -> list[int]:
        return [node_id for nodes in self._roster.places for node_id in nodes if node_id is not None]

    def _receive(self, batch: list[tuple[Hashable, Message]]) -> bool:
        """Take replies that came together; return whether every group's outcome is certain."""
        while batch:  # emptied, so that a group's shares are gone once it is decoded
            place, reply = batch.pop(0)
            group, slot = cast(Place, place)
            self._rounds[group].receive(slot, reply)
        self._decode(last=False)
        return all(group_round.closed for group_round in self._rounds)

    def _aggregate(self, server_round: int) -> Aggregated:
        """Decode what is open, and average the groups as the policy says."""
        self._decode(last=True)
        groups = tuple(_closed_report(group_round) for group_round in self._rounds)
        failed = [group for group in groups if not group.decoded]
        policy = self.config.on_group_failure
        for failure in failed:
            self._log_failure(failure)
        usable = len(failed) < len(groups) and (not failed or policy == "exclude")
        aggregated = Aggregated(
            direction=cast(torch.Tensor, self._sum).div_(self._sum_of_weights) if usable else None,
            groups=groups,
            bytes_in=sum(group_round.bytes_in for group_round in self._rounds),
        )
        self._rounds, self._sum = (), None
        return aggregated

    def _label(self, node_id: int) -> str:
        return self._roster.label(node_id)

    def _receive_late(self, node_id: int) -> None:
        self._roster.record_late(node_id)

    def _run(self) -> dict[str, Any]:
        settings = asdict(self._given_config)
        return {name: value for name, value in settings.items() if name not in MAY_CHANGE}

    def _notes(self) -> dict[str, Any]:
        projection = None if self._projection is None else bytes(self._projection.get_state().tolist()).hex()
        return {"roster": self._roster.to_dict(), "projection": projection, "rtol": self.config.rtol}

    def _restore(self, notes: Mapping[str, Any]) -> None:
        self._roster.restore(notes["roster"])
        rtol = notes.get("rtol", 0.0)
        if rtol > self.config.rtol:
            logger.info("\trtol is %g, as calibrated when the run began.", rtol)
            self.config = replace(self.config, rtol=rtol)
        if self._projection is not None and notes["projection"] is not None:
            self._projection.set_state(torch.tensor(list(bytes.fromhex(notes["projection"])), dtype=torch.uint8))

    def _after_round(self, report: RoundReport) -> None:
        self._roster.record(report)
        different = {node for group in report.groups for node in group.different_bits} - self._told
        if different:
            self._told |= different
            logger.warning(
                "Nodes %s compute other bits than their groups (other hardware or software, or they vote wrongly). As "
                "long as s + 1 nodes of each group agree, that does no harm.",
                ", ".join(self._label(node) for node in sorted(different)),
            )
        if report.failed_groups and self.config.on_group_failure == "stop":
            raise GroupFailedError(
                f"round {report.round}: groups {list(report.failed_groups)} of {len(report.groups)} could not be "
                "decoded and on_group_failure='stop'; the log says why."
            )

    def _decode(self, *, last: bool) -> None:
        """Decode the groups that can be, and add each gradient to the sum: no more than one is kept beside it."""
        weights = self.config.group_weights or (1.0,) * self.config.num_groups
        for group_round in self._rounds:
            group_round.decode(last=last)
            gradient, group_round.gradient = group_round.gradient, None
            if gradient is None:
                continue
            weight = weights[group_round.group]
            self._sum = gradient.mul_(weight) if self._sum is None else self._sum.add_(gradient, alpha=weight)
            self._sum_of_weights += weight

    def _log_failure(self, report: GroupReport) -> None:
        malformed = list(report.malformed_nodes.items())
        reasons = "; ".join(f"node {self._label(node)}: {reason}" for node, reason in malformed[:3])
        logger.error(
            "Group %d failed (%s): %d silent, %d malformed%s. Either more nodes lie or are missing than configured, or "
            "the nodes of the group do not compute the same (batches must come from the task alone, not from a data "
            "loader or the global random state), or they differ by float noise above rtol (to measure it: "
            "solon_fl.strategies.calibrate; with verification='digest' and r < 2 s + e + k: by a single bit). "
            "Policy: %s.",
            report.group,
            report.status,
            len(report.silent_nodes),
            len(report.malformed_nodes),
            f" ({reasons})" if reasons else "",
            self.config.on_group_failure,
        )


def _closed_report(group_round: GroupRound) -> GroupReport:
    if group_round.report is None:
        raise RuntimeError("the group is still open")
    return group_round.report


def _log_calibration(found: Calibration) -> None:
    """Log what was measured; nothing of the nodes between which there is nothing but noise."""
    logger.info("\tcalibrated: %s", found.finding)
    for node_id in (*found.outliers, *found.malformed, *found.silent):
        logger.info("\t\tnode %s: %s", found.labels[node_id], found.of_node(node_id))
    for warning in found.warnings:
        logger.warning("%s", warning)
