"""The command line `solon-fl`, with one module for each command."""

from solon_fl.cli.entry import main

__all__ = ["main"]
