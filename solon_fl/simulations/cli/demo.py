"""`solon-fl demo`: what to look at first."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from solon_fl.config import SolonConfig
from solon_fl.simulations.cli.terminal import console, progress_bar, run_scenario, set_log_level
from solon_fl.simulations.output import comparison_table, plot_comparison, write_jsonl
from solon_fl.simulations.scenario import Scenario

__all__ = ["demo"]


def demo(
    rounds: Annotated[int, typer.Option(help="Rounds of each of the seven runs.")] = 60,
    seed: Annotated[int, typer.Option(help="Fixes weights, batches and liars.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the plot and the JSON lines.")] = Path("solon-results/demo"),
) -> None:
    """Solon against FedAvg and MultiKrum while a quarter of 20 nodes lie.

    Trains a small network on 5,000 Fashion-MNIST images seven times: without an attack, and under two attacks
    with each of the three strategies. All see the same batches.
    """
    set_log_level(verbose=False)
    torch.set_num_threads(1)  # small networks: threads would wait for each other, on a busy machine for ages
    config = SolonConfig(num_nodes=20, byzantine=5, compression=10, seed=seed)
    console.print(
        f"{config.num_nodes} nodes, {config.byzantine} of them liars; each Solon node sends 1/{config.compression} of "
        "the gradient, the others all of it.\n",
        highlight=False,
    )
    runs: list[tuple[str, str | None]] = [("solon", None)]
    runs += [(strategy, attack) for attack in ("alie", "reverse") for strategy in ("solon", "multikrum", "fedavg")]
    outcomes = []
    with progress_bar() as progress:
        for strategy, attack in runs:
            scenario = Scenario(config=config, strategy=strategy, attack=attack, rounds=rounds, batch_size=8)
            outcomes.append(run_scenario(scenario, progress))
            write_jsonl(outcomes[-1], output / f"{strategy}-{attack or 'honest'}.jsonl")
    plot_comparison(outcomes, output / "accuracy.png")
    console.print(comparison_table(outcomes))
    console.print(f"Plot: {output / 'accuracy.png'}", highlight=False, soft_wrap=True)
