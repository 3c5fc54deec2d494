"""What is known after each round of a simulation, and checkpoints that hold it too."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from solon_fl.simulations.run.scenario import Scenario
from solon_fl.strategies import GroupReport, RoundReport
from solon_fl.strategies.checkpoint import Checkpoint, Checkpoints

__all__ = ["RecordedCheckpoints", "RoundRecord"]


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
    regrouped : bool
        Whether nodes change places, and are numbered as `InProcessGrid` has them (Flower's id less one), not by place.
    """

    round: int
    accuracy: float
    loss: float
    seconds: float
    report: RoundReport | None = None
    waited: bool = False
    regrouped: bool = False

    def number(self, group: GroupReport, node: int) -> int:
        """Return the number of a node of a group, as in `Scenario.liars`."""
        return node - 1 if self.regrouped else group.group * len(group.nodes) + group.nodes.index(node)

    def named(self) -> list[tuple[int, str]]:
        """Return the number of each node named in this round, and what for: "lying", "silent" or "malformed"."""
        return [
            (self.number(group, node), kind)
            for group in (self.report.groups if self.report is not None else ())
            for kind, nodes in (
                ("lying", group.corrupt_nodes),
                ("silent", group.silent_nodes),
                ("malformed", group.malformed_nodes),
            )
            for node in nodes
        ]


class RecordedCheckpoints(Checkpoints):
    """Checkpoints that hold the curve so far too, and that only the same scenario can go on from.

    Parameters
    ----------
    checkpoints : Checkpoints
        Where and how often.
    scenario : Scenario
        What is run. All of it but `rounds` must be the same when it goes on.
    records : list of RoundRecord
        The run's, which is saved, and filled when there is a checkpoint to go on from.
    """

    def __init__(self, checkpoints: Checkpoints, scenario: Scenario, records: list[RoundRecord]) -> None:
        super().__init__(checkpoints.folder, every=checkpoints.every, keep=checkpoints.keep)
        settings = {name: value for name, value in asdict(scenario).items() if name not in ("config", "rounds")}
        self._run = {f"scenario.{name}": None if value is None else str(value) for name, value in settings.items()}
        self._records = records

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint with the records."""
        notes = {**checkpoint.notes, "records": [asdict(record) for record in self._records]}
        super().save(replace(checkpoint, run={**self._run, **checkpoint.run}, notes=notes))

    def load(self, run: Mapping[str, Any]) -> Checkpoint | None:
        """Return the newest checkpoint that can be used, and take its records."""
        checkpoint = super().load({**self._run, **run})
        if checkpoint is not None:
            self._records[:] = map(_record, checkpoint.notes["records"])
        return checkpoint


def _record(fields: dict[str, Any]) -> RoundRecord:
    report = fields["report"]
    if report is None:
        return RoundRecord(**fields)
    return RoundRecord(
        **{**fields, "report": RoundReport(**{**report, "groups": tuple(map(_group_report, report["groups"]))})}
    )


IDS = ("nodes", "corrupt_nodes", "silent_nodes", "different_bits", "escalated_by")  # tuples of a GroupReport


def _group_report(fields: dict[str, Any]) -> GroupReport:
    tuples = {name: tuple(fields[name]) for name in IDS}
    malformed = {int(node_id): reason for node_id, reason in fields["malformed_nodes"].items()}
    return GroupReport(**{**fields, **tuples, "malformed_nodes": malformed})
