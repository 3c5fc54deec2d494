"""One training run of Solon's strategy: its nodes and groups, round by round."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from solon_fl.coding import DecodeStatus
from solon_fl.config import EARLY_ERROR, SolonConfig
from solon_fl.errors import GroupFailedError
from solon_fl.strategies.calibration import Calibration, measure
from solon_fl.strategies.digest_group import DigestGroupRound
from solon_fl.strategies.group import GroupRound
from solon_fl.strategies.ledger import Place
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.patience import Patience
from solon_fl.strategies.replies import Unusable, is_silence
from solon_fl.strategies.reports import NOT_FINITE, GroupReport, RoundReport
from solon_fl.strategies.roster import Roster
from solon_fl.strategies.rounds import Aggregated, Round, Run
from solon_fl.task import SolonTask, digest_key

__all__ = ["SolonRun"]

MOST_FAILURES_SHOWN = 5  # kinds, in a run: liars can make up any number
DIVERGED = (
    "all nodes that answered sent NaN or inf, and they can't all lie: the training has diverged, or the loss is not "
    "finite for some batch; lower the learning rate, or clip the gradients"
)
NEEDS_EQUAL_BITS = (
    "or not bit for bit (code='exact' needs nodes that compute the same bits: use code='fourier', or find those of "
    "another make with solon_fl.strategies.calibrate)"
)
ABOVE_RTOL = (
    "or they differ by float noise above rtol (to measure it: solon_fl.strategies.calibrate; with "
    "verification='digest' and r < 2 s + e + k: by a single bit)"
)
WHY_HONEST_NODES_DIFFER = (
    "Usual reasons why honest nodes do not compute the same: random numbers (numpy's, a data loader's, dropout's) that "
    "do not follow from the task's batches (numpy: seed it with batch.torch_seed % 2**32); something kept from earlier "
    "rounds, in context.state (keeps_state=True) or elsewhere, which a node that missed a round lacks; data that "
    "differ; versions of the app, torch or solon_fl that differ."
)
logger = logging.getLogger("flwr")


class SolonRun(Run):
    """See `SolonStrategy` for the parameters.

    Attributes
    ----------
    config : SolonConfig
        After a calibration, with the rtol that is used.
    roster : Roster
        Who has which place, and what each node did.
    """

    def __init__(
        self,
        config: SolonConfig,
        model: ServerModel,
        timeout: float | None,
        *,
        follows_up: bool,
        seed: int | None,
        calibrate: bool,
    ) -> None:
        super().__init__(model, timeout, config.downlink)
        self.num_batches = config.batches_per_group
        self.config = config
        self.roster = Roster(config, seed)
        self.projection = None if seed is None else torch.Generator().manual_seed(seed)
        self._follows_up = follows_up
        self._calibrate = calibrate
        self._told: set[int] = set()  # of nodes with different bits
        self._shown: set[str] = set()  # reasons of failed nodes of which it was logged where they failed
        self.patience = Patience()
        self._sections = model.sections
        self._noise_only: set[int] = set()  # numbers of tensors

    def prepare(self, grid: Grid, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """Raise rtol above the nodes' float noise, if asked to."""
        if not self._calibrate:
            return
        try:
            found = measure(
                *(grid, self.roster, self.model, arrays, self.config),
                rounds=1,
                train_config=config,
                timeout=self.timeout,
                liars=self.config.byzantine,
            )
        except GroupFailedError as error:  # one node that fails must not end a run that would do without it
            logger.warning("rtol stays %g, for it could not be calibrated: %s", self.config.rtol, error)
            return
        _log_calibration(found)
        self._raise_rtol(found.rtol, "\trtol is raised from %g to %g for this run.", self.config.rtol, found.rtol)

    def open_round(self, server_round: int, config: ConfigRecord, grid: Grid) -> "SolonRound":
        """See `Run.open_round`."""
        self.roster.update(grid, self.timeout, server_round)
        groups = [self._open_group(server_round, group, nodes) for group, nodes in enumerate(self.roster.places)]
        return SolonRound(self, server_round, config, groups)

    def _open_group(self, server_round: int, group: int, nodes: tuple[int | None, ...]) -> GroupRound:
        config, denied = self.config, self._denied(nodes)
        make: Callable[..., GroupRound] = GroupRound
        if config.verification == "digest":
            make = partial(
                DigestGroupRound,
                digest_key=digest_key(config.seed, server_round, group),
                can_decode_by_algebra=config.can_decode_by_algebra,
            )
        return make(
            group=group,
            nodes=nodes,
            resting=self._resting(nodes, denied) | denied,
            denied=denied,
            byzantine=config.byzantine,
            decoder=config.make_decoder(),
            enough=config.num_precise,
            early_error=EARLY_ERROR,
            parameters=self.model.parameter_names,
            noise_only=self._noise_only,
            sections=self._sections,
            is_usable=self.model.is_usable,
            dtype=self.model.vector.dtype,
            projection=self.projection,
            label=self.label,
            explain=self._show_where,
        )

    def _show_where(self, node_id: int, unusable: Unusable) -> None:
        """Log where a node's program failed, once for all that fail for the same reason."""
        if unusable.where and unusable.reason not in self._shown and len(self._shown) < MOST_FAILURES_SHOWN:
            self._shown.add(unusable.reason)
            lines = "".join(f"\n\t{line}" for line in unusable.where)
            logger.warning("Where that was, as node %s says (innermost last):%s", self.label(node_id), lines)

    def _resting(self, nodes: tuple[int | None, ...], denied: set[int]) -> set[int]:
        """Return the slots of nodes that rest at first: drawn, after those denied, away, or that gave most trouble."""
        if self.config.redundancy == "full" or not self._follows_up:
            return set()
        present = {slot: node_id for slot, node_id in enumerate(nodes) if node_id is not None}
        if self.projection is None:  # fresh entropy, so that nobody knows who will be watched
            order = np.random.default_rng().permutation(len(present)).tolist()
        else:
            order = torch.randperm(len(present), generator=self.projection, device="cpu").tolist()
        slots = list(present)
        away = {record.node_id for record in self.roster.ledger.values() if record.state == "away"}
        trouble = {
            slot: (slot in denied, node_id in away, self.roster.troubles(node_id)) for slot, node_id in present.items()
        }
        drawn = sorted((slots[i] for i in order), key=trouble.__getitem__)
        return set(drawn[self.config.num_precise + self.config.stragglers :])

    def _denied(self, nodes: tuple[int | None, ...]) -> set[int]:
        """Return the slots of nodes that would have to be sent all of the model again, and can rest instead."""
        denied = self.sender.denied([node_id for node_id in nodes if node_id is not None])
        return {slot for slot, node_id in enumerate(nodes) if node_id in denied} if self._follows_up else set()

    def record(self, report: RoundReport) -> None:
        """Enter the report into the ledger; see `Run.record`."""
        self.roster.record(report)
        different = {node for group in report.groups for node in group.different_bits} - self._told
        if different:
            self._told |= different
            harm = "As long as s + 1 nodes of each group agree, that does no harm."
            if self.config.code == "exact":
                harm = f"Each is one of the s = {self.config.byzantine} wrong shares that a group bears."
            logger.warning(
                "Nodes that compute other bits than their groups: %s. They have other hardware or software, or lie. %s",
                *(", ".join(self.label(node) for node in sorted(different)), harm),
            )
        if report.round == 1 and all(map(self._failed_for_good, report.groups)):
            raise GroupFailedError(
                f"no group could be decoded in the first round, so there is nothing to train with: {self._why(report)}"
            )
        if report.failed_groups and self.config.on_group_failure == "stop":
            raise GroupFailedError(
                f"round {report.round}: groups {list(report.failed_groups)} of {len(report.groups)} could not be "
                "decoded and on_group_failure='stop'; the log says why."
            )

    def _failed_for_good(self, group: GroupReport) -> bool:
        """Whether a group has failed, and not because of nodes that may be there in the next round."""
        for_good = (DecodeStatus.UNDECODABLE, DecodeStatus.DIVERGED)
        return not group.decoded and (group.status in for_good or not group.silent_nodes)

    def _why(self, report: RoundReport) -> str:
        if all(map(self.has_diverged, report.groups)):
            return f"{DIVERGED}."
        reasons = [reason for group in report.groups for reason in group.malformed_nodes.values()]
        first = f"; the first node's reason: {reasons[0]}." if reasons else "."
        classes = sorted({name for group in report.groups for name in group.failed_classes})
        where = f" (the shares disagree in: {', '.join(classes)})" if classes else ""
        apart = NEEDS_EQUAL_BITS if self.config.code == "exact" else "or not within rtol"
        return (
            f"more nodes lie than configured, or the nodes of a group do not compute the same, {apart}{where}; the log "
            f"says more{first}"
        )

    def has_diverged(self, group: GroupReport) -> bool:
        """Whether honest nodes sent NaN or inf: that was decoded, or all who answered did, and more than s."""
        if group.status == DecodeStatus.DIVERGED:
            return True
        asked = {node for node in group.nodes if node is not None}
        not_finite = {node for node, reason in group.malformed_nodes.items() if reason == NOT_FINITE}
        return len(not_finite) > self.config.byzantine and not_finite == asked - set(group.silent_nodes)

    def record_late(self, node_id: int) -> None:
        """See `Run.record_late`."""
        self.roster.record_late(node_id)

    def record_stall(self, node_id: int) -> None:
        """See `Run.record_stall`."""
        self.roster.record_stall(node_id)

    def label(self, node_id: int) -> str:
        """See `Run.label`."""
        return self.roster.label(node_id)

    def evaluating_nodes(self) -> list[int]:
        """See `Run.evaluating_nodes`."""
        return [node_id for nodes in self.roster.places for node_id in nodes if node_id is not None]

    def notes(self) -> dict[str, Any]:
        """See `Run.notes`."""
        projection = None if self.projection is None else bytes(self.projection.get_state().tolist()).hex()
        return {"roster": self.roster.to_dict(), "projection": projection, "rtol": self.config.rtol}

    def restore(self, notes: Mapping[str, Any]) -> None:
        """See `Run.restore`."""
        rtol, projection = notes["rtol"], notes["projection"]
        if type(rtol) is not float or not 0 <= rtol < math.inf:
            raise ValueError(f"rtol is {rtol!r}")
        restored = None
        if self.projection is not None and projection is not None:
            restored = torch.Generator()
            state = list(bytes.fromhex(projection))
            restored.set_state(torch.tensor(state, dtype=torch.uint8, device="cpu"))
        self.roster.restore(notes["roster"])
        self.projection = restored or self.projection
        self._raise_rtol(rtol, "\trtol is %g, as calibrated when the run began.", rtol)

    def _raise_rtol(self, rtol: float, text: str, *values: float) -> None:
        if rtol > self.config.rtol:
            logger.info(text, *values)
            self.config = replace(self.config, rtol=rtol)


