"""Options that several commands share."""

from typing import Annotated

import typer

from solon_fl.launch.faults import FORM

__all__ = ["FaultOption"]

FaultOption = Annotated[
    list[str] | None,
    typer.Option("--fault", metavar="FAULT", help=f"Inject a fault into a node during the run: {FORM}. Repeatable."),
]
