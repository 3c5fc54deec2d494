"""Options that several commands share. An option that was not given is None, and the command's default applies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from solon_fl.checks import check_whole
from solon_fl.cli.meanings import CONFIG
from solon_fl.config import SolonConfig, smallest_group_of
from solon_fl.simulations.attacks import ATTACKS
from solon_fl.simulations.datasets import DATASETS, MODELS
from solon_fl.simulations.own import OWN
from solon_fl.simulations.run import Scenario
from solon_fl.simulations.settings import defaults_of
from solon_fl.simulations.threads import check_threads, usable_cores

__all__ = [
    "DATASET_HELP",
    "MODEL_HELP",
    "SCENARIO_DEFAULTS",
    "AttackName",
    "Byzantine",
    "Compression",
    "DatasetName",
    "Machine",
    "ModelName",
    "Nodes",
    "Verbose",
    "config_of",
]

DEFAULT_CONFIG = {"num_nodes": 20, "byzantine": 2, "compression": 6}
_NODES = f"{DEFAULT_CONFIG['num_nodes']}, rounded up to fill the groups"
SCENARIO_DEFAULTS = defaults_of(Scenario)

Nodes = Annotated[int | None, typer.Option(help=f"{CONFIG['num_nodes']} Default: {_NODES}.")]
Byzantine = Annotated[int | None, typer.Option(help=f"{CONFIG['byzantine']} Default: {DEFAULT_CONFIG['byzantine']}.")]
Compression = Annotated[
    int | None, typer.Option(help=f"{CONFIG['compression']} Default: {DEFAULT_CONFIG['compression']}.")
]
AttackName = Annotated[
    str | None, typer.Option(help=f"Attack of the liars: none (the default), {', '.join(ATTACKS)}, or {OWN}.")
]
DATASET_HELP = f"Data set: {', '.join(DATASETS)}, a folder with a subfolder for each class, or {OWN}."
MODEL_HELP = f"Network: {', '.join(MODELS)}, or {OWN}."
DatasetName = Annotated[str | None, typer.Option(help=f"{DATASET_HELP} Default: {SCENARIO_DEFAULTS['dataset']}.")]
ModelName = Annotated[str | None, typer.Option(help=f"{MODEL_HELP} Default: {SCENARIO_DEFAULTS['model']}.")]
Verbose = Annotated[bool, typer.Option(help="Show Flower's log.")]


def config_of(given: Mapping[str, Any]) -> SolonConfig:
    """Return the config of a command whose settings have defaults. By default there are enough nodes for whole groups.

    Raises
    ------
    ConfigurationError
        If the settings contradict each other.
    """
    settings = {**DEFAULT_CONFIG, **given}
    if "num_nodes" not in given:
        size = settings.get("group_size") or smallest_group_of(
            settings.get("verification", "algebra"),
            settings.get("referee", False),
            byzantine=settings["byzantine"],
            compression=settings["compression"],
            stragglers=settings.get("stragglers", 0),
        )
        settings["num_nodes"] = -(-DEFAULT_CONFIG["num_nodes"] // size) * size
    return SolonConfig(**settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The threads and processes of this machine that a command uses."""

    threads: int = 1
    processes: int = 1

    def __post_init__(self) -> None:
        check_threads(self.threads)
        check_whole("processes", self.processes, 1, usable_cores())
