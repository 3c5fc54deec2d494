"""One training run of Solon's strategy: its nodes and groups, round by round."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from solon_fl.config import EARLY_ERROR, SolonConfig
from solon_fl.errors import GroupFailedError, RefereeError
from solon_fl.strategies.calibrated import Calibration
from solon_fl.strategies.calibration import measure
from solon_fl.strategies.digest_group import DigestGroupRound
from solon_fl.strategies.failing import failed_for_good, why_none
from solon_fl.strategies.group import GroupRound
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.patience import Patience
from solon_fl.strategies.referee import LocalReferee, Referee, TrustedNodes, ask_trusted, read_answer, task_of_referee
from solon_fl.strategies.replies import Unusable
from solon_fl.strategies.reports import RoundReport
from solon_fl.strategies.roster import Roster
from solon_fl.strategies.rounds import Run
from solon_fl.strategies.solon_round import SolonRound
from solon_fl.task import ARRAYS, SolonTask, digest_key

__all__ = ["SolonRun"]

MOST_SILENCES = 3  # silent rounds in a row after which a group with a referee no longer waits for a node
MOST_FAILURES_SHOWN = 5  # kinds of failures logged in detail per run: liars can make up any number
logger = logging.getLogger("flwr")


class SolonRun(Run):
    """The state of a run; see `SolonStrategy` for the parameters.

    Attributes
    ----------
    config : SolonConfig
        The run's configuration; after a calibration, with the rtol in use.
    roster : Roster
        The nodes' places and their ledger.
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
        referee: Referee | None = None,
    ) -> None:
        super().__init__(model, timeout, config.downlink)
        self.num_batches = config.batches_per_group
        self.config = config
        self.referee = referee
        self.roster = Roster(config, seed, referee.names if isinstance(referee, TrustedNodes) else ())
        self.projection = None if seed is None else torch.Generator().manual_seed(seed)
        self._follows_up = follows_up
        self._calibrate = calibrate
        self._told: set[int] = set()  # ids of nodes with different bits that have been logged
        self._shown: set[str] = set()  # reasons of failed nodes that have been logged in detail
        self.patience = Patience()
        self._sections = model.sections
        self._noise_only: set[int] = set()  # numbers of tensors
        self._like_referee: set[int] = set()  # see `GroupRound.alike`
        self._silences: Counter[int | None] = Counter()  # rounds in a row without a reply, by node id

    def prepare(self, grid: Grid, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """Check that the referee works, and raise rtol above the nodes' float noise if asked to."""
        if self.referee is not None:
            self._try_referee(grid, arrays, config)
        if not self._calibrate:
            return
        try:
            found = measure(
                *(grid, self.roster, self.model, arrays, self.config),
                rounds=1,
                train_config=config,
                timeout=self.timeout,
                liars=self.config.byzantine,
                referee=self.referee,
            )
        except GroupFailedError as error:  # a failing node must not end a run that can do without it
            logger.warning("rtol stays %g, as it could not be calibrated: %s", self.config.rtol, error)
            return
        _log_calibration(found)
        self._raise_rtol(found.rtol, "\trtol is raised from %g to %g for this run.", self.config.rtol, found.rtol)

    def _try_referee(self, grid: Grid, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """Let the referee compute one batch, so that a broken one is found before it is needed."""
        self.roster.update(grid, self.timeout, server_round=0)
        task = SolonTask.of_run(self.config, 1, group=0, slot=0, dim=self.model.dim, buffers=self.model.buffers)
        message_of = partial(
            replace(task_of_referee(task), num_batches=1).to_message,
            {ARRAYS: arrays},
            config,
            timeout=self.timeout,
        )
        if isinstance(self.referee, LocalReferee):
            replies = [self.referee.compute(message_of(0), self.roster.silo_of(0))]
        else:
            assert isinstance(self.referee, TrustedNodes)
            replies = ask_trusted(grid, self.roster.referees, message_of, self.timeout)
            if not replies:
                here = "is connected" if not self.roster.referees else "answered within the timeout"
                raise RefereeError(
                    f"a trusted node must answer before the run begins; none of {list(self.referee.names)} {here}; "
                    "start one, or correct the names."
                )
        for reply in replies:
            answer = read_answer(reply, self.model.dim, self.model.vector.dtype)
            if answer is not None and not self.model.is_usable(self.model.as_direction(answer.vector)):
                raise RefereeError(
                    "the referee's gradient of the first batch holds NaN or infinity; make sure that it has the nodes' "
                    "data, and that the loss is finite there."
                )

    def draws_audit(self) -> bool:
        """Draw whether the referee audits a group in which all is well."""
        if not self.config.audit:
            return False
        if self.projection is None:  # fresh entropy, so that nobody can predict audits
            return bool(np.random.default_rng().random() < self.config.audit)
        return bool(torch.rand((), generator=self.projection, device="cpu") < self.config.audit)

    def open_round(self, server_round: int, config: ConfigRecord, grid: Grid) -> SolonRound:
        """See `Run.open_round`."""
        self.roster.update(grid, self.timeout, server_round)
        groups = [self._open_group(server_round, group, nodes) for group, nodes in enumerate(self.roster.places)]
        return SolonRound(self, server_round, config, groups)

    def _open_group(self, server_round: int, group: int, nodes: tuple[int | None, ...]) -> GroupRound:
        config, denied = self.config, self._denied(nodes)
        convicted = 0 if self.referee is None else self.roster.num_convicted(group)
        if self.referee is not None and not any(node_id is not None for node_id in nodes):
            logger.warning("Group %d has no nodes left: the referee computes its gradient in this round.", group)
        liars_left = max(config.byzantine - convicted, 0)
        refereed: dict[str, Any] = {}
        if self.referee is not None:
            refereed = {
                "audit": self.draws_audit,
                "alike": self._like_referee,
                "settled": self.roster.acquitted(),
                "unheard": {slot for slot, node_id in enumerate(nodes) if self._silences[node_id] >= MOST_SILENCES},
                "also": self._further_slots(nodes),
            }
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
            resting=self._resting(nodes, denied, convicted) | denied,
            denied=denied,
            byzantine=liars_left,
            rtol=config.rtol,
            needs_equal_bits=config.needs_equal_bits,
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
            **refereed,
        )

    def _further_slots(self, nodes: tuple[int | None, ...]) -> dict[int, tuple[int, ...]]:
        """Return the empty slots whose shares each node also sends, if with digests fewer than k nodes are left.

        The digests reveal lies about these shares, too.
        """
        present = [slot for slot, node_id in enumerate(nodes) if node_id is not None]
        missing = self.config.compression - len(present)
        if self.config.verification != "digest" or missing <= 0 or not present:
            return {}
        empty = [slot for slot, node_id in enumerate(nodes) if node_id is None][:missing]
        return {slot: tuple(empty[number :: len(present)]) for number, slot in enumerate(present)}

    def _show_where(self, node_id: int, unusable: Unusable) -> None:
        """Log where a node's program failed, once for each reason."""
        if unusable.where and unusable.reason not in self._shown and len(self._shown) < MOST_FAILURES_SHOWN:
            self._shown.add(unusable.reason)
            lines = "".join(f"\n\t{line}" for line in unusable.where)
            logger.warning("Node %s says that it failed here (innermost call last):%s", self.label(node_id), lines)

    def _resting(self, nodes: tuple[int | None, ...], denied: set[int], convicted: int) -> set[int]:
        """Return the slots of nodes that rest at first.

        They are drawn at random, but nodes that are denied the model, away, or gave the most trouble rest first.
        """
        if self.config.redundancy == "full" or not self._follows_up:
            return set()
        present = {slot: node_id for slot, node_id in enumerate(nodes) if node_id is not None}
        if self.projection is None:  # fresh entropy, so that nobody can predict which nodes rest
            order = np.random.default_rng().permutation(len(present)).tolist()
        else:
            order = torch.randperm(len(present), generator=self.projection, device="cpu").tolist()
        slots = list(present)
        away = {record.node_id for record in self.roster.ledger.values() if record.state == "away"}
        trouble = {
            slot: (slot in denied, node_id in away, self.roster.troubles(node_id)) for slot, node_id in present.items()
        }
        drawn = sorted((slots[i] for i in order), key=trouble.__getitem__)
        return set(drawn[max(self.config.num_precise - convicted, self.config.compression) + self.config.stragglers :])

    def _denied(self, nodes: tuple[int | None, ...]) -> set[int]:
        """Return the slots of nodes that need the whole model too often, and can rest instead."""
        denied = self.sender.denied([node_id for node_id in nodes if node_id is not None])
        return {slot for slot, node_id in enumerate(nodes) if node_id in denied} if self._follows_up else set()

    def record(self, report: RoundReport) -> None:
        """Enter the report into the ledger; see `Run.record`."""
        self.roster.record(report)
        for number, asked in report.referee_reports.items():
            found = ", ".join(map(self.label, asked.convicted)) or "none"
            outcome = f"{asked.seconds:.2g} s, convicted: {found}" if asked.answered else "no answer in time"
            logger.info(
                "\tround %d: the referee was asked about group %d (%s): %s", report.round, number, asked.reason, outcome
            )
        for group in report.groups:
            silent = set(group.silent_nodes)
            for node_id in group.nodes:
                self._silences[node_id] = self._silences[node_id] + 1 if node_id in silent else 0
        different = {node for group in report.groups for node in group.different_bits} - self._told
        if different:
            self._told |= different
            harm = "As long as s + 1 nodes of each group agree, this does no harm."
            if self.config.code == "exact":
                harm = f"Each counts as one of the s = {self.config.byzantine} wrong shares that a group tolerates."
            logger.warning(
                "Nodes that compute different bits than their groups: %s. They lie, or have other hardware or "
                "software. %s",
                *(", ".join(self.label(node) for node in sorted(different)), harm),
            )
        if report.round == 1 and all(map(failed_for_good, report.groups)):
            raise GroupFailedError(
                "no group could be decoded in the first round, so there is nothing to train with: "
                f"{why_none(report, self.config)}"
            )
        if report.failed_groups and self.config.on_group_failure == "stop":
            raise GroupFailedError(
                f"round {report.round}: groups {list(report.failed_groups)} of {len(report.groups)} could not be "
                "decoded, and on_group_failure='stop'; see the log for the reasons."
            )

    def record_late(self, node_id: int) -> None:
        """See `Run.record_late`."""
        self._silences[node_id] = 0
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


def _log_calibration(found: Calibration) -> None:
    """Log the result. Lists only outlying, malformed and silent nodes."""
    logger.info("\tcalibrated: %s", found.finding)
    for node_id in (*found.outliers, *found.malformed, *found.silent):
        logger.info("\t\tnode %s: %s", found.labels[node_id], found.of_node(node_id))
    for warning in found.warnings:
        logger.warning("%s", warning)
