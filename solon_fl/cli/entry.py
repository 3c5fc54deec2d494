"""Where `solon-fl` starts: checks that what the command line needs is installed, then hands over to the commands."""

import sys
from importlib import import_module
from importlib.util import find_spec

__all__ = ["main"]

# What the extra "simulation" brings, as it is imported.
NEEDED = ("typer", "rich", "matplotlib", "jinja2", "PIL", "threadpoolctl")


def main() -> None:
    """Run the command line; without the extra "simulation", say in one sentence how to get it, and exit with 2."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        print(
            f"error: the command line needs {names}, not installed here; run: pip install 'solon-fl[simulation]'",
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        import_module("solon_fl.cli.app").app()
    except KeyboardInterrupt:  # while torch is imported; the commands say more
        sys.exit(130)
