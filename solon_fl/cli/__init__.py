"""The command `solon-fl`, one module a subcommand."""

import importlib.metadata
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from solon_fl.cli.calibrate import calibrate_command
from solon_fl.cli.compare import compare_command
from solon_fl.cli.demo import demo
from solon_fl.cli.plan import plan_command
from solon_fl.cli.simulate import simulate_command
from solon_fl.errors import SolonError

__all__ = ["main"]

app = typer.Typer(
    invoke_without_command=True,
    epilog="Start with:  solon-fl demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Train through lying machines: Solon for Flower."""
    if version:
        print(importlib.metadata.version("solon-fl"))
        raise typer.Exit


app.command("simulate")(simulate_command)
app.command("plan")(plan_command)
app.command("demo")(demo)
app.command("compare")(compare_command)
app.command("calibrate")(calibrate_command)


def main() -> None:
    """Run the command line; errors made on purpose are one message and exit code 2."""
    try:
        app()
    except SolonError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
