"""`solon-fl demo`: the first command to try."""

from pathlib import Path
from typing import Annotated

import typer

from solon_fl.cli.compare import compare, load
from solon_fl.cli.meanings import CONFIG
from solon_fl.cli.options import Machine
from solon_fl.cli.terminal import console
from solon_fl.simulations.threads import usable_cores

__all__ = ["demo"]

MOST_PROCESSES = 8  # each takes half a gigabyte


def demo(
    rounds: Annotated[int, typer.Option(help="Number of rounds of every run.")] = 21,
    seed: Annotated[int, typer.Option(help=CONFIG["seed"])] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the runs, report.html and accuracy.png.")] = Path(
        "solon-results/demo"
    ),
) -> None:
    """Compare Solon with five other strategies while 5 of 24 nodes lie.

    Trains a small network on 5,000 Fashion-MNIST images 18 times: with each of six strategies, without an attack and
    under two attacks. All runs see the same batches. Open report.html in the output folder for the results.

    The command solon-fl compare demo does the same, and takes more options.
    """
    typed = {"rounds": f"--rounds {rounds}", "seed": f"--seed {seed}"}
    comparison = load("demo", {"scenario": {"rounds": rounds}, "config": {"seed": seed}}, typed)
    config = comparison.scenario.config
    console.print(
        f"{config.byzantine} of {config.num_nodes} nodes lie. A node sends 1/{config.compression} of the gradient with "
        "Solon, and a whole gradient with the other strategies.\n",
        highlight=False,
    )
    compare(comparison, output, Machine(processes=min(usable_cores(), MOST_PROCESSES)), brief=True)
