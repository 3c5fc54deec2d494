"""The terminal, progress bars and Flower's log, which all commands share."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.run import Outcome, RoundRecord, Scenario, simulate
from solon_fl.strategies import Checkpoints

__all__ = ["check_output", "console", "progress_bar", "run_scenario", "set_log_level", "show_rounds"]

console = Console()


def run_scenario(scenario: Scenario, progress: Progress, checkpoints: Checkpoints | None = None) -> Outcome:
    """Run a scenario with a progress bar of its own. If its checkpoints hold all rounds, print a line instead."""
    show, computed = show_rounds(scenario, progress), []

    def on_round(record: RoundRecord) -> None:
        computed.append(record.round)
        show(record)

    outcome = simulate(scenario, on_round, checkpoints)
    if not computed and outcome.records:
        progress.update(progress.task_ids[-1], visible=False)
        progress.console.print(
            f"Already finished: all {len(outcome.reports)} rounds were loaded from the folder checkpoints.",
            highlight=False,
            markup=False,
        )
    return outcome


def show_rounds(scenario: Scenario, progress: Progress) -> Callable[[RoundRecord], None]:
    """Add a progress bar for a run, and return the function to call after each of its rounds."""
    task = progress.add_task(
        f"{scenario.strategy:16} {scenario.attack or 'no attack'}", total=scenario.rounds, accuracy=""
    )

    def show(record: RoundRecord) -> None:
        report = record.report
        named = len(report.corrupt_nodes + report.different_nodes + report.malformed_nodes) if report else 0
        caught = f", {named} caught" if named else ""
        reported = None if report is None else report.unprotected_training_loss
        loss = "" if reported is None else f", loss {reported:.3g}"
        progress.update(task, completed=record.round, accuracy=f"accuracy {record.accuracy:6.1%}{loss}{caught}")

    return show


def check_output(folder: Path) -> None:
    """Make the output folder. Fail before anything is run if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"output must be a writable folder; got output={str(folder)!r} ({error.strerror}); "
            "choose another with --output."
        ) from error


def progress_bar() -> Progress:
    """Return the progress display for one or several runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[accuracy]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def set_log_level(verbose: bool) -> None:
    """Show Flower's log, or only its messages about checkpoints."""
    logging.getLogger("flwr").setLevel(logging.INFO if verbose else logging.CRITICAL)
    logging.getLogger("flwr.checkpoints").setLevel(logging.INFO)
