"""What the server knows of a node: one entry of the ledger."""

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
        What the node can't choose: a digest of the public key that it has proved to hold ("key:..."; without
        Flower's SuperNode authentication a SuperNode makes itself a new key at every start), or Flower's number for
        its connection where there are no keys, as in simulations ("id:...").
    name : str
        Under which it was registered with the SuperLink; "" if under none.
    node_id : int
        Flower's number for its connection, when last seen; 0 if another node has that number now.
    silo : str or None
        With grouping "silo".
    place : (int, int) or None
        Group and slot that are its own; None for spares. With `SolonConfig.regroup` "round": in the latest round.
    state : str
        "member": it has its place. "away": it is not connected. "spare": it waits. "substitute": it fills in for a node
        that is away or quarantined. "quarantined": it gets no more tasks. "refused": it came later, and
        `SolonConfig.strangers` is "refuse"; forgotten when it is gone.
    rounds : int
        In which it had a task.
    lying, malformed, silent : int
        Rounds in which its share was certainly a lie, in which it sent something else than a share (or an error), and
        in which it had not answered when its group was decoded.
    suspected : int
        Rounds in which its share was left out of the gradient, but may have been honest. No offence.
    garbled : int
        Those of the malformed ones in which no honest node sends what it sent: no share at all, or NaN or infinity
        though the gradient has none.
    late : int
        Those of the silent ones in which its answer came after all.
    stalled : int
        Those of the silent ones in which it announced an answer and never sent it.
    different_bits : int
        Rounds in which its share was not, bit by bit, what its group computed, where that is no proof of a lie, or its
        digests were others than those elected: its hardware or software may be another. With code "exact" quarantine
        counts them all the same: such a node is of no use there.
    escalations : int
        Rounds in which nodes at rest had to be asked because of it (redundancy "reactive").
    lacking : int
        Rounds in which it did not have the model that it had said it keeps, or did not say what it keeps: all of the
        model had to be sent again.
    convicted, acquitted : int
        Rounds in which the referee found what it sent to be wrong, and in which it was a suspect and the referee found
        its share to be right.
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
        """Return the record of which `dataclasses.asdict`, and JSON, made these entries.

        Raises
        ------
        ValueError
            If an entry is missing, unknown, or not what it can be; other errors if they are no entries at all.
        """
        names = {field.name for field in fields(cls)}
        if wrong := entries.keys() ^ names:
            raise ValueError(f"the ledger lacks, or has too many, entries {sorted(wrong)[:5]}")
        place = entries["place"]
        if place is not None:
            group, slot = place
            place = (_count("group", group), _count("slot", slot))
        for name in ("identity", "name", "last_offence"):
            if type(entries[name]) is not str:
                raise ValueError(f"{name} in the ledger is no text")
        if not isinstance(entries["silo"], str | None):
            raise ValueError("silo in the ledger is no text")
        if entries["state"] not in get_args(NodeState):
            raise ValueError("state in the ledger is none")
        for name in names - {"identity", "name", "last_offence", "silo", "state", "place"}:
            _count(name, entries[name])
        return cls(**{**entries, "place": place})

    @property
    def label(self) -> str:
        """Its name, or else its id: what the log calls it."""
        return repr(self.name) if self.name else str(self.node_id)

    @property
    def label_among_namesakes(self) -> str:
        """Its label and a part of its key: what the log calls it if another node has the same name."""
        shown = self.identity[:16] if self.identity.startswith("key:") else self.identity
        return f"{self.label} ({shown})"

    @property
    def offences(self) -> int:
        """What quarantine counts, other bits apart: lies, malformed replies, and stalls but for the first.

        Silence may be the network's fault, and a first stall that of a node which died while it sent.
        """
        return self.lying + self.malformed + max(self.stalled - 1, 0)


def namesakes(records: Iterable[NodeRecord]) -> set[str]:
    """Return the identities of nodes whose names are the same, but for case, spaces and the width of letters."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record.name:
            look = "".join(unicodedata.normalize("NFKC", record.name).casefold().split())
            found.setdefault(look, []).append(record.identity)
    return {identity for identities in found.values() if len(identities) > 1 for identity in identities}


def _count(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**64:
        raise ValueError(f"{name} in the ledger is no number that it can be")
    return value
