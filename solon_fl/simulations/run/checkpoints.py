"""Checkpoints of a simulated run, which hold its curve too."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from solon_fl.errors import CheckpointError
from solon_fl.simulations.run.outcome import Outcome
from solon_fl.simulations.run.plain import rebuilt
from solon_fl.simulations.run.round_record import RoundRecord
from solon_fl.strategies.checkpoint import Checkpoint, Checkpoints

__all__ = ["RecordedCheckpoints"]


class RecordedCheckpoints(Checkpoints):
    """Checkpoints that hold the records of all rounds so far, and from which only the same scenario can go on.

    Parameters
    ----------
    checkpoints : Checkpoints
        Where to save, and how often.
    outcome : Outcome
        Of the run. Its records are saved, and replaced when there is a checkpoint to go on from. All of its scenario
        but `rounds` must be that of the checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints, outcome: Outcome) -> None:
        super().__init__(checkpoints.folder, every=checkpoints.every, keep=checkpoints.keep)
        settings = {name: value for name, value in asdict(outcome.scenario).items() if name not in ("config", "rounds")}
        self._run = {f"scenario.{name}": None if value is None else str(value) for name, value in settings.items()}
        self._outcome = outcome

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint with the records."""
        notes = {**checkpoint.notes, "records": [asdict(record) for record in self._outcome.records]}
        super().save(replace(checkpoint, run={**self._run, **checkpoint.run}, notes=notes))

    def load(self, run: Mapping[str, Any], take_over: Callable[[Checkpoint], None] | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that can be used, and take its records."""

        def take(checkpoint: Checkpoint) -> None:
            try:
                records = rebuilt(list[RoundRecord], checkpoint.notes["records"])
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise CheckpointError(
                    f"its records are not those of this version of solon_fl ({' '.join(str(error).split())[:200]})"
                ) from error
            if take_over is not None:
                take_over(checkpoint)
            self._outcome.records = records

        return super().load({**self._run, **run}, take)
