"""Runs the command line in this process, as a new process takes seconds to import torch."""

from click.testing import Result
from typer.testing import CliRunner

from solon_fl.cli.app import app
from solon_fl.cli.terminal import console


def solon_fl(*arguments: str, columns: int = 80) -> Result:
    """Run the command line on a terminal of this width."""
    before, console.width = console.width, columns  # a Console reads COLUMNS only when it is created
    try:
        return CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns)})
    finally:
        console.width = before


def is_refused(done: Result) -> bool:
    """Return whether a command printed one line that begins with "error: ", and nothing else."""
    one_line = done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.exit_code == 2 and one_line and done.stdout == ""
