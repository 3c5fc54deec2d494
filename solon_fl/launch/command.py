"""The command that runs a Flower app in a Slurm job."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from solon_fl.launch.apps import check_app, read_app, read_node_config
from solon_fl.launch.errors import FederationError
from solon_fl.launch.faults import Fault
from solon_fl.launch.interrupts import run_interruptibly
from solon_fl.launch.options import FaultOption
from solon_fl.launch.slurm import Launch, Task, launch

__all__ = ["launch_command", "program"]

SCRIPT = Path(__file__).with_name("solon.sbatch")
program = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@program.command()
def launch_command(
    app: Annotated[Path | None, typer.Argument(help="The app's folder, with its pyproject.toml.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE: change a setting of the app's pyproject.toml. Repeatable.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="Name of this task's node. Default: node-1 in the first task, and so on.")
    ] = "",
    node_config: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE: an entry of the node config of this task's node, in addition to partition-id and "
            "num-partitions. Repeatable."
        ),
    ] = None,
    fault: FaultOption = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder for keys, checkpoints and logs, which all tasks must see. "
            "Default: solon-JOB in the current folder."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Name or IPv4 address under which tasks reach the first one's machine. Default: its name in Slurm."
        ),
    ] = "",
    script: Annotated[bool, typer.Option("--script", help="Print a template of an sbatch script.")] = False,
) -> None:
    """Run a Flower app in a Slurm job, with a SuperNode in each task.

    solon-fl launch --script > solon.sbatch     # adapt it to your cluster

    sbatch solon.sbatch PATH/TO/APP --setting num-rounds=100

    In the script, srun starts this command in every task. The first task also
    starts the SuperLink, with a certificate of its own. It registers the key
    that each task makes for its node, waits until all nodes are online, and
    runs the app. The server's output goes to the job's output, that of nodes to
    solon-JOB/JOB.RESTART.STEP/logs. A job that Slurm restarts continues from the
    last checkpoint, if the app has a setting "checkpoints", as the examples do.
    """
    if script:
        print(SCRIPT.read_text(), end="")
        return
    run_interruptibly(lambda: _launch(app, setting, name, node_config, fault, folder, host))


def _launch(
    app: Path | None,
    setting: list[str] | None,
    name: str,
    node_config: list[str] | None,
    fault: list[str] | None,
    folder: Path | None,
    host: str,
) -> None:
    try:
        task = Task.from_environment(os.environ)
        if app is None:
            raise FederationError("launch needs an app's folder: launch PATH/TO/APP.")
        found = read_app(app)
        if task.rank == 0:
            check_app(found)
        what = Launch(
            app=found,
            settings=found.settings(setting or []),
            folder=(folder or Path(f"solon-{task.job}")).resolve(),
            name=name or f"node-{task.rank + 1}",
            node_config=read_node_config(node_config or []),
            faults=tuple(map(Fault.parse, fault or [])),
            host=host,
        )
        launch(task, what, lambda line: print(line, flush=True))
    except FederationError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
