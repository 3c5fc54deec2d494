"""Runs Flower's programs faster: forked from one process that has imported everything, and with shorter waits.

Flower starts two processes for each node, and one for every message, which imports torch. Each takes 2 to 8 s of CPU
time. A node also asks for messages only every 3 s, and Flower takes up to a minute to notice that a node is gone. Nodes
on their own machines can afford that. Several nodes on one machine wait for one another, and a test waits for all.

Here, each of Flower's programs is still a separate process with separate memory, and computes the same results. But it
is forked from the process of this file, and so are the programs that it starts in turn. This replaces private names
inside Flower. If another version of Flower lacks one, the program ends at once with an error.
"""

import ctypes
import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from solon_fl.launch.faulty import CLIENTAPP, FAULTS, install
from solon_fl.launch.processes import TAG

__all__ = ["NAMESPACE", "Forked", "Forker"]

ROOT = Path(__file__).parents[1]
PROGRAMS = {script.name: script for script in distribution("flwr").entry_points.select(group="console_scripts")}
APPS = (CLIENTAPP, "flwr-serverapp")
MODULES = (  # modules that apps import
    *("torch", "solon_fl.clients", "solon_fl.strategies"),
    *("solon_fl.simulations.attacks.registry", "solon_fl.simulations.datasets.models"),
    "solon_fl.simulations.run",
    "torch._inductor",  # imported by the first optimizer, and by deterministic kernels
)
NAMESPACE = "SOLON_NAMESPACE"  # environment variable: the network namespace that a process enters; "" for none
NAMESPACES = Path("/var/run/netns")  # the folder of `ip netns`
CLONE_NEWNET = 0x40000000
TAG_LENGTH = 120  # length to which tags are padded in the environment that /proc shows

TASK_POLL_INTERVAL = 0.3  # seconds between a SuperExec's polls for tasks; each takes several ms of CPU time
LONGEST_PAUSE = 1.0  # seconds between a SuperNode's polls for messages; each takes more
HEARTBEAT_INTERVAL = 10  # seconds, the least that a SuperLink accepts; it waits for twice as long


class Forked:
    """A program that a `Forker` has started."""

    def __init__(self, exit_file: Path, forker: subprocess.Popen[bytes]) -> None:
        self._exit_file = exit_file
        self._forker = forker

    def poll(self) -> int | None:
        """Return the exit code, or None while the program runs."""
        try:
            return int(self._exit_file.read_text())
        except (FileNotFoundError, ValueError):
            return self._forker.poll()  # if the forker has ended, so has the program


class Forker:
    """The process from which all others are forked.

    Parameters
    ----------
    folder : Path
        Folder for exit codes.
    variables : mapping
        The environment of the process. It contains `processes.TAG`, which each program replaces with its own tag.
    log : Path
        The file for the output of the process itself.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str], log: Path) -> None:
        self._folder = folder
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._started = 0
        ends = [theirs.fileno(), self._requests.fileno()]
        with theirs, log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, *map(str, ends)],
                cwd=ROOT,
                env={**variables, TAG: variables[TAG].ljust(TAG_LENGTH, "_")},
                pass_fds=ends,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> Forked:
        """Start one of Flower's programs with this environment, and write its output to the log."""
        self._started += 1
        exit_file = self._folder / f"exit-{self._started}"
        _request(self._requests, command, variables, str(log), str(exit_file))
        return Forked(exit_file, self.process)

    def close(self) -> None:
        """Wait for the process to end; it must have been killed."""
        self.process.wait()
        self._requests.close()


def _request(
    requests: socket.socket, command: Sequence[str], variables: Mapping[str, str], output: str, exit_file: str = ""
) -> None:
    requests.send(json.dumps([list(command), dict(variables), output, exit_file]).encode())


# Code of the process itself


