"""The command `solon-fl`, one module a command."""

from solon_fl.cli.entry import main

__all__ = ["main"]
