"""Keeps the files of an earlier run or comparison when another one is written to the same folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.compare.comparison import Comparison
from solon_fl.simulations.run import Outcome, jsonable

__all__ = ["ACCURACY", "PLOT", "REPORT", "ROUNDS", "keep_earlier_report", "keep_earlier_run"]

ROUNDS, PLOT = "rounds.jsonl", "plot.png"
REPORT, ACCURACY, COMPARISON = "report.html", "accuracy.png", "comparison.json"


def keep_earlier_run(folder: Path, outcome: Outcome) -> tuple[Path, ...]:
    """Rename an earlier run's files, unless the new outcome includes them.

    It does if it is of the same scenario and has at least as many rounds: a scenario always gives the same result.

    Parameters
    ----------
    folder : Path
        The folder to which ``rounds.jsonl`` and ``plot.png`` are about to be written.
    outcome : Outcome
        The outcome that is about to be written.

    Returns
    -------
    tuple of Path
        The new names, such as ``rounds-1.jsonl``. Empty if nothing was renamed.
    """
    if not (folder / ROUNDS).exists() or _holds(outcome, folder / ROUNDS):
        return ()
    return set_aside(folder, (ROUNDS, PLOT))


def keep_earlier_report(folder: Path, comparison: Comparison) -> tuple[Path, ...]:
    """Rename the report and plot of another comparison, and note which comparison is about to be written.

    Returns
    -------
    tuple of Path
        The new names, such as ``report-1.html``. Empty if nothing was renamed.
    """
    note, text = folder / COMPARISON, json.dumps(jsonable(asdict(comparison)), indent=1)
    is_another = not note.exists() or note.read_text(encoding="utf-8", errors="replace") != text
    renamed = set_aside(folder, (REPORT, ACCURACY, COMPARISON)) if is_another else ()
    note.write_text(text, encoding="utf-8")
    return renamed


def set_aside(folder: Path, files: Sequence[str]) -> tuple[Path, ...]:
    """Add the first number that is free to the names of the existing files; return the new names."""
    present = [folder / name for name in files if (folder / name).exists()]
    for number in count(1):
        names = [path.with_stem(f"{path.stem}-{number}") for path in present]
        if not any(name.exists() for name in names):
            return tuple(path.rename(name) for path, name in zip(present, names, strict=True))
    raise AssertionError("unreachable")


def _holds(outcome: Outcome, path: Path) -> bool:
    """Return whether an outcome has all rounds of the run in this file."""
    try:
        earlier = Outcome.load(path)
    except ConfigurationError:
        return False
    same = replace(earlier.scenario, rounds=outcome.scenario.rounds) == outcome.scenario
    return same and len(earlier.records) <= len(outcome.records)
