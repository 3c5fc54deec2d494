"""The command line in this process: a process of its own takes seconds to import torch."""

from click.testing import Result
from typer.testing import CliRunner

from solon_fl.cli import terminal  # noqa: F401  # its Console takes the width for good, if COLUMNS is set then
from solon_fl.cli.app import app


def solon_fl(*arguments: str) -> Result:
    """Run the command line on a terminal of 80 columns."""
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})


def is_refused(done: Result) -> bool:
    """Return whether a command ended with one line that begins with "error: ", and nothing else."""
    one_line = done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.exit_code == 2 and one_line and done.stdout == ""
