"""One group in one round: from its nodes' replies to a gradient, or a clear failure."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Message
from torch import Tensor

from solon_fl.coding import Decoded, Decoder, DecodeStatus
from solon_fl.coding.sections import Sections
from solon_fl.strategies.hearing import Findings, hear
from solon_fl.strategies.replies import Unusable, read_all, read_loss, read_share, read_unreached
from solon_fl.strategies.reports import NOT_FINITE, Asked, GroupReport, RefereeReport

__all__ = ["GroupRound"]

FloatArray = npt.NDArray[np.float64]
logger = logging.getLogger("flwr")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a decode came to; `different` are slots whose share is no lie, but whose bits or digests are others.

    If `odd`, most honest nodes have the same ones.
    """

    decoded: Decoded
    different: frozenset[int] = frozenset()
    odd: bool = False


@dataclass(kw_only=True)
class GroupRound:
    """Collects the replies of one group and decodes them as soon as the outcome is certain.

    Attributes
    ----------
    group : int
        Its number.
    nodes : tuple of (int or None)
        Node ids by slot; None where there is none to ask.
    resting : set of int
        Slots of nodes that have no task unless the others turn out not to be enough.
    also : mapping from int to tuple of int
        Empty slots whose shares nodes in other slots send, by these. They compute nothing more for it.
    denied : set of int
        Those of them that have one only if, with the others at rest, there are still not enough.
    byzantine : int
        Liars that there may be among the nodes.
    decoder : Decoder
        Of the run.
    sections : Sections
        The model's tensors; the result is padded as they are.
    dtype : torch.dtype
        Of the shares.
    enough : int
        Shares that can make a result precise, if more than k + s: with fewer none is tried until it is late.
    early_error : float
        Largest error bound, by the norm in each class of tensors, of a result that is taken before it is late.
    parameters : collection of str
        Names that nodes may say have no gradient; what they say of others is not kept.
    noise_only : set of int
        Numbers of tensors that are known to be nothing but noise, of the run: where honest nodes disagree by as much as
        the tensor's size. Results that leave others unexplained are not taken before it is late.
    projection : torch.Generator or None
        Makes the projection reproducible, for simulation; None draws fresh entropy.
    label : callable
        What the log calls a node, by its id.
    is_usable : callable
        Whether a gradient may be stepped with: one that holds NaN or inf is not.
    explain : callable
        Called with the id of a node whose reply can't be used, and why.
    audit : callable or None
        Whether the referee is to look although all is well, once the shares are there; None if there is no referee.
    settled : collection of int
        Ids of nodes that the referee has acquitted: as suspects they are no reason to ask it again.
    unheard : set of int
        Slots of nodes that have not answered in the last rounds, and are not waited for.
    rtol : float
        Of the run.
    needs_equal_bits : bool
        Whether honest nodes compute the same bits.
    question : str or None
        Why the referee must be asked before the group can be closed; None if it need not.
    bytes_in : int
        Bytes of what was received.
    """

    group: int
    nodes: tuple[int | None, ...]
    byzantine: int
    decoder: Decoder
    sections: Sections
    dtype: torch.dtype
    enough: int = 0
    early_error: float = math.inf
    parameters: Collection[str] = frozenset()
    noise_only: set[int] = field(default_factory=set)
    projection: torch.Generator | None = None
    label: Callable[[int], str] = str
    explain: Callable[[int, Unusable], None] = lambda node_id, unusable: None
    is_usable: Callable[[Tensor], bool] = lambda gradient: True
    audit: Callable[[], bool] | None = None
    settled: Collection[int] = frozenset()
    unheard: set[int] = field(default_factory=set)
    rtol: float = 0.0
    needs_equal_bits: bool = False
    question: Asked | None = None
    resting: set[int] = field(default_factory=set)
    denied: set[int] = field(default_factory=set)
    also: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    bytes_in: int = 0
    _shares: dict[int, Tensor] = field(default_factory=dict)
    _losses: dict[int, float] = field(default_factory=dict)  # as reported: nothing protects them
    _unreached: dict[int, frozenset[str]] = field(default_factory=dict)  # parameters, as each says
    _malformed: dict[int, str] = field(default_factory=dict)
    _gone: set[int] = field(default_factory=set)  # slots of nodes that the SuperLink could not reach in time
    _first: list[int] = field(default_factory=list)  # slots asked before the others were woken
    _missing: set[int] = field(default_factory=set)  # those of them that had sent no share by then
    _exhausted: bool = False  # whether all who were asked have answered, and it was not enough
    _report: GroupReport | None = None  # None while the group is open
    _late: bool = False  # whether more shares are no longer waited for if k + s agree
    _tried: tuple[int, bool] = (0, False)  # number of shares, and whether it was late, in the latest decode
    _held: Outcome | None = None  # what stands if the referee does not answer

    def __post_init__(self) -> None:
        self._memory = self.decoder.new_memory(self.projection)

    @property
    def closed(self) -> bool:
        """Whether the outcome is fixed."""
        return self._report is not None

    @property
    def report(self) -> GroupReport:
        """The outcome.

        Raises
        ------
        RuntimeError
            If the group is still open.
        """
        if self._report is None:
            raise RuntimeError(f"group {self.group} is still open")
        return self._report

    @property
    def asked(self) -> list[int]:
        """Slots of the nodes that have a task."""
        return [slot for slot, node in enumerate(self.nodes) if node is not None and slot not in self.resting]

    def wake(self, late: bool) -> list[int]:
        """Return the slots of resting nodes that have to be asked now, if any; `late` if it is no use to wait."""
        if self.closed or not self.resting:
            self._late = self._late or late
            return []
        if not (self._exhausted or late):
            return []
        woken = sorted(self.resting - self.denied) or sorted(self.resting)
        logger.warning(
            "Group %d: what %d of %d nodes sent is not enough, or does not agree; %d other nodes are asked too.",
            *(self.group, len(self._shares), len(self.asked), len(woken)),
        )
        if not self._first:
            self._first = self.asked
            self._missing = set(self._first) - self._shares.keys()
        self.resting -= set(woken)
        self._exhausted = False
        return woken

    @property
    def num_needed(self) -> int:
        """Nodes without which there is nothing to decode."""
        return self.decoder.code.compression + self.byzantine

    @property
    def is_due(self) -> bool:
        """Whether the referee may be asked: nobody is waited for any more."""
        return self.audit is not None and self._late and not self.resting

    def settle(self, vector: Tensor, unreached: Collection[str], seconds: float) -> Tensor | None:
        """Close the group by what the referee computed, as `decode` would.

        Parameters
        ----------
        vector : Tensor, (k m,)
            The group's gradient.
        unreached : collection of str
            Parameters that no loss depends on.
        seconds : float
            That it took.
        """
        assert self.question is not None
        assert self._held is not None
        held, group_size = self._held.decoded, self.decoder.code.group_size
        if not self.is_usable(vector):
            return self._close(Outcome(Decoded.failed(DecodeStatus.DIVERGED)), self._asked_referee(seconds))
        findings = self._findings(vector, held, set(unreached))
        if findings.odd_referee:
            logger.warning(
                "Group %d: the referee computes other bits than the nodes, so that only what is far from its own is "
                "held to be a lie; give it their hardware and software, or use code='fourier' without digests.",
                self.group,
            )
        convicted = self._ids(findings.wrong)
        acquitted = tuple(node for node in self._ids(held.suspect_slots) if node not in convicted)
        asked = replace(self._asked_referee(seconds), convicted=convicted, acquitted=acquitted)
        if held.ok and not findings.wrong and not held.suspect_slots:
            return self._close(self._held, asked, unreached)
        found = Decoded(
            gradient=vector,
            status=DecodeStatus.CORRECTED if findings.wrong else DecodeStatus.CLEAN,
            corrupt_slots=tuple(sorted(findings.lies)),
            suspect_slots=(),
            different_slots=tuple(sorted(findings.different)),
            erased_slots=tuple(sorted(findings.not_finite | set(range(group_size)) - self._shares.keys())),
            residual=0.0,
            tolerance=0.0,
            error_bound=0.0,
            num_agreeing=len(self._shares.keys() - findings.wrong),
        )
        return self._close(Outcome(found), asked, unreached)

    def _findings(self, vector: Tensor, held: Decoded, unreached: set[str]) -> Findings:
        """Return what the referee's vector says of the shares, and of all else that nodes sent."""
        agreeing = self._shares.keys() - {*held.corrupt_slots, *held.suspect_slots, *held.different_slots}
        otherwise_wrong = {slot for slot, names in self._unreached.items() if names != unreached & set(self.parameters)}
        return hear(
            self._shares,
            vector,
            code=self.decoder.code,
            sections=self.sections,
            rtol=self.rtol,
            byzantine=self.byzantine,
            agreed=None if held.gradient is None else (held.gradient, agreeing),
            otherwise_wrong=otherwise_wrong | self._wrong_digests(vector) if self.needs_equal_bits else None,
        )

    def _wrong_digests(self, vector: Tensor) -> set[int]:
        """Return the slots of nodes that sent other digests than the vector's."""
        return set()

    def _asked_referee(self, seconds: float) -> RefereeReport:
        assert self.question is not None
        return RefereeReport(reason=self.question, answered=True, seconds=seconds)

    def give_up(self) -> Tensor | None:
        """Close the group without the referee, which has not answered in time."""
        assert self.question is not None
        assert self._held is not None
        return self._close(self._held, RefereeReport(reason=self.question, answered=False))

    def let_rest(self, slot: int) -> None:
        """Do without a node that was asked and lacks the model, unless all others turn out not to be enough."""
        if not self.closed:
            self.resting.add(slot)
            self.denied.add(slot)

    def receive(self, replies: dict[int, Message]) -> None:
        """Take replies by slot, out of the dict; whatever is in them, nothing is raised.

        The first reply of a slot counts.
        """
        for slot in self._known_slots() & replies.keys():
            del replies[slot]
        losses = {slot: read_loss(reply) for slot, reply in replies.items()}
        self._losses |= {slot: loss for slot, loss in losses.items() if loss is not None}
        told = {slot: read_unreached(reply) for slot, reply in replies.items() if not reply.has_error()}
        self._unreached |= {slot: names.intersection(self.parameters) for slot, names in told.items()}
        self._take(replies)

    def _known_slots(self) -> set[int]:
        """Return the slots of which no reply is wanted any more."""
        slots = range(len(self.nodes))
        done = {slot for slot in slots if self.nodes[slot] is None or self.nodes[slot] in self._malformed}
        return set(slots) if self.closed else done | self._shares.keys() | self._gone

    def decode(self, *, last: bool) -> Tensor | None:
        """Decode if nothing that may still come can change the result, or if nothing will come (`last`).

        k of k + s shares that agree are honest, and fix the gradient. With fewer that agree, s liars could have made it
        up if more than e honest nodes are missing: such a result is not taken, and the group fails.

        How precisely k + s shares fix it is another question: if the k are badly conditioned, liars who stay below the
        tolerance can move it, and in small tensors they can do as they like. So before it is late, only results within
        `early_error` are taken, and only those that leave no disagreement in a tensor unexplained. Nor is a group
        closed before that while liars may have made up which parameters have no gradient, or hidden it.

        Returns
        -------
        Tensor or None, (k m,)
            The gradient, once: in the call that closes the group, if it could be decoded.
        """
        if self.closed or self.question not in (None, "shares missing"):
            return None
        self.question = None
        return self._try_to_decode(last or self.is_due)

    def _take(self, replies: dict[int, Message]) -> None:
        """Read replies, and keep what they hold."""
        reader = partial(read_share, length=self.sections.num_columns, dtype=self.dtype)
        for slot, share in read_all(replies, reader).items():
            if isinstance(share, Unusable):
                self._refuse(slot, share)
            else:
                self._keep(slot, share)

    def _keep(self, slot: int, share: Tensor) -> None:
        self._shares[slot] = share
        self.bytes_in += share.numel() * share.element_size()

    def _refuse(self, slot: int, unusable: Unusable) -> None:
        node_id = self.nodes[slot]
        if unusable.silence:
            self._gone.add(slot)
        elif node_id is not None:
            self._malformed[node_id] = unusable.reason
            logger.warning("Node %s (group %d): not a share: %s", self.label(node_id), self.group, unusable.reason)
            self.explain(node_id, unusable)

    @property
    def _all_here(self) -> bool:
        malformed = {slot for slot, node_id in enumerate(self.nodes) if node_id in self._malformed}
        return self.unheard.union(self._shares, malformed, self._gone).issuperset(self.asked)

    def _try_to_decode(self, last: bool) -> Tensor | None:
        needed = self.decoder.code.compression + self.byzantine
        all_here = self._all_here
        last = last or (all_here and not self.resting)
        self._exhausted = all_here
        first = needed if self._late or all_here else max(needed, self.enough)
        if not last and (len(self._shares) < first or self._tried == (len(self._shares), self._late)):
            return None
        self._tried = len(self._shares), self._late
        decoded = self.decoder.decode(
            self._shares, sections=self.sections, last=last, needed=needed, memory=self._memory
        )
        trusted = decoded.num_agreeing >= needed
        if not (last or (trusted and (self._late or (self._is_precise(decoded) and self._votes_are_clear)))):
            return None
        if len(self._shares) >= needed + self.byzantine:  # enough to locate s liars, so that it is none
            self.noise_only.update(decoded.odd_tensors)
        if not trusted and decoded.ok:
            # Within the code's budget, but with this many nodes missing, s liars could have made it up.
            decoded = Decoded.failed(DecodeStatus.TOO_FEW_SHARES, decoded.erased_slots)
        return self._conclude(Outcome(decoded))

    def _conclude(self, outcome: Outcome) -> Tensor | None:
        """Close the group, unless the referee must be asked first."""
        self.question = self._reason_to_ask(outcome.decoded)
        if self.question is None:
            return self._close(outcome)
        self._held = outcome
        return None

    def _reason_to_ask(self, decoded: Decoded) -> Asked | None:
        if self.audit is None or decoded.status is DecodeStatus.DIVERGED:
            return None
        if not decoded.ok:
            return "shares disagree" if len(self._shares) >= self.num_needed else "shares missing"
        if set(self._ids(decoded.suspect_slots)) - set(self.settled):
            return "suspects"
        if not self._votes_are_clear:
            return "unclear which parameters have gradients"
        return "audit" if self.audit() else None

    def _is_precise(self, decoded: Decoded) -> bool:
        """Whether more shares would not make the result better, or tell more about liars in single tensors."""
        return decoded.relative_error <= self.early_error and self.noise_only.issuperset(decoded.odd_tensors)

    @property
    def _votes_are_clear(self) -> bool:
        """Whether some honest node is known to say of each parameter that it has a gradient, or that it has none."""
        voters = len(self._unreached)
        return all(max(count, voters - count) > self.byzantine for count in self._without_gradient.values())

    @property
    def _without_gradient(self) -> Counter[str]:
        """How many nodes say of a parameter that no loss depends on it."""
        return Counter(name for names in self._unreached.values() for name in names)

    @property
    def _elected_unreached(self) -> set[str]:
        """Parameters without a gradient, as more than s nodes say."""
        return {name for name, count in self._without_gradient.items() if count > self.byzantine}

    @property
    def _false_voters(self) -> set[int]:
        """Slots of nodes that say of a parameter what more than s others deny."""
        voters, counts = len(self._unreached), self._without_gradient
        without = {name for name, count in counts.items() if count > self.byzantine}
        having = {name for name, count in counts.items() if voters - count > self.byzantine}
        has, lacks = having - without, without - having  # both: honest nodes disagree
        return {slot for slot, names in self._unreached.items() if names & has or lacks - names}

    def _close(
        self, outcome: Outcome, referee: RefereeReport | None = None, unreached: Collection[str] | None = None
    ) -> Tensor | None:
        """Fix the outcome, which the referee may have found, with the parameters that no loss depends on.

        Suspects and nodes that may be of the most common make are never held to have been the reason why nodes at rest
        were asked: liars could choose them.
        """
        decoded, different = outcome.decoded, outcome.different
        if decoded.gradient is not None and not self.is_usable(decoded.gradient):
            decoded, different = Decoded.failed(DecodeStatus.DIVERGED), frozenset()
        not_finite = set(decoded.erased_slots) & self._shares.keys()
        malformed = self._malformed | dict.fromkeys(self._ids(not_finite), NOT_FINITE)
        answered = {*self._ids(self._shares), *malformed}
        wrong = {*decoded.corrupt_slots, *decoded.different_slots, *not_finite}
        to_blame = wrong | self._false_voters | set(different if outcome.odd else ())
        trusted = self._shares.keys() - wrong - set(decoded.suspect_slots)
        losses = {slot: loss for slot, loss in sorted(self._losses.items()) if slot in trusted}
        self._report = GroupReport(
            group=self.group,
            nodes=tuple(None if slot in self.resting else node_id for slot, node_id in enumerate(self.nodes)),
            escalated=bool(self._first),
            escalated_by=self._ids(self._missing | (to_blame & set(self._first))),
            different_bits=self._ids({*different, *decoded.different_slots}),
            status=decoded.status.value,
            corrupt_nodes=self._ids(decoded.corrupt_slots),
            suspect_nodes=self._ids(decoded.suspect_slots),
            silent_nodes=tuple(n for n in self._ids(self.asked) if n not in answered),
            malformed_nodes=malformed,
            residual=decoded.residual,
            tolerance=decoded.tolerance,
            error_bound=decoded.error_bound,
            classes=decoded.classes,
            failed_classes=decoded.failed_classes,
            unreached=tuple(sorted(self._elected_unreached if unreached is None else unreached)),
            losses=dict(zip(self._ids(losses), losses.values(), strict=True)),
            referee=referee,
        )
        self._shares.clear()
        self._held = self.question = None
        return decoded.gradient

    def _ids(self, slots: Iterable[int]) -> tuple[int, ...]:
        """Return the ids of the nodes that sent, or were to send, the shares of these slots."""
        ids = (self.nodes[self._sender_of(slot)] for slot in sorted(slots))
        return tuple(dict.fromkeys(node_id for node_id in ids if node_id is not None))

    def _sender_of(self, slot: int) -> int:
        """Return the slot of the node that sends a slot's share."""
        return next((sender for sender, slots in self.also.items() if slot in slots), slot)
