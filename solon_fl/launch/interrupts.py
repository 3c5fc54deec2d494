"""Turns signals that end a program into exceptions, so that it cleans up."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

__all__ = ["Interrupted", "run_interruptibly"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal ends the program; only clean-up code may catch this."""


def run_interruptibly(program: Callable[[], object]) -> None:
    """Run a program so that it can clean up when a signal ends it."""
    for each in SIGNALS:
        signal.signal(each, _interrupt)
    try:
        program()
    except Interrupted as interruption:
        print("Interrupted; all processes have been stopped.", file=sys.stderr)
        sys.exit(128 + interruption.args[0])


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Turn a signal into an exception, and ignore further signals during the clean-up."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)
