"""What becomes of an earlier run's files when a run of other settings is written to the same folder."""

from dataclasses import replace
from itertools import count
from pathlib import Path

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.run import Outcome

__all__ = ["keep_earlier_run"]

ROUNDS, PLOT = "rounds.jsonl", "plot.png"


def keep_earlier_run(folder: Path, outcome: Outcome) -> tuple[Path, ...]:
    """Rename an earlier run's files, unless the new outcome holds all that they say.

    It does if it is of the same scenario and has at least as many rounds: a scenario gives the same result each time.

    Parameters
    ----------
    folder : Path
        Where ``rounds.jsonl`` and ``plot.png`` are about to be written.
    outcome : Outcome
        What is about to be written.

    Returns
    -------
    tuple of Path
        The new names, such as ``rounds-1.jsonl``; none if nothing had to be renamed.
    """
    if not (folder / ROUNDS).exists() or _holds(outcome, folder / ROUNDS):
        return ()
    present = [folder / name for name in (ROUNDS, PLOT) if (folder / name).exists()]
    for number in count(1):
        names = [path.with_stem(f"{path.stem}-{number}") for path in present]
        if not any(name.exists() for name in names):
            return tuple(path.rename(name) for path, name in zip(present, names, strict=True))
    raise AssertionError("unreachable")


def _holds(outcome: Outcome, path: Path) -> bool:
    """Return whether an outcome has all rounds of the run in a file."""
    try:
        earlier = Outcome.load(path)
    except ConfigurationError:
        return False
    same = replace(earlier.scenario, rounds=outcome.scenario.rounds) == outcome.scenario
    return same and len(earlier.records) <= len(outcome.records)
