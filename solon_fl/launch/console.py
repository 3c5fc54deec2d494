"""Flower's command line in a running process: starting `flwr` takes 2 s of CPU time, another command in it 0.02 s."""

import json
import os
import select
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

from solon_fl.launch.errors import FederationError
from solon_fl.launch.processes import TAG, kill_all

__all__ = ["Console"]


class Console:
    """A process that executes commands of ``flwr``, one after another.

    If the current process dies without closing the console, the console kills the whole federation on this machine.

    Parameters
    ----------
    folder : Path
        The federation's folder.
    variables : mapping
        The environment of the console.
    log : Path
        The file for the console's own errors.
    timeout : float
        Seconds within which a command must end.
    erase : bool
        Whether the console also deletes the folder when it kills the federation.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str], log: Path, timeout: float, *, erase: bool) -> None:
        self._timeout = timeout
        self._turn = threading.Lock()
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(folder) if erase else ""],
                env=dict(variables),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                text=True,
            )

    def run(self, *arguments: str) -> str:
        """Execute ``flwr ARGUMENTS`` and return its output.

        Raises
        ------
        FederationError
            If the command fails or does not end in time.
        """
        command = f"flwr {' '.join(arguments)}"
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self._turn:
            try:
                print(json.dumps(arguments), file=self.process.stdin, flush=True)
            except BrokenPipeError:
                raise FederationError(f"{command} failed: Flower's command line has ended.") from None
            if not select.select([self.process.stdout], [], [], self._timeout)[0]:
                raise FederationError(f"{command} did not end within {self._timeout:.0f} s.")
            line = self.process.stdout.readline()
        if not line:
            raise FederationError(f"{command} failed: Flower's command line has ended.")
        code, printed, errors = json.loads(line)
        if code:
            raise FederationError(f"{command} failed: {(errors or printed).strip()}")
        return str(printed)

    def close(self) -> None:
        """Wait for the console to end; it must have been killed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def _execute(arguments: list[str]) -> int:
    """Execute a command in this process and return its exit code."""
    from flwr.cli.app import app

    sys.argv = ["flwr", *arguments]
    try:
        app(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
    return 1


def _serve(answers: TextIO) -> None:
    """Execute commands from the standard input, one JSON list a line, and answer each with one line."""
    for line in sys.stdin:
        with TemporaryFile("w+") as printed, TemporaryFile("w+") as errors:
            os.dup2(printed.fileno(), 1)  # redirect descriptors, because Flower replaces sys.stdout
            os.dup2(errors.fileno(), 2)
            code = _execute(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            printed.seek(0)
            errors.seek(0)
            print(json.dumps([code, printed.read(), errors.read()]), file=answers, flush=True)


if __name__ == "__main__":
    federation, folder = os.environ[TAG].partition("/")[0], sys.argv[1]
    with suppress(BrokenPipeError):
        _serve(os.fdopen(os.dup(1), "w"))
    # The process that could send commands has ended.
    kill_all(federation)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
