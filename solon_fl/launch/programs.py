"""Starts, finds, suspends and ends Flower's programs on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from solon_fl.launch.errors import FederationError
from solon_fl.launch.processes import TAG, kill_all, processes_with, send_all

__all__ = ["Program", "Programs", "check_node_name", "file_name"]

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
}
NO_NODES = ("superlink", "flwr", "flwr-run")  # names of programs that are not nodes
LONGEST_NAME = 200  # characters of the file name


class Program(Protocol):
    """A program that has been started."""

    def poll(self) -> int | None:
        """Return the exit code, or None while the program runs."""


class Programs:
    """The programs of a federation that run on this machine, each under a name. It needs Linux's /proc to find them.

    Attributes
    ----------
    tag : str
        A unique tag in the environment of every process.
    folder : Path
        The folder for their files: logs, Flower's own files and temporary files.
    """

    def __init__(self, tag: str, folder: Path = Path()) -> None:
        self.tag = tag
        self.folder = folder
        self._processes: dict[str, Program] = {}

    def start(self, name: str, command: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
        """Start a program under a name; its output goes to the log of that name.

        Parameters
        ----------
        name : str
            The node's name, or "superlink".
        command : sequence of str
            The program's command line.
        extra : mapping, optional
            Additional environment variables.
        """
        with self.log_path(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env={**self.variables(name), **(extra or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal must reach only the program that cleans up
            )

    def variables(self, name: str) -> dict[str, str]:
        """Return the environment of the programs under a name."""
        return {
            **os.environ,
            **QUIET,
            # Commands beside this Python come first, whether or not its virtual environment is active.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "TMPDIR": str(self.folder / "tmp"),
            "FLWR_HOME": str(self.folder / "homes" / file_name(name)),
            TAG: f"{self.tag}/{name}/",
        }

    def log_path(self, name: str) -> Path:
        """Return the path of the log of a node, or of "superlink"."""
        return self.folder / "logs" / f"{file_name(name)}.log"

    def make_folders(self) -> None:
        """Make the folders for logs and temporary files."""
        for name in ("tmp", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def processes(self, name: str, program: str = "") -> list[int]:
        """Return the ids of the processes of a node, or of "superlink", that run this program (default: any)."""
        return processes_with(f"{self.tag}/{name}/", program)

    def kill(self, name: str) -> None:
        """Kill a node, or "superlink", and all processes that it has started, as a power cut would."""
        self._send(name, signal.SIGKILL)
        kill_all(f"{self.tag}/{name}/")
        while self.exit_code(name) is None:
            time.sleep(0.02)

    def stop(self, name: str) -> None:
        """Suspend all processes of a node."""
        self._send(name, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Resume the processes of a suspended node."""
        self._send(name, signal.SIGCONT)

    def exit_code(self, name: str) -> int | None:
        """Return a node's exit code, or None while it runs."""
        return self._processes[name].poll()

    def last_words(self, name: str, lines: int = 8) -> str:
        """Return the end of a log, for an error message."""
        path = self.log_path(name)
        words = path.read_text(errors="replace").splitlines() if path.exists() else []
        return "".join(f"\n    {line}" for line in ["The end of its log:", *words[-lines:]]) if words else ""

    def kill_everything(self) -> None:
        """Kill all processes of the federation on this machine."""
        for name in self._processes:
            self._send(name, signal.SIGKILL)
        kill_all(self.tag)
        for process in self._processes.values():
            if isinstance(process, subprocess.Popen):
                process.wait()

    def _send(self, name: str, number: signal.Signals) -> None:
        process = self._processes.get(name)
        if isinstance(process, subprocess.Popen) and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)  # a SuperExec hides its environment from everybody except root
        send_all(f"{self.tag}/{name}/", number)


def check_node_name(name: str) -> None:
    """Check that this can be the name of a node.

    Raises
    ------
    FederationError
        If the name does not begin with a letter or a digit, is not printable, is too long, or is another program's.
    """
    if not (name[:1].isalnum() and name.isprintable() and len(file_name(name)) <= LONGEST_NAME):
        raise FederationError(
            "a node's name must begin with a letter or a digit, and have no control characters and at most "
            f"{LONGEST_NAME} characters (each non-ASCII character counts as up to twelve); got {name[:50]!r}."
        )
    if name.partition("/")[0] in NO_NODES:
        raise FederationError(
            f"a node must not be called {name!r}, which names another program here; call it node-1, for instance."
        )


def file_name(name: str) -> str:
    """Return a unique file name for a name: silo-0/3 becomes silo-0%2F3."""
    return quote(name, safe="")
