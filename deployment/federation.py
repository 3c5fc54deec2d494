"""A real Flower deployment on one machine, that leaves nothing behind: for trying out and for tests.

A SuperLink with TLS admits only SuperNodes whose keys are registered. Each SuperNode is a process of its own, as on a
machine of its own. This needs Linux: the processes that Flower starts are found in /proc.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from deployment.certificates import make_certificates, make_node_key
from deployment.console import Console
from deployment.errors import FederationError
from deployment.hurry import NAMESPACE, Forked, Forker
from deployment.processes import TAG, free_ports, kill_all, listens, processes_with

__all__ = ["Federation", "Run"]

SUPERLINK = "superlink"
CONNECTION = "loopback"  # the SuperLink's name in Flower's configuration
STARTUP_SECONDS = 90.0
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
    "OMP_NUM_THREADS": "1",  # many nodes share one machine
}


class Federation:
    """A SuperLink and its SuperNodes on this machine, from entering the context to leaving it.

    On leaving, all processes are killed and all files deleted. A ``with`` block does that after exceptions too, and a
    program can turn the signals that it gets into exceptions. If it is killed, the federation ends a moment later.

    Parameters
    ----------
    host : str
        Address at which the SuperLink listens.
    hurried : bool
        Run Flower's programs as `deployment.hurry` does. A round then takes 1 to 2 s instead of 5 to 20.
    forking : bool
        Start SuperNodes whose processes for messages are forked: `solon_fl.resident.supernode`.

    Attributes
    ----------
    tag : str
        Unique; in the environment of every process.
    folder : Path
        Holds everything: keys, certificates, logs, Flower's own files.
    port : int
        The SuperLink's.

    Examples
    --------
    >>> with Federation() as federation:  # doctest: +SKIP
    ...     federation.start_nodes({"node-1": {}, "node-2": {"attack": "reverse"}})
    ...     run = federation.start_run(Path("examples/fashion-mnist"), {"num-rounds": 3})
    ...     for line in run.lines():
    ...         print(line)
    """

    def __init__(self, *, host: str = "127.0.0.1", hurried: bool = False, forking: bool = False) -> None:
        self.host = host
        self.tag = uuid4().hex
        self.folder = Path()
        self.port = 0
        self._hurried = hurried
        self._forking = forking
        self._forker: Forker | None = None
        self._console: Console | None = None
        self._processes: dict[str, subprocess.Popen[bytes] | Forked] = {}  # by the name of what runs there
        self._runs: list[Run] = []
        self._names: dict[str, str] = {}  # by Flower's id, the only thing of a node that Flower lists

    def __enter__(self) -> Self:
        if not Path("/proc/self/environ").exists():
            raise FederationError("this needs Linux: it finds the processes that Flower starts in /proc.")
        self.folder = Path(tempfile.mkdtemp(prefix="solon-federation-"))
        try:
            (self.folder / "tmp").mkdir()
            (self.folder / "logs").mkdir()
            if self._hurried:
                self._forker = Forker(self.folder, self._variables("hurry"), self.log_path("hurry"))
            self._start_superlink()
            self._console = Console(self.folder, self._variables("flwr"), self.log_path("flwr"), STARTUP_SECONDS)
            self._wait_for_superlink()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Nodes

    def start_nodes(self, nodes: Mapping[str, Mapping[str, str | int]]) -> None:
        """Register a key under each name, start a SuperNode with it and its config, and wait until all are online."""
        for name in nodes:
            self.make_key(name)
            self.register(name)
        for name, config in nodes.items():
            self.start_node(name, config)
        self.wait_until_online(nodes)

    def make_key(self, name: str) -> None:
        """Make a node's pair of keys."""
        make_node_key(self._key_path(name))

    def register(self, name: str) -> None:
        """Let the SuperLink know a node's public key under its name."""
        public_key = str(self._key_path(name).with_suffix(".pub"))
        printed = self.flwr("supernode", "register", public_key, CONNECTION, "--name", name, "--format", "json")
        self._names[str(json.loads(printed)["node-id"])] = name

    def start_node(self, name: str, config: Mapping[str, str | int] | None = None) -> None:
        """Start the SuperNode that holds the key of that name; a node that died can be started again."""
        (port,) = free_ports(1)
        program = [sys.executable, "-m", "solon_fl.resident.supernode"] if self._forking else ["flower-supernode"]
        command = [*program, "--superlink", f"{self.host}:{self.port}", "--port", str(port)]
        command += ["--root-certificates", str(self.folder / "ca.crt")]
        command += ["--auth-supernode-private-key", str(self._key_path(name))]
        if config:
            command += ["--node-config", _key_values(config)]
        self._start(name, command)

    def wait_until_online(self, names: Iterable[str]) -> None:
        """Wait until nodes of these names are connected to the SuperLink."""
        deadline = time.monotonic() + STARTUP_SECONDS
        while missing := set(names) - self.online():
            for name in missing:
                if self.exit_code(name) is not None:
                    raise FederationError(f"SuperNode {name} has ended.{self.last_words(name)}")
            if time.monotonic() > deadline:
                raise FederationError(
                    f"within {STARTUP_SECONDS:.0f} s these SuperNodes did not connect: {', '.join(sorted(missing))}."
                )
            time.sleep(0.2)

    def online(self) -> set[str]:
        """Return the names of the nodes that the SuperLink takes to be connected."""
        listed = json.loads(self.flwr("supernode", "list", CONNECTION, "--format", "json"))
        return {self._names[node["node-id"]] for node in listed["nodes"] if node["status"] == "online"}

    def processes(self, name: str, program: str = "") -> list[int]:
        """Return the ids of the processes of a node, or of "superlink", that run this program; by default all."""
        return processes_with(f"{self.tag}/{name}/", program)

    def kill(self, name: str) -> None:
        """Kill a node, or "superlink", and all it has started, as a power cut would."""
        kill_all(f"{self.tag}/{name}/")
        while self.exit_code(name) is None:
            time.sleep(0.02)

    def exit_code(self, name: str) -> int | None:
        """Return a node's exit code; None while it runs."""
        return self._processes[name].poll()

    def last_words(self, name: str, lines: int = 8) -> str:
        """Return the end of a log, for an error message."""
        for path in (self.log_path(name), self.log_path("hurry")):
            if path.exists() and (words := path.read_text(errors="replace").splitlines()):
                return "".join(f"\n    {line}" for line in ["Its last words:", *words[-lines:]])
        return ""

    def log_path(self, name: str) -> Path:
        """Return where the output of a node, or of "superlink", goes."""
        return self.folder / "logs" / f"{name.replace('/', '_')}.log"

    # Runs

    def start_run(self, app: Path, config: Mapping[str, str | int | float]) -> "Run":
        """Start a Flower app, with some of its settings changed."""
        command = ["flwr", "run", str(app), CONNECTION, "--stream"]
        if config:
            command += ["--run-config", _key_values(config)]
        with self.log_path("flwr-run").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self._variables("flwr"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        run = Run(self, process)
        self._runs.append(run)
        return run

    def flwr(self, *arguments: str) -> str:
        """Run a command of Flower's and return what it prints."""
        assert self._console is not None, "the federation has not been entered"
        return self._console.run(*arguments)

    def check_superlink(self) -> None:
        """Raise if the SuperLink has ended."""
        if self.exit_code(SUPERLINK) is not None:
            raise FederationError(f"the SuperLink has ended.{self.last_words(SUPERLINK)}")

    # The end

    def close(self) -> None:
        """Kill everything and delete the folder."""
        # SIGKILL at once: nothing here is worth saving, and a SuperNode that is asked to end may leave its ClientApp.
        kill_all(self.tag)
        for process in self._processes.values():
            if isinstance(process, subprocess.Popen):
                process.wait()
        for running in (*self._runs, self._console, self._forker):
            if running is not None:
                running.close()
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)

    # How

    def _start_superlink(self) -> None:
        make_certificates(self.folder, self.host)
        (self.port,) = free_ports(1)
        home = self.folder / "homes" / "flwr"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink.{CONNECTION}]\naddress = "{self.host}:{self.port}"\n'
            f'root-certificates = "{self.folder / "ca.crt"}"\n'
        )
        self._start(
            SUPERLINK,
            [
                *("flower-superlink", "--host", self.host, "--port", str(self.port)),
                *("--ssl-ca-certfile", str(self.folder / "ca.crt")),
                *("--ssl-certfile", str(self.folder / "server.pem")),
                *("--ssl-keyfile", str(self.folder / "server.key")),
                "--enable-supernode-auth",
                "--disable-runtime-dependency-installation",
            ],
        )

    def _wait_for_superlink(self) -> None:
        deadline = time.monotonic() + STARTUP_SECONDS
        while not listens(self.host, self.port):
            self.check_superlink()
            if time.monotonic() > deadline:
                raise FederationError(f"the SuperLink does not listen after {STARTUP_SECONDS:.0f} s.")
            time.sleep(0.1)

    def _namespace(self, name: str) -> str:
        """Return the network namespace in which a node, or "superlink", runs; "": the machine's own."""
        return ""

    def _start(self, name: str, command: Sequence[str]) -> None:
        namespace = self._namespace(name)
        if self._forker is not None:
            variables = {**self._variables(name), NAMESPACE: namespace}
            self._processes[name] = self._forker.start(command, variables, self.log_path(name))
            return
        prefix = ["ip", "netns", "exec", namespace] if namespace else []
        with self.log_path(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*prefix, *command],
                env=self._variables(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal must reach the program that cleans up, and only it
            )

    def _variables(self, name: str) -> dict[str, str]:
        return {
            **os.environ,
            **QUIET,
            # The commands beside this Python, whether or not its virtual environment is active.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "TMPDIR": str(self.folder / "tmp"),
            "FLWR_HOME": str(self.folder / "homes" / name.replace("/", "_")),
            TAG: f"{self.tag}/{name}/",
        }

    def _key_path(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '_')}.key"


