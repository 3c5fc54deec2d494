"""`solon-fl demo`: what to look at first."""

from pathlib import Path
from typing import Annotated

import typer

from solon_fl.cli.compare import compare
from solon_fl.cli.options import Machine
from solon_fl.cli.terminal import console
from solon_fl.simulations.compare.comparison import load_comparison
from solon_fl.simulations.threads import usable_cores

__all__ = ["demo"]

MOST_PROCESSES = 8  # of half a gigabyte each


def demo(
    rounds: Annotated[int, typer.Option(help="Rounds of each of the runs.")] = 21,
    seed: Annotated[int, typer.Option(help="Fixes weights, batches and liars.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the report and the runs.")] = Path("solon-results/demo"),
) -> None:
    """Solon against five other strategies while 5 of 24 nodes lie.

    Trains a small network on 5,000 Fashion-MNIST images 18 times: with each of six strategies, without an attack and
    under two. All see the same batches. The same as: solon-fl compare demo
    """
    comparison = load_comparison("demo", {"scenario": {"rounds": rounds}, "config": {"seed": seed}})
    config = comparison.scenario.config
    console.print(
        f"{config.num_nodes} nodes, {config.byzantine} of them liars; each Solon node sends 1/{config.compression} of "
        "the gradient, the others all of it.\n",
        highlight=False,
    )
    compare(comparison, output, Machine(processes=min(usable_cores(), MOST_PROCESSES)), brief=True)
