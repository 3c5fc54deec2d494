"""One group in one round: turns its nodes' replies into a gradient, or a clear failure."""

import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from solon_fl.coding import Decoded, Decoder, DecodeStatus, ExactCode
from solon_fl.errors import RefereeError
from solon_fl.strategies.hearing import Findings, hear
from solon_fl.strategies.inbox import GroupInbox
from solon_fl.strategies.reports import NOT_FINITE, Asked, GroupReport, RefereeReport

__all__ = ["GroupRound"]

FloatArray = npt.NDArray[np.float64]
FALSE_VOTE = "it contradicts the referee on whether some loss depends on a parameter"
logger = logging.getLogger("flwr")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a decode.

    `different` has the slots whose share is not a lie but whose bits or digests differ. If `odd`, the honest nodes
    among them differ from most honest nodes.
    """

    decoded: Decoded
    different: frozenset[int] = frozenset()
    odd: bool = False


@dataclass(kw_only=True)
class GroupRound(GroupInbox):
    """Decodes the shares of a group as soon as the outcome is certain.

    Attributes
    ----------
    decoder : Decoder
        The run's decoder.
    enough : int
        Number of shares that can make a result precise, if more than k + s. With fewer, no decode is tried until it is
        late.
    early_error : float
        Largest error bound, relative to the norm in each class of tensors, of a result that is accepted before it is
        late.
    noise_only : set of int
        Numbers of the tensors known to be pure noise in this run: honest nodes disagree by as much as the tensor's
        size. Results that leave other tensors unexplained are not accepted before it is late.
    projection : torch.Generator or None
        Makes the projection reproducible, for simulation; None draws fresh entropy.
    is_usable : callable
        Whether a step with a gradient is possible; not if it holds NaN or inf.
    audit : callable or None
        Whether to audit: to ask the referee although all is well, once the shares have arrived. None if there is no
        referee.
    settled : collection of int
        Ids of nodes that the referee has acquitted: if they are suspects again, the referee is not asked again.
    rtol : float
        The run's rtol.
    needs_equal_bits : bool
        Whether honest nodes compute the same bits.
    alike : set of int
        Ids of nodes that sent the same as the referee, over the whole run, in groups in which so many did that honest
        nodes were among them.
    question : str or None
        Why the referee must be asked before the group can be closed; None if it need not be.
    """

    decoder: Decoder
    enough: int = 0
    early_error: float = math.inf
    noise_only: set[int] = field(default_factory=set)
    projection: torch.Generator | None = None
    is_usable: Callable[[Tensor], bool] = lambda gradient: True
    audit: Callable[[], bool] | None = None
    settled: Collection[int] = frozenset()
    rtol: float = 0.0
    needs_equal_bits: bool = False
    alike: set[int] = field(default_factory=set)
    question: Asked | None = None
    _first: list[int] = field(default_factory=list)  # slots asked before the others were woken
    _missing: set[int] = field(default_factory=set)  # slots among them that had sent no share by then
    _exhausted: bool = False  # whether all nodes asked have replied, and that was not enough
    _report: GroupReport | None = None  # None while the group is open
    _late: bool = False  # whether to stop waiting for more shares once k + s agree
    _tried: tuple[int, bool] = (0, False)  # number of shares, and whether it was late, in the latest decode
    _held: Outcome | None = None  # the outcome if the referee does not answer

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

    def _known_slots(self) -> set[int]:
        """See `GroupInbox._known_slots`."""
        return set(range(len(self.nodes))) if self.closed else super()._known_slots()

    def wake(self, late: bool) -> list[int]:
        """Return the slots of resting nodes that must be asked now; `late` says that waiting longer is useless."""
        if self.closed or not self.resting:
            self._late = self._late or late
            return []
        if not (self._exhausted or late):
            return []
        woken = sorted(self.resting - self.denied) or sorted(self.resting)
        logger.warning(
            "Group %d: the shares of %d of %d nodes are not enough, or disagree; %d resting nodes are asked, too.",
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
        """Number of nodes needed to decode."""
        return self.decoder.code.compression + self.byzantine

    @property
    def is_due(self) -> bool:
        """Whether the referee may be asked, as no node is waited for any more."""
        return self.audit is not None and self._late and not self.resting

    def settle(self, vector: Tensor, unreached: Collection[str], seconds: float) -> Tensor | None:
        """Close the group by the referee's result, and return the gradient like `decode`.

        Parameters
        ----------
        vector : Tensor, (k m,)
            The group's gradient.
        unreached : collection of str
            Parameters that no loss depends on.
        seconds : float
            Time that the referee took.
        """
        assert self.question is not None
        assert self._held is not None
        held, group_size = self._held.decoded, self.decoder.code.group_size
        if not self.is_usable(vector):
            if held.ok:
                raise RefereeError(
                    f"the referee's gradient of group {self.group} holds NaN or infinity, but its nodes agree on one "
                    "that does not; the referee must run the nodes' program with the same data and the same versions."
                )
            return self._close(Outcome(Decoded.failed(DecodeStatus.DIVERGED)), self._asked_referee(seconds))
        false_voters = self._unlike(set(unreached))
        findings = self._findings(vector, held, false_voters)
        if len(findings.right) > self.byzantine and not findings.odd_referee:
            self.alike.update(self._ids(findings.right))
        if findings.odd_referee:
            logger.warning(
                "Group %d: its nodes do not agree with the referee (with digests or code='exact', every bit counts). "
                "Either they lie, or the referee has other hardware, software or data. Only shares that are very far "
                "from the referee's count as lies. To compare them, use "
                "solon_fl.strategies.calibrate(..., referee=...).",
                self.group,
            )
        if not self.needs_equal_bits:
            self._malformed |= dict.fromkeys(self._ids(false_voters), FALSE_VOTE)
            self._garbled |= false_voters
        convicted = self._ids(findings.wrong | self._garbled)
        acquitted = tuple(node for node in self._ids(held.suspect_slots) if node not in convicted)
        asked = replace(
            self._asked_referee(seconds), convicted=convicted, acquitted=acquitted, contradicted=findings.odd_referee
        )
        if held.ok and not (findings.wrong or findings.odd_referee or held.suspect_slots):
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

    def _findings(self, vector: Tensor, held: Decoded, false_voters: set[int]) -> Findings:
        """Return the findings of comparing everything the nodes sent with the referee's vector."""
        agreeing = self._shares.keys() - {*held.corrupt_slots, *held.suspect_slots, *held.different_slots}
        return hear(
            self._shares,
            vector,
            code=self.decoder.code,
            sections=self.sections,
            rtol=self.rtol,
            byzantine=self.byzantine,
            agreed=None if held.gradient is None else (held.gradient, agreeing),
            otherwise_wrong=false_voters | self._wrong_digests(vector) if self.needs_equal_bits else None,
            alike=len(self.alike.intersection(node for node in self.nodes if node is not None)) > self.byzantine,
            fewest=self._fewest_telling,
            further={slot for slots in self.also.values() for slot in slots},
        )

    @property
    def _fewest_telling(self) -> int:
        """See `hear`."""
        return self.decoder.code.compression if isinstance(self.decoder.code, ExactCode) else 1

    def _unlike(self, unreached: set[str]) -> set[int]:
        """Return the slots of nodes that contradict the referee on unreached parameters; none if all of them do."""
        said = unreached & set(self.parameters)
        slots = {slot for slot, names in self._unreached.items() if names != said}
        return slots if len(slots) < len(self._unreached) else set()

    def _wrong_digests(self, vector: Tensor) -> set[int]:
        """Return the slots of nodes that sent digests other than the vector's."""
        return set()

    def _asked_referee(self, seconds: float) -> RefereeReport:
        assert self.question is not None
        return RefereeReport(reason=self.question, answered=True, seconds=seconds)

    def give_up(self) -> Tensor | None:
        """Close the group without the referee, which has not answered in time."""
        assert self.question is not None
        assert self._held is not None
        outcome = self._held
        if self.question == "unclear which parameters have gradients":
            outcome = Outcome(Decoded.failed(DecodeStatus.UNDECODABLE))
        return self._close(outcome, RefereeReport(reason=self.question, answered=False))

    def let_rest(self, slot: int) -> None:
        """Do without a node that was asked but lacks the model, unless all others turn out not to be enough."""
        if not self.closed:
            self.resting.add(slot)
            self.denied.add(slot)

    def decode(self, *, last: bool) -> Tensor | None:
        """Decode if no reply that may still come can change the result, or if none will come (`last`).

        Of k + s shares that agree, k are honest and determine the gradient. If fewer agree and more than e honest nodes
        are missing, s liars could have made the result up: it is not accepted, and the group fails.

        How precisely k + s shares determine the gradient is another question. If the k are badly conditioned, liars
        that stay below the tolerance can move it, and in small tensors they can change it at will. So before it is
        late, a result is only accepted if its error bound is within `early_error` and it leaves no disagreement in any
        tensor unexplained. Nor is a group closed before then while liars may have made up, or hidden, that parameters
        have no gradient.

        Returns
        -------
        Tensor or None, (k m,)
            The gradient, once: from the call that closes the group, if it could be decoded.
        """
        if self.closed or self.question not in (None, "shares missing"):
            return None
        self.question = None
        return self._try_to_decode(last or self.is_due)

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
        if len(self._shares) >= needed + self.byzantine:  # enough to locate s liars, so what is left over is noise
            self.noise_only.update(decoded.odd_tensors)
        if not trusted and decoded.ok:
            # It is within the code's budget, but with so many nodes missing, s liars could have made it up.
            decoded = Decoded.failed(DecodeStatus.TOO_FEW_SHARES, decoded.erased_slots)
        return self._conclude(Outcome(decoded))

    def _conclude(self, outcome: Outcome) -> Tensor | None:
        """Close the group, unless the referee must be asked first."""
        self.question = self._reason_to_ask(outcome.decoded)
        if self.question is None:
            return self._close(outcome)
        here = tuple(slot for slot in outcome.decoded.erased_slots if slot in self._shares)  # others may still arrive
        self._held = replace(outcome, decoded=replace(outcome.decoded, erased_slots=here))
        return None

    def _reason_to_ask(self, decoded: Decoded) -> Asked | None:
        if self.audit is None or (decoded.gradient is not None and not self.is_usable(decoded.gradient)):
            return None
        if not decoded.ok:
            return "shares disagree" if len(self._shares) >= self.num_needed else "shares missing"
        if set(self._ids(decoded.suspect_slots)) - set(self.settled):
            return "suspects"
        if not self._votes_are_clear:
            return "unclear which parameters have gradients"
        return "audit" if self.audit() else None

    def _is_precise(self, decoded: Decoded) -> bool:
        """Whether the result needs no more shares, for precision or to find liars in single tensors."""
        return decoded.relative_error <= self.early_error and self.noise_only.issuperset(decoded.odd_tensors)

    def _close(
        self, outcome: Outcome, referee: RefereeReport | None = None, unreached: Collection[str] | None = None
    ) -> Tensor | None:
        """Fix the outcome and the parameters that no loss depends on, both of which may come from the referee.

        Suspects are never blamed for waking resting nodes, and neither are nodes that may have the most common hardware
        and software: liars could choose which nodes these are.
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
            garbled_nodes=self._ids(self._garbled | (not_finite if decoded.ok else set())),
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