class Run:
    """A run that was started by `Federation.start_run`."""

    def __init__(self, federation: Federation, process: subprocess.Popen[str]) -> None:
        self._federation = federation
        self._process = process
        self._id = ""

    def lines(self) -> Iterator[str]:
        """Yield what the ServerApp prints and logs, line by line, until the run ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "Successfully started run" in line:
                self._id = line.split("run ")[1].split()[0]
            yield line.rstrip("\n")
        self._process.wait()

    def checked_lines(self) -> Iterator[str]:
        """Yield what `lines` does, and raise at the end if the run has failed."""
        tail: list[str] = []
        for line in self.lines():
            tail = [*tail[-15:], line]
            yield line
        status = self.facts()["status"]
        if status != "finished:completed":
            raise FederationError("\n    ".join([f"the run has failed ({status}). Its last words:", *tail]))

    def facts(self) -> dict[str, Any]:
        """Return what Flower knows of the run: its "status" ("finished:completed"), "network-traffic" and more."""
        self._federation.check_superlink()
        if not self._id:
            raise FederationError(f"the run did not start.{self._federation.last_words('flwr-run')}")
        listed = json.loads(self._federation.flwr("list", CONNECTION, "--run-id", self._id, "--format", "json"))
        facts: dict[str, Any] = listed["runs"][0]
        return facts

    def close(self) -> None:
        """Wait for the end of a run that was killed."""
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()


def _key_values(settings: Mapping[str, str | int | float]) -> str:
    """Return settings as Flower's commands take them: TOML, texts in quotes of which they have none themselves."""
    return " ".join(
        f"{key}='{value}'" if isinstance(value, str) and '"' in value else f"{key}={json.dumps(value)}"
        for key, value in settings.items()
    )
