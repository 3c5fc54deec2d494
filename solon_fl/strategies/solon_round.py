"""One round of Solon's strategy: sends tasks, takes the replies, and averages the gradients of the groups."""

import logging
import math
import time
from collections.abc import Collection, Iterable
from typing import Protocol

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message

from solon_fl.config import SolonConfig
from solon_fl.strategies.downlink import ModelSender
from solon_fl.strategies.failing import log_failure
from solon_fl.strategies.group import GroupRound
from solon_fl.strategies.ledger import Place
from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.patience import Patience
from solon_fl.strategies.referee import LocalReferee, Referee, read_answer, task_of_referee
from solon_fl.strategies.replies import is_silence
from solon_fl.strategies.roster import Roster
from solon_fl.strategies.rounds import Aggregated, Round
from solon_fl.task import ARRAYS, SolonTask

__all__ = ["SolonRound"]

logger = logging.getLogger("flwr")


class Shared(Protocol):
    """What a round needs from its run; see `SolonRun`."""

    config: SolonConfig
    model: ServerModel
    sender: ModelSender
    patience: Patience
    timeout: float | None
    referee: Referee | None
    roster: Roster

    def label(self, node_id: int) -> str:
        """Return the node's name in the log."""


class SolonRound(Round[Place]):
    """One round of a run. The key of a message is its node's place, (group, slot)."""

    def __init__(self, run: Shared, server_round: int, train_config: ConfigRecord, groups: list[GroupRound]) -> None:
        self._run = run
        self._round = server_round
        self._train_config = train_config
        self._groups = groups
        self._weights = run.config.group_weights or (1.0,) * len(groups)
        self._gradients: dict[int, torch.Tensor] = {}  # gradients of groups that have not been added yet
        self._next_group = 0
        self._sum: torch.Tensor | None = None  # weighted sum of the gradients so far
        self._sum_of_weights = 0.0
        self._sent: dict[Place, float] = {}  # when each node was asked
        self._asked_at: dict[int, float] = {}  # when nodes of each group were last asked, plus the server's busy time
        self._began = time.monotonic()
        self._looked = 0.0  # when the latest replies arrived
        self._questions: dict[Place, int] = {}  # ids of trusted nodes asked; the slots in their keys are negative
        self._bytes_of_referee = 0  # bytes that trusted nodes sent
        self._asked_referee: dict[int, float] = {}  # when the referee was first asked about each group

    def messages(self, arrays: ArrayRecord) -> dict[Place, Message]:
        """Return one message per node, with the shared model and the node's own config and task."""
        return self._tasks([(group.group, slot) for group in self._groups for slot in group.asked], arrays)

    def again(self, keys: Collection[Place]) -> dict[Place, Message]:
        """See `Round.again`. Nodes that needed the whole model too often rest until their group needs them."""
        to_referees = self._to_referees([key for key in keys if key in self._questions])
        keys = [key for key in keys if key not in self._questions]
        ids = {key: self._groups[key[0]].nodes[key[1]] for key in keys}
        denied = self._run.sender.denied([node_id for node_id in ids.values() if node_id is not None])
        for group, slot in keys:
            if ids[group, slot] in denied:
                self._groups[group].let_rest(slot)
        self._decode(last=False)
        asked = [key for key in keys if ids[key] not in denied and not self._groups[key[0]].closed]
        return self._tasks(asked) | to_referees

    def follow_up(self, late: bool) -> dict[Place, Message]:
        """Wake resting nodes of groups that need them, or ask the referee. Each group has its own patience."""
        may_wait = self._run.referee is not None or any(group.resting for group in self._groups)
        patience = self.patience() if may_wait else math.inf
        timeout = math.inf if self._run.timeout is None or self._run.referee is None else self._run.timeout
        half_over = time.monotonic() - self._began >= timeout / 2  # regardless of messages sent since
        places = []
        for group in self._groups:
            is_late = late or half_over or self._looked - self._asked_at.get(group.group, math.inf) >= patience
            places += [(group.group, slot) for slot in group.wake(is_late)]
        messages = self._tasks(places) if places else {}
        if self._run.referee is not None:
            self._decode(last=False)
            messages |= self._further_questions(late)
        return messages

    def _further_questions(self, late: bool) -> dict[Place, Message]:
        """Return messages to trusted nodes, if they are the referees: one per group, the next when it is late."""
        if isinstance(self._run.referee, LocalReferee):
            return {}
        keys = []
        for group in self._groups:
            asked = sum(key[0] == group.group for key in self._questions)
            if group.question is None or (asked and not late):
                continue
            referees = self._run.roster.referees_of(group.group)
            if asked >= len(referees):
                continue
            key = (group.group, -1 - asked)
            self._questions[key] = referees[asked]
            self._asked_referee.setdefault(group.group, time.monotonic())
            keys.append(key)
        return self._to_referees(keys)

    def _to_referees(self, keys: Collection[Place]) -> dict[Place, Message]:
        """Return the questions of these keys as messages."""
        run, ids = self._run, {key: self._questions[key] for key in keys}
        models = run.sender.records(ids.values()) if ids else {}
        return {
            key: self._task_of_referee(key[0]).to_message(models[node_id], self._train_config, node_id, run.timeout)
            for key, node_id in ids.items()
        }

    def _task_of_referee(self, group: int) -> SolonTask:
        run = self._run
        return task_of_referee(
            SolonTask.of_run(
                *(run.config, self._round), group=group, slot=0, dim=run.model.dim, buffers=run.model.buffers
            )
        )

    def _settled_here(self, group: GroupRound) -> torch.Tensor | None:
        """Let a referee in this process settle a group; return the group's gradient."""
        run, started = self._run, time.monotonic()
        if not isinstance(run.referee, LocalReferee):
            return None
        message = self._task_of_referee(group.group).to_message(
            {ARRAYS: run.sender.as_nodes_have_it()}, self._train_config, 0, run.timeout
        )
        return self._settled(group, run.referee.compute(message, run.roster.silo_of(group.group)), started)

    def _settled(self, group: GroupRound, reply: Message, started: float) -> torch.Tensor | None:
        """Settle a group by a referee's reply; return the group's gradient, or None if it is not an answer."""
        model = self._run.model
        answer = read_answer(reply, model.dim, model.vector.dtype)
        if answer is None:
            return None
        if not isinstance(self._run.referee, LocalReferee):
            self._bytes_of_referee += answer.vector.numel() * answer.vector.element_size()
        return group.settle(model.as_direction(answer.vector), answer.unreached, time.monotonic() - started)

    def patience(self) -> float:
        """See `Patience`."""
        ids = [node_id for group in self._groups for node_id in group.nodes]
        return self._run.patience.seconds([node_id for node_id in ids if node_id is not None])

    def receive(self, batch: list[tuple[Place, Message]]) -> bool:
        """Take replies that arrived together; return whether every group's outcome is certain."""
        now = self._looked = time.monotonic()
        by_group: dict[int, dict[int, Message]] = {}
        answers = []
        while batch:  # emptied, so that a group's shares are freed once it is decoded
            (group, slot), reply = batch.pop(0)
            if (group, slot) in self._questions:
                answers.append((group, reply))
                continue
            node_id = self._groups[group].nodes[slot]
            if node_id is not None and not (reply.has_error() and is_silence(reply)):
                self._run.patience.record(node_id, now - self._sent[group, slot])
            by_group.setdefault(group, {}).setdefault(slot, reply)
            del reply
        for group, replies in by_group.items():
            self._groups[group].receive(replies)
        for group, reply in answers:
            if self._groups[group].question is not None:
                self._add(group, self._settled(self._groups[group], reply, self._asked_referee[group]))
        self._decode(last=False)
        busy = time.monotonic() - now
        self._asked_at = {group: asked_at + busy for group, asked_at in self._asked_at.items()}
        return all(group.closed for group in self._groups)

    def close(self) -> Aggregated:
        """Decode the groups that are still open, and average the groups as the policy says."""
        self._decode(last=True)
        reports = tuple(group.report for group in self._groups)
        failed = [report for report in reports if not report.decoded]
        policy = self._run.config.on_group_failure
        for report in failed:
            log_failure(report, self._run.config, self._run.label)
        direction = None if failed and policy != "exclude" else self._average()
        return Aggregated(
            direction=direction,
            groups=reports,
            bytes_in=sum(group.bytes_in for group in self._groups) + self._bytes_of_referee,
            unreached=_in_all(report.unreached for report in reports if report.decoded),
        )

    def _average(self) -> torch.Tensor | None:
        """Return the weighted mean of the groups' gradients; None if there is none, or it is not usable.

        Infinite buffers of different groups may cancel to NaN.
        """
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
                    also=self._groups[group].also.get(slot, ()),
                )
                self._sent[group, slot] = self._asked_at[group] = time.monotonic()
                messages[group, slot] = task.to_message(models[node_id], self._train_config, node_id, run.timeout)
        return messages

    def _add(self, group: int, gradient: torch.Tensor | None) -> None:
        """Keep a group's gradient, if there is one, until its turn."""
        if gradient is not None:
            self._gradients[group] = gradient

    def _decode(self, *, last: bool) -> None:
        """Decode the groups that are ready, and add up their gradients in the order of the groups.

        The sum then does not depend on which nodes reply first, not even in its rounding. A gradient that waits for its
        turn takes no more memory than the shares it was made of.
        """
        for group in self._groups:
            self._add(group.group, group.decode(last=last))
            if group.question is not None:
                self._add(group.group, self._settled_here(group))
            if group.question is not None and last and not group.closed:
                logger.error("Group %d: the referee was asked (%s) but has not answered.", group.group, group.question)
                self._add(group.group, group.give_up())
        while self._next_group < len(self._groups) and self._groups[self._next_group].closed:
            gradient, weight = self._gradients.pop(self._next_group, None), self._weights[self._next_group]
            self._next_group += 1
            if gradient is None:
                continue
            self._sum = gradient.mul_(weight) if self._sum is None else self._sum.add_(gradient, alpha=weight)
            self._sum_of_weights += weight


def _in_all(groups: Iterable[Collection[str]]) -> frozenset[str]:
    """Return the names that all groups have."""
    sets = [frozenset(names) for names in groups]
    return sets[0].intersection(*sets[1:]) if sets else frozenset()
