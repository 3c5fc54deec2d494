"""Whether a process is still the one that it was."""

import os
from pathlib import Path

__all__ = ["is_alive", "start_time"]

PROC = Path("/proc")


def start_time(process: int) -> str:
    """Return when a process was started, in the kernel's ticks; "" if it has ended, "0" where there is no /proc."""
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
    """Return whether this is still the process that was started then."""
    return start_time(process) == started
