"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from solon_fl.config import CodeName, Mode
from solon_fl.simulations.attacks import ATTACKS
from solon_fl.simulations.datasets import DATASETS, MODELS
from solon_fl.simulations.run import Engine

Nodes = Annotated[int, typer.Option(help="P: nodes in the run, a multiple of the group size.")]
Compression = Annotated[int, typer.Option(help="k: a node sends 1/k of the gradient.")]
Stragglers = Annotated[int, typer.Option(help="e: nodes of each group that may stay silent.")]
AttackName = Annotated[str, typer.Option(help=f"What the liars do: none, {', '.join(ATTACKS)}.")]
NumLiars = Annotated[
    int | None, typer.Option(help="Liars among all nodes. Default: as many as Solon bears in every group.")
]
DatasetName = Annotated[str, typer.Option(help=f"Data: {', '.join(DATASETS)}.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder (or file) of a data set that does not come with the package.")
]
ModelName = Annotated[str, typer.Option(help=f"Network: {', '.join(MODELS)}.")]
ModeName = Annotated[str, typer.Option(help=f"What is coded: {', '.join(get_args(Mode))} (after local steps).")]
LocalLearningRate = Annotated[float, typer.Option(help="Of the local steps, in mode update.")]
Code = Annotated[str, typer.Option(help=f"The code: {', '.join(get_args(CodeName))} (the paper's).")]
EngineName = Annotated[
    str, typer.Option(help=f"Where nodes run: {', '.join(get_args(Engine))} (needs solon-fl\\[ray]).")
]
Verbose = Annotated[bool, typer.Option(help="Show Flower's log.")]
