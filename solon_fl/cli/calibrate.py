"""`solon-fl calibrate`: how large rtol must be."""

from itertools import product
from typing import Annotated, cast, get_args

import typer

from solon_fl.cli import options
from solon_fl.cli.terminal import console, set_log_level
from solon_fl.config import CodeName, Mode, SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.plan.server_time import check_threads
from solon_fl.simulations.run.float_noise import Kernels, NodeKind, calibrate_scenario
from solon_fl.simulations.run.scenario import Engine, Scenario

__all__ = ["calibrate_command"]


def calibrate_command(
    nodes: options.Nodes = 20,
    byzantine: Annotated[int, typer.Option(help="s: nodes of each group that may lie.")] = 2,
    compression: options.Compression = 6,
    stragglers: options.Stragglers = 0,
    group_size: Annotated[int, typer.Option(help="r: nodes of a group, at least 2s + e + k; 0 takes just that.")] = 0,
    threads: Annotated[
        str, typer.Option(help="Threads of torch; several numbers, like 1,2, are given to the nodes in turn.")
    ] = "1",
    kernels: Annotated[
        str,
        typer.Option(help=f"Torch's CPU kernels: {', '.join(get_args(Kernels))}; both, onednn,native, in turn."),
    ] = "onednn",
    attack: options.AttackName = "none",
    num_liars: options.NumLiars = None,
    all_honest: Annotated[
        bool, typer.Option(help="Take all nodes for honest now: a few that differ from the others count, too.")
    ] = False,
    dataset: options.DatasetName = "fashion-mnist-6k",
    data_dir: options.DataDir = None,
    model: options.ModelName = "cnn",
    rounds: Annotated[int, typer.Option(help="Rounds to measure in, each on batches of its own.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Examples in one batch.")] = 32,
    mode: options.ModeName = "gradient",
    local_learning_rate: options.LocalLearningRate = 0.05,
    code: options.Code = "fourier",
    seed: Annotated[int, typer.Option(help="Fixes weights, batches and liars.")] = 0,
    engine: options.EngineName = "in-process",
    verbose: options.Verbose = False,
) -> None:
    """Measure the float noise between nodes, and print the rtol that it needs.

    Honest nodes that add up the same numbers in another order differ by rounding: other processors, numbers of threads,
    versions. rtol must be above that. Here nodes of two kinds, on this machine:

        solon-fl calibrate --threads 1,2 --kernels onednn,native

    On nodes of your own the same is done by a function, called in your ServerApp: solon_fl.strategies.calibrate(grid,
    initial_arrays, config). See docs/how-to/calibrate.md.
    """
    set_log_level(verbose)
    scenario = Scenario(
        config=SolonConfig(
            num_nodes=nodes,
            byzantine=byzantine,
            compression=compression,
            stragglers=stragglers,
            group_size=group_size,
            code=cast(CodeName, code),
            seed=seed,
            mode=cast(Mode, mode),
        ),
        attack=None if attack == "none" else attack,
        num_liars=num_liars,
        dataset=dataset,
        data_dir=data_dir,
        model=model,
        batch_size=batch_size,
        local_learning_rate=local_learning_rate,
        engine=cast(Engine, engine),
    )
    kinds = [NodeKind(threads=n, kernels=cast(Kernels, k)) for n, k in product(_numbers(threads), _split(kernels))]
    found = calibrate_scenario(scenario, kinds, rounds=rounds, liars=0 if all_honest else None)
    console.print(str(found), highlight=False, markup=False, soft_wrap=True)
    default = " (the default)" if found.rtol == scenario.config.rtol else ""
    console.print(f"To use it{default}: SolonConfig(..., rtol={found.rtol:g})", highlight=False, markup=False)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _numbers(text: str) -> list[int]:
    if not all(part.isdecimal() for part in _split(text)):
        raise ConfigurationError(f"--threads must be whole numbers, like 1,2; got --threads {text!r}.")
    numbers = [int(part) for part in _split(text)]
    for number in numbers:
        check_threads(number)
    return numbers
