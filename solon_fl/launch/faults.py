"""Descriptions of the faults that are injected into nodes during a run."""

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
    """A fault of a node, and when it occurs.

    Attributes
    ----------
    node : str
        The node's registered name.
    kind : {"lie", "stall", "die"}
        The node sends wrong results ("lie"), all its processes are suspended ("stall"), or it is killed ("die").
    attack : str
        The attack of a "lie", a name in `solon_fl.simulations.ATTACKS`; "" for other kinds.
    round : int or None
        The fault begins with the node's first task of this round or a later one.
    after : float or None
        The fault begins this many seconds after the run's start. Either this or `round` is None.
    lasts : float or None
        Seconds until the node recovers, or None if it never does.
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
            If the text has another form. `check_faults` checks whether the node and the attack exist.

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
    """Check that the nodes and attacks of all faults exist.

    Raises
    ------
    FederationError
        If one does not exist. The message suggests a similar name.
    """
    for fault in faults:
        if fault.node not in nodes:
            hint = did_you_mean(fault.node, nodes)
            raise FederationError(f"the node of a fault must be one of {_some(nodes)}; got {str(fault)!r}{hint}")
        if fault.kind == "lie":
            from solon_fl.simulations.attacks.registry import ATTACKS  # the import takes seconds

            if fault.attack not in ATTACKS:
                raise FederationError(
                    f"attack must be one of {', '.join(ATTACKS)}; got attack={fault.attack!r}"
                    f"{did_you_mean(fault.attack, ATTACKS)}"
                )


def faults_to_json(faults: Iterable[Fault]) -> str:
    """Return faults as JSON, for a node's process."""
    return json.dumps([asdict(fault) for fault in faults])


def faults_from_json(text: str) -> list[Fault]:
    """Return the faults that `faults_to_json` has written."""
    return [Fault(**fault) for fault in json.loads(text)]


def _seconds(text: str | None, fault: str) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise FederationError(f"seconds must be a number, such as 20s; got {fault!r}.") from None


def _some(names: Sequence[str]) -> str:
    """Return names as part of a sentence; of many names, only the first ones and the last."""
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:3])}, ..., {names[-1]}"
