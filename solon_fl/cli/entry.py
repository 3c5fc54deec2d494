"""Entry point of `solon-fl`: checks that the packages it needs are installed, then runs the commands."""

import sys
from importlib import import_module
from importlib.util import find_spec

__all__ = ["main"]

# Packages of the extra "simulation", by their import names.
NEEDED = ("typer", "rich", "matplotlib", "jinja2", "PIL", "threadpoolctl")


def main() -> None:
    """Run the command line. Without the extra "simulation", print how to install it, and exit with 2."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        print(
            f"error: the command line needs {names}, which are not installed; run: pip install 'solon-fl[simulation]'",
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        import_module("solon_fl.cli.app").app()
    except KeyboardInterrupt:  # while torch is being imported; the commands handle it themselves
        sys.exit(130)
