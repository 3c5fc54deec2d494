"""What is known after each round of a simulation, and the file that keeps it beside the checkpoints."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from solon_fl.errors import CheckpointError
from solon_fl.simulations.scenario import Scenario
from solon_fl.strategies import GroupReport, RoundReport

__all__ = ["RecordsFile", "RoundRecord"]


@dataclass(kw_only=True)
class RoundRecord:
    """What is known after one round.

    Attributes
    ----------
    round : int
        0 is the untrained model.
    accuracy, loss : float
        On the test set.
    seconds : float
        Since the run began.
    report : RoundReport or None
        The strategy's; None for round 0.
    waited : bool
        Whether the server would have waited for its deadline, as a node that it needed did not answer.
    """

    round: int
    accuracy: float
    loss: float
    seconds: float
    report: RoundReport | None = None
    waited: bool = False

    def named(self) -> list[tuple[int, str]]:
        """Return the number of each node named in this round, and what for: "lying", "silent" or "malformed"."""
        return [
            (group.group * len(group.nodes) + group.nodes.index(node), kind)
            for group in (self.report.groups if self.report is not None else ())
            for kind, nodes in (
                ("lying", group.corrupt_nodes),
                ("silent", group.silent_nodes),
                ("malformed", group.malformed_nodes),
            )
            for node in nodes
        ]


class RecordsFile:
    """The records of a run, one line each, in a file that is added to after every round.

    Parameters
    ----------
    path : Path
        The file; made, with its folder, if it is not there.
    scenario : Scenario
        What is run. All of it but `rounds` must be what it was when the file was begun.

    Raises
    ------
    CheckpointError
        If the file is of another scenario; the message names a setting that differs.
    """

    def __init__(self, path: Path, scenario: Scenario) -> None:
        self._path = path
        settings = json.loads(json.dumps({**asdict(scenario), "rounds": None}, default=str))
        self._lines = [json.dumps(settings)]
        if path.exists():
            self._lines = path.read_text().splitlines() or self._lines
            _check_same(_parse(self._lines[0]), settings, path)
        self._rewrite()

    def take_before(self, server_round: int) -> list[RoundRecord]:
        """Return the records before a round, and forget the others."""
        records = []
        kept = self._lines[:1]
        for line in self._lines[1:]:
            fields = _parse(line)  # the last line may be half written
            if "round" in fields and fields["round"] < server_round:
                records.append(_record(fields))
                kept.append(line)
        self._lines = kept
        self._rewrite()
        return records

    def add(self, record: RoundRecord) -> None:
        """Add the record of the next round."""
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def _rewrite(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(self._path.name + ".part")
        part.write_text("".join(line + "\n" for line in self._lines))
        part.replace(self._path)


def _parse(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _check_same(theirs: dict[str, Any], ours: dict[str, Any], path: Path) -> None:
    for name in ours:
        if theirs.get(name) != ours[name]:
            raise CheckpointError(
                f"{path} is of another run: {name} is {theirs.get(name)!r} there and {ours[name]!r} here; give the "
                "same settings to go on with it, or another folder to start anew."
            )


def _record(fields: dict[str, Any]) -> RoundRecord:
    report = fields["report"]
    if report is None:
        return RoundRecord(**fields)
    return RoundRecord(
        **{**fields, "report": RoundReport(**{**report, "groups": tuple(map(_group_report, report["groups"]))})}
    )


def _group_report(fields: dict[str, Any]) -> GroupReport:
    tuples = {name: tuple(fields[name]) for name in ("nodes", "corrupt_nodes", "silent_nodes")}
    malformed = {int(node_id): reason for node_id, reason in fields["malformed_nodes"].items()}
    return GroupReport(**{**fields, **tuples, "malformed_nodes": malformed})
