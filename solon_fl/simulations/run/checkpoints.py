"""Checkpoints of a simulated run, which include the records of its rounds."""

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
    """Checkpoints that include the records of all rounds so far. Only the same scenario can continue from them.

    Parameters
    ----------
    checkpoints : Checkpoints
        Where to save, and how often.
    outcome : Outcome
        The outcome of the run. Its records are saved, and replaced when the run continues from a checkpoint. All of its
        scenario except `rounds` must equal the checkpoint's.
    """

    def __init__(self, checkpoints: Checkpoints, outcome: Outcome) -> None:
        super().__init__(checkpoints.folder, every=checkpoints.every, keep=checkpoints.keep)
        settings = {name: value for name, value in asdict(outcome.scenario).items() if name not in ("config", "rounds")}
        self._run = {f"scenario.{name}": None if value is None else str(value) for name, value in settings.items()}
        self._outcome = outcome

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint that includes the records."""
        notes = {**checkpoint.notes, "records": [asdict(record) for record in self._outcome.records]}
        super().save(replace(checkpoint, run={**self._run, **checkpoint.run}, notes=notes))

    def load(self, run: Mapping[str, Any], take_over: Callable[[Checkpoint], None] | None = None) -> Checkpoint | None:
        """Return the newest usable checkpoint, and take over its records."""

        def take(checkpoint: Checkpoint) -> None:
            try:
                records = rebuilt(list[RoundRecord], checkpoint.notes["records"])
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise CheckpointError(
                    f"its records are not from this version of solon_fl ({' '.join(str(error).split())[:200]})"
                ) from error
            if take_over is not None:
                take_over(checkpoint)
            self._outcome.records = records

        return super().load({**self._run, **run}, take)