def _main() -> NoReturn:
    incoming, outgoing = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    _change_flower()
    subprocess.Popen = _forking_popen(outgoing)  # type: ignore[assignment, misc]  # on purpose
    sys.argv = _serve(incoming)
    sys.exit(PROGRAMS[sys.argv[0]].load()())


def _change_flower() -> None:
    hurried_time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, LONGEST_PAUSE)))
    for module_name, name, value in (
        ("flwr.supercore.heartbeat", "HEARTBEAT_DEFAULT_INTERVAL", HEARTBEAT_INTERVAL),
        ("flwr.supernode.fleet_http_connection", "HEARTBEAT_DEFAULT_INTERVAL", HEARTBEAT_INTERVAL),
        ("flwr.supernode.start_client_internal", "time", hurried_time),
        # A SuperExec would hide its environment, by which the federation finds it, from everybody except root.
        ("flwr.supercore.cli.flower_superexec", "disable_process_dumping", lambda strict: None),
    ):
        module = import_module(module_name)
        if not hasattr(module, name):
            raise AttributeError(f"this version of Flower has no {module_name}.{name}; run it without hurry.")
        setattr(module, name, value)


def _forking_popen(requests: socket.socket) -> type[subprocess.Popen[Any]]:
    """Return a `Popen` that forks Flower's programs and starts all others as usual."""

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __new__(cls, command: Sequence[str] | str, *args: Any, **options: Any) -> Any:
            if isinstance(command, str) or command[0] not in PROGRAMS:
                return super().__new__(cls)
            silent = options.get("stdout") == subprocess.DEVNULL
            _request(requests, command, os.environ, os.devnull if silent else os.readlink("/proc/self/fd/1"))
            return None  # Flower does not use the result

    return Popen


def _serve(requests: socket.socket) -> list[str]:
    """Fork for each incoming command and return it in the new process; end with the federation's process."""
    federation = os.getppid()
    exit_files: dict[int, str] = {}  # by process id
    modules = iter(MODULES)
    requests.settimeout(0.1)
    while os.getppid() == federation:
        _note_exits(exit_files)
        try:
            command, variables, output, exit_file = json.loads(requests.recv(1 << 18))
        except TimeoutError:
            for module in modules:  # use the idle time to import one
                import_module(module)
                break
            continue
        PROGRAMS[command[0]].load()
        if command[0] in APPS:
            for module in modules:
                import_module(module)
        gc.freeze()  # keeps collections from writing to the memory that the processes share
        child = os.fork()
        if child == 0:
            _become(command[0], variables, output)
            if command[0] == CLIENTAPP and FAULTS in variables:
                install()
            return list(command)
        exit_files[child] = exit_file
    os._exit(0)


def _note_exits(exit_files: dict[int, str]) -> None:
    while exit_files:
        process_id, status = os.waitpid(-1, os.WNOHANG)
        if process_id == 0:
            return
        if exit_file := exit_files.pop(process_id):
            Path(exit_file).write_text(str(os.waitstatus_to_exitcode(status)))


def _become(program: str, variables: Mapping[str, str], output: str) -> None:
    """Set up the new process as if it had been started: its session, environment, output and name."""
    os.setsid()
    if namespace := variables.get(NAMESPACE):
        _enter(namespace)
    os.environ.clear()
    os.environ.update(variables, FLWR_SUPEREXEC_TASK_POLL_INTERVAL=str(TASK_POLL_INTERVAL))
    log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    Path("/proc/self/comm").write_text(program[:15])
    # /proc still shows the environment of the process that it was forked from. Change the tag there.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        place = memory.read(end - start).index(f"{TAG}=".encode()) + len(f"{TAG}=")
        memory.seek(start + place)
        memory.write(variables[TAG].ljust(TAG_LENGTH, "_").encode())


def _enter(namespace: str) -> None:
    """Enter a network namespace with the only thread of the process, which was just forked."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (NAMESPACES / namespace).open() as place:
        if libc.setns(place.fileno(), CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)}: network namespace {namespace}")


if __name__ == "__main__":
    _main()
