"""Checks whether a process id still belongs to the same process."""

import os
from pathlib import Path

__all__ = ["is_alive", "start_time"]

PROC = Path("/proc")


def start_time(process: int) -> str:
    """Return a process's start time in the kernel's ticks; "" if it has ended, "0" on systems without /proc."""
    if not (PROC / "self").exists():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "0"
    try:
        state, *fields = (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def is_alive(process: int, started: str) -> bool:
    """Return whether the process with this id and start time is still alive."""
    return start_time(process) == started
