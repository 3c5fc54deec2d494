"""Options that several commands have. Without a value of the user's they are None: then the command's default holds."""

from dataclasses import dataclass
from typing import Annotated

import typer

from solon_fl.cli.meanings import CONFIG
from solon_fl.simulations.attacks import ATTACKS
from solon_fl.simulations.datasets import DATASETS, MODELS
from solon_fl.simulations.run import Scenario
from solon_fl.simulations.settings import defaults_of
from solon_fl.simulations.threads import check_threads

__all__ = [
    "DEFAULT_CONFIG",
    "SCENARIO_DEFAULTS",
    "AttackName",
    "Byzantine",
    "Compression",
    "DatasetName",
    "Machine",
    "ModelName",
    "Nodes",
    "Verbose",
]

DEFAULT_CONFIG = {"num_nodes": 20, "byzantine": 2, "compression": 6}
SCENARIO_DEFAULTS = defaults_of(Scenario)

Nodes = Annotated[int | None, typer.Option(help=f"{CONFIG['num_nodes']} Default: {DEFAULT_CONFIG['num_nodes']}.")]
Byzantine = Annotated[int | None, typer.Option(help=f"{CONFIG['byzantine']} Default: {DEFAULT_CONFIG['byzantine']}.")]
Compression = Annotated[
    int | None, typer.Option(help=f"{CONFIG['compression']} Default: {DEFAULT_CONFIG['compression']}.")
]
AttackName = Annotated[str | None, typer.Option(help=f"What the liars do: none (the default), {', '.join(ATTACKS)}.")]
DatasetName = Annotated[
    str | None, typer.Option(help=f"Data: {', '.join(DATASETS)}. Default: {SCENARIO_DEFAULTS['dataset']}.")
]
ModelName = Annotated[
    str | None, typer.Option(help=f"Network: {', '.join(MODELS)}. Default: {SCENARIO_DEFAULTS['model']}.")
]
Verbose = Annotated[bool, typer.Option(help="Show Flower's log.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a command uses of this machine."""

    threads: int = 1

    def __post_init__(self) -> None:
        check_threads(self.threads)
