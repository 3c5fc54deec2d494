"""`solon-fl calibrate`: measures float noise, and says how large rtol must be."""

from itertools import product
from typing import Annotated, cast, get_args

import typer

from solon_fl.cli import options
from solon_fl.cli.meanings import CONFIG, SCENARIO, without
from solon_fl.cli.settings import Keys, SetOption
from solon_fl.cli.terminal import console, set_log_level
from solon_fl.config import SolonConfig, Verification, smallest_group_of
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.run.float_noise import Kernels, NodeKind, calibrate_scenario
from solon_fl.simulations.run.scenario import Scenario
from solon_fl.simulations.settings import defaults_of
from solon_fl.simulations.threads import check_threads, usable_cores

__all__ = ["KEYS", "calibrate_command"]

# Nothing is trained, and the strategy is always Solon.
NOT_TAKEN = ("strategy", "rounds", "learning_rate", "momentum", "sign_learning_rate", "compute_once")
KEYS = Keys(
    {SolonConfig: CONFIG, Scenario: without(SCENARIO, *NOT_TAKEN)},
    options=("num_nodes", "byzantine", "compression", "verification", "attack", "dataset", "model"),
)


def calibrate_command(
    nodes: options.Nodes = None,
    byzantine: options.Byzantine = None,
    compression: options.Compression = None,
    verification: Annotated[
        str | None, typer.Option(help=f"{CONFIG['verification']} One of {', '.join(get_args(Verification))}.")
    ] = None,
    threads: Annotated[
        str,
        typer.Option(
            help="Threads of torch. Several numbers, such as 1,2, are assigned to the nodes in turn. This machine has "
            f"{usable_cores()} cores."
        ),
    ] = "1",
    kernels: Annotated[
        str,
        typer.Option(
            help=f"Torch's CPU kernels: {' or '.join(get_args(Kernels))}. {','.join(get_args(Kernels))} assigns both "
            "to the nodes in turn."
        ),
    ] = "onednn",
    attack: options.AttackName = None,
    all_honest: Annotated[
        bool, typer.Option(help="Take all nodes for honest: count those that differ from the others, too.")
    ] = False,
    dataset: options.DatasetName = None,
    model: options.ModelName = None,
    rounds: Annotated[int, typer.Option(help="Rounds to measure, each with its own batches.")] = 1,
    verbose: options.Verbose = False,
    settings: SetOption = None,
) -> None:
    """Find out whether nodes compute the same bits, as code=exact needs, and otherwise which rtol they need.

    Honest nodes with different processors, versions or numbers of threads add the same numbers in a different order, so
    their results differ by rounding. rtol must be larger than that. For example, nodes of four kinds on this machine:

        solon-fl calibrate --threads 1,2 --kernels onednn,native

    For your own nodes, call solon_fl.strategies.calibrate(grid, initial_arrays, config) in your ServerApp. See
    docs/how-to/calibrate.md.
    """
    set_log_level(verbose)
    given = {
        "num_nodes": nodes,
        "byzantine": byzantine,
        "compression": compression,
        "verification": verification,
        "attack": attack,
        "dataset": dataset,
        "model": model,
    }
    values = KEYS.read(settings, given)
    config = options.config_of(values[SolonConfig])
    kinds = [NodeKind(threads=n, kernels=cast(Kernels, k)) for n, k in product(_numbers(threads), _split(kernels))]
    found = calibrate_scenario(
        Scenario(config=config, **values[Scenario]), kinds, rounds=rounds, liars=0 if all_honest else None
    )
    console.print(str(found), highlight=False, markup=False, soft_wrap=True)
    default = " (the default)" if found.rtol == defaults_of(SolonConfig)["rtol"] else ""
    code = "code='fourier', " if config.code == "exact" else ""
    use = "To use it: SolonConfig(..., code='exact')"
    if not found.exact:
        use = f"To use it{default}: SolonConfig(..., {code}rtol={found.rtol:g})"
    console.print(use, highlight=False, markup=False)
    if config.verification == "digest":
        least = smallest_group_of(
            "algebra",
            config.referee,
            byzantine=config.byzantine,
            compression=config.compression,
            stragglers=config.stragglers,
        )
        suits = "You can use digests, too: all nodes compute the same bits."
        fails = f"Don't use digests: nodes compute different bits. Use verification=algebra, in groups of {least}."
        console.print(suits if found.exact else fails, highlight=False, markup=False, soft_wrap=True)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _numbers(text: str) -> list[int]:
    if not all(part.isdecimal() for part in _split(text)):
        raise ConfigurationError(f"--threads must be whole numbers, such as 1,2; got --threads {text!r}.")
    numbers = [int(part) for part in _split(text)]
    for number in numbers:
        check_threads(number)
    return numbers
