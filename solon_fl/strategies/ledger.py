"""An entry of the ledger: what the server knows of a node."""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

__all__ = ["NodeRecord", "NodeState", "Place", "namesakes"]

NodeState = Literal["member", "spare", "substitute", "away", "quarantined", "refused"]
Place = tuple[int, int]  # group, slot


@dataclass(slots=True, kw_only=True)
class NodeRecord:
    """One node over a whole run: an entry of the suspicion ledger.

    Attributes
    ----------
    identity : str
        An identity that the node can't choose. "key:..." is a digest of the public key that it has proved to hold;
        without Flower's SuperNode authentication, a SuperNode generates a new key at every start. "id:..." is Flower's
        number for its connection, where there are no keys, as in simulations.
    name : str
        The name under which it is registered with the SuperLink; "" if it has none.
    node_id : int
        Flower's number for its connection when last seen; 0 if another node has that number now.
    silo : str or None
        Its silo, with grouping "silo".
    place : (int, int) or None
        The group and slot that belong to it; None for spares. With ``SolonConfig.regroup`` "round", its place in the
        latest round.
    state : str
        "member": it has its place. "away": it is not connected. "spare": it waits. "substitute": it fills in for a node
        that is away or quarantined. "quarantined": it gets no more tasks. "refused": it connected after the run began
        and ``SolonConfig.strangers`` is "refuse"; it is forgotten when it disconnects.
    rounds : int
        Rounds in which it had a task.
    lying, malformed, silent : int
        Rounds in which its share was certainly a lie, rounds in which it sent something other than a share (or an
        error), and rounds in which it had not replied when its group was decoded.
    suspected : int
        Rounds in which its share was left out of the gradient but may have been honest. Not an offence.
    garbled : int
        Malformed rounds in which its reply was one that no honest node sends: not a share at all, or a share with NaN
        or infinity although the gradient has none.
    late : int
        Silent rounds in which its reply arrived later.
    stalled : int
        Silent rounds in which it announced a reply and never sent it.
    different_bits : int
        Rounds in which its share differed in some bits from what its group computed without being provably a lie, or
        its digests differed from the elected ones. It may have other hardware or software. With code "exact", these
        rounds count towards quarantine: such a node is of no use there.
    escalations : int
        Rounds in which resting nodes had to be asked because of it (redundancy "reactive").
    lacking : int
        Rounds in which it did not have the model that it had said it keeps, or did not say what it keeps, so that the
        whole model had to be sent again.
    convicted, acquitted : int
        Rounds in which the referee found its reply wrong, and rounds in which it was a suspect and the referee found
        its share right.
    last_offence : str
        The latest lie or malformed reply, in words.
    """

    identity: str
    name: str = ""
    node_id: int
    silo: str | None = None
    place: Place | None = None
    state: NodeState = "spare"
    rounds: int = 0
    lying: int = 0
    malformed: int = 0
    garbled: int = 0
    silent: int = 0
    late: int = 0
    stalled: int = 0
    suspected: int = 0
    different_bits: int = 0
    escalations: int = 0
    lacking: int = 0
    convicted: int = 0
    acquitted: int = 0
    last_offence: str = ""

    @classmethod
    def restored(cls, entries: Mapping[str, Any]) -> "NodeRecord":
        """Return the record from entries that ``dataclasses.asdict`` made of it and JSON stored.

        Raises
        ------
        ValueError
            If an entry is missing, unknown or invalid. Other exceptions if `entries` is something else altogether.
        """
        names = {field.name for field in fields(cls)}
        if wrong := entries.keys() ^ names:
            raise ValueError(f"the ledger has missing or unknown entries: {sorted(wrong)[:5]}")
        place = entries["place"]
        if place is not None:
            group, slot = place
            place = (_count("group", group), _count("slot", slot))
        for name in ("identity", "name", "last_offence"):
            if type(entries[name]) is not str:
                raise ValueError(f"{name} in the ledger is not a string")
        if not isinstance(entries["silo"], str | None):
            raise ValueError("silo in the ledger is not a string")
        if entries["state"] not in get_args(NodeState):
            raise ValueError("state in the ledger is not a known state")
        for name in names - {"identity", "name", "last_offence", "silo", "state", "place"}:
            _count(name, entries[name])
        return cls(**{**entries, "place": place})

    @property
    def label(self) -> str:
        """The node's name in the log: its registered name, or else its id."""
        return repr(self.name) if self.name else str(self.node_id)

    @property
    def label_among_namesakes(self) -> str:
        """The node's name in the log if another node has the same name: its label and a part of its key."""
        shown = self.identity[:16] if self.identity.startswith("key:") else self.identity
        return f"{self.label} ({shown})"

    @property
    def offences(self) -> int:
        """Lies, malformed replies, and stalls after the first: what quarantine counts, apart from different bits.

        Silence may be the network's fault, and a node's first stall may be due to a crash while it sent its reply.
        """
        return self.lying + self.malformed + max(self.stalled - 1, 0)


def namesakes(records: Iterable[NodeRecord]) -> set[str]:
    """Return the identities of nodes whose names are equal except for case, spaces and the width of letters."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record.name:
            look = "".join(unicodedata.normalize("NFKC", record.name).casefold().split())
            found.setdefault(look, []).append(record.identity)
    return {identity for identities in found.values() if len(identities) > 1 for identity in identities}


def _count(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**64:
        raise ValueError(f"{name} in the ledger is not a valid number")
    return value
