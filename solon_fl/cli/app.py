"""All commands of `solon-fl`, and how their errors are shown."""

import importlib.metadata
from typing import Annotated, Any, get_type_hints

import click
import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperArgument, TyperGroup

from solon_fl.cli import calibrate, compare, demo, plan, simulate
from solon_fl.cli.settings import help_with
from solon_fl.errors import SolonError
from solon_fl.launch.command import launch_command

__all__ = ["app"]


class _Commands(TyperGroup):
    """Shows an error that the package raises on purpose as one line, and exits with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SolonError as error:
            Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command. Its arguments get back their help, which typer 0.20 loses with click 8.5."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.callback is not None:
            hints = get_type_hints(command.callback, include_extras=True)
            for param in command.params:
                if isinstance(param, TyperArgument) and param.help is None:
                    param.help = hints[str(param.name)].__metadata__[0].help
        return command


app = typer.Typer(
    cls=_Commands,
    invoke_without_command=True,
    epilog="Start with: solon-fl demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Solon for Flower: train on the exact gradient even when some nodes lie.

    demo, simulate and compare train on this machine, with simulated nodes. plan and calibrate help to choose the
    settings of a real run. launch starts a Flower app on a Slurm cluster.
    """
    if version:
        print(importlib.metadata.version("solon-fl"))
        raise typer.Exit


app.command("simulate", cls=help_with(simulate.KEYS))(simulate.simulate_command)
app.command("plan", cls=help_with(plan.KEYS))(plan.plan_command)
app.command("demo")(demo.demo)
app.command("compare", cls=help_with(compare.KEYS, defaults=False))(compare.compare_command)
app.command("calibrate", cls=help_with(calibrate.KEYS))(calibrate.calibrate_command)
app.command("launch")(launch_command)
