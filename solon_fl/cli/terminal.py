"""What the commands share: the terminal, progress bars, and Flower's log."""

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
    """Run a scenario with a progress bar of its own."""
    return simulate(scenario, show_rounds(scenario, progress), checkpoints)


def show_rounds(scenario: Scenario, progress: Progress) -> Callable[[RoundRecord], None]:
    """Add a progress bar for a run, and return what to call after each of its rounds."""
    task = progress.add_task(
        f"{scenario.strategy:16} {scenario.attack or 'no attack':16}", total=scenario.rounds, accuracy=""
    )

    def show(record: RoundRecord) -> None:
        report = record.report
        named = len(report.corrupt_nodes + report.different_nodes + report.malformed_nodes) if report else 0
        caught = f", {named} caught" if named else ""
        reported = None if report is None else report.unprotected_training_loss
        loss = "" if reported is None else f", nodes' loss {reported:.3g}"
        progress.update(task, completed=record.round, accuracy=f"accuracy {record.accuracy:6.1%}{loss}{caught}")

    return show


def check_output(folder: Path) -> None:
    """Make the output folder, and fail before anything is run if that can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"output must be a folder that can be written to; got output={str(folder)!r} ({error.strerror}); "
            "choose another with --output."
        ) from error


def progress_bar() -> Progress:
    """Return the progress display of one or several runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[accuracy]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def set_log_level(verbose: bool) -> None:
    """Show Flower's log, or nothing of it but what is said of checkpoints."""
    logging.getLogger("flwr").setLevel(logging.INFO if verbose else logging.CRITICAL)
    logging.getLogger("flwr.checkpoints").setLevel(logging.INFO)