class SolonRound(Round[Place]):
    """One round of a run; messages have the node's place, group and slot, for a key."""

    def __init__(self, run: SolonRun, server_round: int, train_config: ConfigRecord, groups: list[GroupRound]) -> None:
        self._run = run
        self._round = server_round
        self._train_config = train_config
        self._groups = groups
        self._weights = run.config.group_weights or (1.0,) * len(groups)
        self._gradients: dict[int, torch.Tensor] = {}  # of groups whose turn to be added has not come
        self._next_group = 0
        self._sum: torch.Tensor | None = None  # of the gradients so far, weighted
        self._sum_of_weights = 0.0
        self._sent: dict[Place, float] = {}  # when each was asked
        self._asked_at: dict[int, float] = {}  # when nodes of each group were last asked, plus the server's own time
        self._looked = 0.0  # when the latest replies came

    def messages(self, arrays: ArrayRecord) -> dict[Place, Message]:
        """Return one message per node: the shared model, and a config and a task of its own."""
        return self._tasks([(group.group, slot) for group in self._groups for slot in group.asked], arrays)

    def again(self, keys: Collection[Place]) -> dict[Place, Message]:
        """See `Round.again`. Nodes that were sent all of it too often already rest until their group needs them."""
        ids = {key: self._groups[key[0]].nodes[key[1]] for key in keys}
        denied = self._run.sender.denied([node_id for node_id in ids.values() if node_id is not None])
        for group, slot in keys:
            if ids[group, slot] in denied:
                self._groups[group].let_rest(slot)
        self._decode(last=False)
        return self._tasks([key for key in keys if ids[key] not in denied and not self._groups[key[0]].closed])

    def follow_up(self, late: bool) -> dict[Place, Message]:
        """Wake the nodes at rest of groups that need them. Each group has a patience of its own."""
        patience = self.patience() if any(group.resting for group in self._groups) else math.inf
        places = [
            (group.group, slot)
            for group in self._groups
            for slot in group.wake(late or self._looked - self._asked_at.get(group.group, math.inf) >= patience)
        ]
        return self._tasks(places) if places else {}

    def patience(self) -> float:
        """See `Patience`."""
        ids = [node_id for group in self._groups for node_id in group.nodes]
        return self._run.patience.seconds([node_id for node_id in ids if node_id is not None])

    def receive(self, batch: list[tuple[Place, Message]]) -> bool:
        """Take replies that came together; return whether every group's outcome is certain."""
        now = self._looked = time.monotonic()
        by_group: dict[int, dict[int, Message]] = {}
        while batch:  # all is emptied, so that a group's shares are gone once it is decoded
            (group, slot), reply = batch.pop(0)
            node_id = self._groups[group].nodes[slot]
            if node_id is not None and not (reply.has_error() and is_silence(reply)):
                self._run.patience.record(node_id, now - self._sent[group, slot])
            by_group.setdefault(group, {}).setdefault(slot, reply)
            del reply
        for group, replies in by_group.items():
            self._groups[group].receive(replies)
        self._decode(last=False)
        busy = time.monotonic() - now
        self._asked_at = {group: asked_at + busy for group, asked_at in self._asked_at.items()}
        return all(group.closed for group in self._groups)

    def close(self) -> Aggregated:
        """Decode what is open, and average the groups as the policy says."""
        self._decode(last=True)
        reports = tuple(group.report for group in self._groups)
        failed = [report for report in reports if not report.decoded]
        policy = self._run.config.on_group_failure
        for report in failed:
            self._log_failure(report)
        direction = None if failed and policy != "exclude" else self._average()
        return Aggregated(
            direction=direction,
            groups=reports,
            bytes_in=sum(group.bytes_in for group in self._groups),
            unreached=_in_all(report.unreached for report in reports if report.decoded),
        )

    def _average(self) -> torch.Tensor | None:
        """Return the weighted mean of the groups' gradients, if there is one: infinite buffers may cancel in it."""
        if self._sum is None:
            return None
        average = self._sum.div_(self._sum_of_weights)
        if not self._run.model.is_usable(average):
            logger.error("No step in round %d: the sum of the groups' gradients holds NaN or inf.", self._round)
            return None
        return average

    def _tasks(self, places: Collection[Place], arrays: ArrayRecord | None = None) -> dict[Place, Message]:
        run, messages = self._run, {}
        ids = {place: self._groups[place[0]].nodes[place[1]] for place in places}
        models = run.sender.records([node_id for node_id in ids.values() if node_id is not None], arrays)
        for group, slot in sorted(places):
            node_id = ids[group, slot]
            if node_id is not None:
                task = SolonTask.of_run(
                    *(run.config, self._round),
                    group=group,
                    slot=slot,
                    dim=run.model.dim,
                    buffers=run.model.buffers,
                )
                self._sent[group, slot] = self._asked_at[group] = time.monotonic()
                messages[group, slot] = task.to_message(models[node_id], self._train_config, node_id, run.timeout)
        return messages

    def _decode(self, *, last: bool) -> None:
        """Decode the groups that can be, and add their gradients up in the order of the groups.

        So the sum does not depend on who answers first, not even by rounding. What waits for its turn takes no more
        memory than the shares that it was made of.
        """
        for group in self._groups:
            gradient = group.decode(last=last)
            if gradient is not None:
                self._gradients[group.group] = gradient
        while self._next_group < len(self._groups) and self._groups[self._next_group].closed:
            gradient, weight = self._gradients.pop(self._next_group, None), self._weights[self._next_group]
            self._next_group += 1
            if gradient is None:
                continue
            self._sum = gradient.mul_(weight) if self._sum is None else self._sum.add_(gradient, alpha=weight)
            self._sum_of_weights += weight

    def _log_failure(self, report: GroupReport) -> None:
        if self._run.has_diverged(report):
            logger.error("Group %d failed: %s.", report.group, DIVERGED)
            return
        malformed = list(report.malformed_nodes.items())
        reasons = "; ".join(f"node {self._run.label(node)}: {reason}" for node, reason in malformed[:3])
        logger.error(
            "Group %d failed (%s%s): %d silent, %d malformed%s. Either more nodes lie or are missing than configured, "
            "or the nodes of the group do not compute the same, %s. %s Policy: %s.",
            report.group,
            report.status,
            "".join(f", {name}" for name in report.failed_classes),
            len(report.silent_nodes),
            len(report.malformed_nodes),
            f" ({reasons})" if reasons else "",
            NEEDS_EQUAL_BITS if self._run.config.code == "exact" else ABOVE_RTOL,
            WHY_HONEST_NODES_DIFFER,
            self._run.config.on_group_failure,
        )


def _in_all(groups: Iterable[Collection[str]]) -> frozenset[str]:
    """Return the names that all groups have."""
    sets = [frozenset(names) for names in groups]
    return sets[0].intersection(*sets[1:]) if sets else frozenset()


def _log_calibration(found: Calibration) -> None:
    """Log what was measured; of the nodes, list only those that are outlying, malformed or silent."""
    logger.info("\tcalibrated: %s", found.finding)
    for node_id in (*found.outliers, *found.malformed, *found.silent):
        logger.info("\t\tnode %s: %s", found.labels[node_id], found.of_node(node_id))
    for warning in found.warnings:
        logger.warning("%s", warning)
