"""A ``flower-supernode`` that forks its processes for messages: ``python -m solon_fl.resident.supernode ...``.

A SuperNode starts the program flwr-clientapp for each message, which takes 2 to 3 s of CPU time to import Flower. Here,
it finds another program of that name first: a few lines that ask a process which has imported Flower, and nothing else,
to fork. The new process does what flwr-clientapp would do. The current process becomes the SuperNode. The process that
forks is its child and ends with it.
"""

import gc
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import NoReturn

import numpy as np

from solon_fl.resident.channel import check_peer
from solon_fl.resident.errors import ResidentError
from solon_fl.resident.processes import is_alive, start_time

__all__ = ["main"]

SUPERNODE, CLIENTAPP = "flower-supernode", "flwr-clientapp"
SOCKET = "socket"
LOOK_SECONDS = 0.5  # between two checks whether the SuperNode is alive
LARGEST = 1 << 20  # bytes of a command line and an environment
# Without site packages, this takes 15 ms. If no process forks, it runs Flower's own program.
ASK = """
import json, os, socket, sys
folder, program, *arguments = sys.argv[1:]
try:
    place = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"/proc/self/fd/{place}/socket")
        request = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
        socket.send_fds(connection, [request], [1, 2])
        connection.shutdown(socket.SHUT_WR)
        taken = connection.recv(1) == b"+"
except OSError:
    taken = False
if not taken:
    os.execv(program, [program, *arguments])
"""


@dataclass(frozen=True)
class Request:
    """A request for a process: command line, environment, working folder, and descriptors for output and errors."""

    arguments: list[str]
    variables: dict[str, str]
    folder: str
    output: list[int]


def main() -> NoReturn:
    """Run a SuperNode with the options of ``flower-supernode``."""
    programs = {name: shutil.which(name, path=_path()) for name in (SUPERNODE, CLIENTAPP)}
    for name, found in programs.items():
        if found is None:
            raise SystemExit(f"{name} must be on the PATH or beside {sys.executable}; install flwr there.")
    supernode, clientapp = (str(found) for found in programs.values())
    if not Path("/proc/self/fd").exists():  # not Linux
        os.execv(supernode, [supernode, *sys.argv[1:]])
    own = os.getpid()
    prefix = f"solon-supernode-{os.geteuid()}-"
    _tidy(prefix)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{own}-{start_time(own)}-"))
    (folder / "ask.py").write_text(ASK)
    words = [sys.executable, "-I", "-S", str(folder / "ask.py"), str(folder), clientapp]
    (folder / CLIENTAPP).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    (folder / CLIENTAPP).chmod(0o700)
    place = os.open(folder, os.O_RDONLY)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"/proc/self/fd/{place}/{SOCKET}")
    listener.listen()
    if os.fork() == 0:
        _fork_for_messages(listener, own, folder)
    os.environ["PATH"] = f"{folder}{os.pathsep}{_path()}"
    os.execv(supernode, [supernode, *sys.argv[1:]])


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{Path(sys.executable).parent}"


def _tidy(prefix: str) -> None:
    """Delete the folders of SuperNodes whose forking process was killed before it could delete them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        process, _, rest = folder.name.removeprefix(prefix).partition("-")
        if process.isdigit() and not is_alive(int(process), rest.partition("-")[0]):
            shutil.rmtree(folder, ignore_errors=True)


def _fork_for_messages(listener: socket.socket, supernode: int, folder: Path) -> NoReturn:
    """Fork for each message until the SuperNode has ended; the new process runs flwr-clientapp."""
    os.setsid()  # a Ctrl-C in the terminal ends the SuperNode, and then this process
    (entry,) = distribution("flwr").entry_points.select(group="console_scripts", name=CLIENTAPP)
    program = entry.load()
    import_module("solon_fl.resident.app")
    gc.freeze()  # keeps collections from writing to the memory that the processes share
    listener.settimeout(LOOK_SECONDS)
    while os.getppid() == supernode:
        _reap()
        try:
            connection = listener.accept()[0]
        except TimeoutError:
            continue
        with connection:
            request = _take(connection)
        if request is None:
            continue
        if os.fork() == 0:
            listener.close()
            _become(request)
            sys.exit(program())
        _close(request.output)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _reap() -> None:
    """Reap processes that have ended; their exit codes are not needed."""
    with suppress(ChildProcessError):  # there is no child process
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _take(connection: socket.socket) -> Request | None:
    """Return the request that comes through a connection, or None if it is invalid."""
    output: list[int] = []
    try:
        check_peer(connection)
        connection.settimeout(LOOK_SECONDS)
        text, output, _, _ = socket.recv_fds(connection, LARGEST, 2)
        while more := connection.recv(LARGEST):
            text += more
        arguments, variables, folder = json.loads(text)
        connection.sendall(b"+")
        return Request(arguments, variables, folder, output)
    except (OSError, ResidentError, TypeError, ValueError) as error:
        print(f"solon_fl: a request for a process was dropped: {error!r}", file=sys.stderr)
        _close(output)
        return None


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _become(request: Request) -> None:
    """Set up this process as if it had been started for the request."""
    for descriptor, standard in zip(request.output, (1, 2), strict=True):
        os.dup2(descriptor, standard)
    _close(request.output)
    os.environ.clear()
    os.environ.update(request.variables)
    os.chdir(request.folder)
    np.random.seed()  # noqa: NPY002  # otherwise it would be the same in all forked processes
    sys.argv = [CLIENTAPP, *request.arguments]


if __name__ == "__main__":
    main()
