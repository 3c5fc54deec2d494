"""Options that commands share."""

from typing import Annotated

import typer

from solon_fl.launch.faults import FORM

__all__ = ["FaultOption"]

FaultOption = Annotated[
    list[str] | None,
    typer.Option("--fault", metavar="FAULT", help=f"Make a node fail while the run goes on: {FORM}. Repeatable."),
]
