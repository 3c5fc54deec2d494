"""Signals that end a program, as exceptions, so that it cleans up."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

__all__ = ["Interrupted", "run_interruptibly"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal came that ends the program; nothing but the cleaning up may catch it."""


def run_interruptibly(program: Callable[[], object]) -> None:
    """Run a program that cleans up after itself, also when a signal ends it."""
    for each in SIGNALS:
        signal.signal(each, _interrupt)
    try:
        program()
    except Interrupted as interruption:
        print("Interrupted; all processes are stopped.", file=sys.stderr)
        sys.exit(128 + interruption.args[0])


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Turn a signal into an exception, and let no further signal disturb the cleaning up."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)
