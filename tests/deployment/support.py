"""Helpers for tests of deployments: waiting for events, and checking that nothing is left."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from solon_fl.launch.processes import TAG, listens, processes_with

EXAMPLES = Path(__file__).parents[2] / "examples"


def wait_until(happened: Callable[[], object], what: str, *, seconds: float = 60, pause: float = 0.05) -> None:
    """Wait until a condition is true, and fail if it takes too long."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(pause)


def processes_in(folder: Path, program: str = "") -> list[int]:
    """Return the processes of deployments below this folder that run the program (default: any)."""
    found = []
    for process_id in processes_with("", program):
        try:
            variables = Path(f"/proc/{process_id}/environ").read_text(errors="replace")
        except OSError:
            continue
        if str(folder) in variables:
            assert f"{TAG}=" in variables
            found.append(process_id)
    return found


def ports_of(process_ids: Iterable[int]) -> set[int]:
    """Return the ports that these processes listen at."""
    port_of = {}  # by the target of the file descriptor's link
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A":  # listening
            port_of[f"socket:[{inode}]"] = int(local.split(":")[1], 16)
    found: set[int] = set()
    for process_id in process_ids:
        for descriptor in Path("/proc").glob(f"{process_id}/fd/*"):
            with suppress(FileNotFoundError):  # the descriptor was closed
                found.update(port_of[link] for link in [os.readlink(descriptor)] if link in port_of)
    return found


def send(process_ids: Iterable[int], number: signal.Signals) -> None:
    for process_id in process_ids:
        os.kill(process_id, number)


def assert_nothing_is_left(folder: Path, ports: set[int]) -> None:
    left = [path.name for path in folder.iterdir()]
    assert [name for name in left if not name.startswith("torchinductor")] == []  # torch in this process makes these
    assert processes_in(folder) == []
    # A killed process may take a moment to free its ports.
    wait_until(lambda: not any(listens("127.0.0.1", port) for port in ports), f"ports {ports} are free", seconds=10)
