"""Faults that nodes are to have while a run goes on, as data."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Self, get_args

from solon_fl.launch.errors import FederationError, did_you_mean

__all__ = ["KINDS", "Fault", "FaultKind", "check_faults", "faults_from_json", "faults_to_json"]

FaultKind = Literal["lie", "stall", "die"]
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
DEFAULT_ATTACK = "reverse"
FORM = "NODE:KIND@WHEN[+FOR], such as node-3:lie@4, node-3:lie=alie@4, node-5:die@30s or node-2:stall@3+20s"
_PATTERN = re.compile(
    r"(?P<node>.+):(?P<kind>[^:=@+]*)(=(?P<attack>[^:=@+]*))?"
    r"@((?P<round>[0-9]{1,9})|(?P<after>[0-9.]{1,12})s)(\+(?P<lasts>[0-9.]{1,12})s)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a node is to do wrong, and when.

    Attributes
    ----------
    node : str
        Its registered name.
    kind : {"lie", "stall", "die"}
        Send wrong results; be stopped, so that nothing of it moves and nothing of it ends; be killed.
    attack : str
        How it lies, a name of `solon_fl.simulations.ATTACKS`; "" if it does not.
    round : int or None
        With the first task of this round, or of a later one, it begins.
    after : float or None
        So many seconds after the run's start it begins. Either this or the round is None.
    lasts : float or None
        Seconds until the node is well again. None: it never is.
    """

    node: str
    kind: FaultKind
    attack: str = ""
    round: int | None = None
    after: float | None = None
    lasts: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the fault that a text describes.

        Raises
        ------
        FederationError
            If the text is of another form. Whether node and attack exist is for `check_faults` to say.

        Examples
        --------
        >>> Fault.parse("node-2:stall@3+20s")
        Fault(node='node-2', kind='stall', attack='', round=3, after=None, lasts=20.0)
        >>> str(Fault.parse("node-3:lie@4"))
        'node-3:lie=reverse@4'
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise FederationError(f"a fault must be {FORM}; got {text!r}.")
        kind, attack = match["kind"], match["attack"]
        if kind not in KINDS:
            raise FederationError(f"a fault must lie, stall or die; got {text!r}{did_you_mean(kind, KINDS)}")
        if attack is not None and kind != "lie":
            raise FederationError(f"only a lie has an attack; got {text!r}; leave out ={attack}.")
        server_round = None if match["round"] is None else int(match["round"])
        if server_round == 0:
            raise FederationError(f"rounds are counted from 1; got {text!r}.")
        return cls(
            node=match["node"],
            kind=kind,
            attack=(DEFAULT_ATTACK if attack is None else attack) if kind == "lie" else "",
            round=server_round,
            after=_seconds(match["after"], text),
            lasts=_seconds(match["lasts"], text),
        )

    def __str__(self) -> str:
        how = f"={self.attack}" if self.attack else ""
        when = f"{self.round}" if self.round is not None else f"{self.after:g}s"
        lasts = "" if self.lasts is None else f"+{self.lasts:g}s"
        return f"{self.node}:{self.kind}{how}@{when}{lasts}"


def check_faults(faults: Sequence[Fault], nodes: Sequence[str]) -> None:
    """Raise unless the nodes and attacks of all faults exist.

    Raises
    ------
    FederationError
        It names what does not exist, and what is spelt like it.
    """
    for fault in faults:
        if fault.node not in nodes:
            hint = did_you_mean(fault.node, nodes)
            raise FederationError(f"the node of a fault must be one of {_some(nodes)}; got {str(fault)!r}{hint}")
        if fault.kind == "lie":
            from solon_fl.simulations.attacks.registry import ATTACKS  # takes seconds

            if fault.attack not in ATTACKS:
                raise FederationError(
                    f"attack must be one of {', '.join(ATTACKS)}; got attack={fault.attack!r}"
                    f"{did_you_mean(fault.attack, ATTACKS)}"
                )


def faults_to_json(faults: Iterable[Fault]) -> str:
    """Return faults as text for a process that is to have them."""
    return json.dumps([asdict(fault) for fault in faults])


def faults_from_json(text: str) -> list[Fault]:
    """Return what `faults_to_json` has written."""
    return [Fault(**fault) for fault in json.loads(text)]


def _seconds(text: str | None, fault: str) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise FederationError(f"seconds must be a number, such as 20s; got {fault!r}.") from None


def _some(names: Sequence[str]) -> str:
    """Return names for a sentence, the first and the last if there are many."""
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:3])}, ..., {names[-1]}"
