"""A SuperLink with TLS that admits only nodes with registered keys, and runs on it."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from solon_fl.launch.apps import check_key
from solon_fl.launch.certificates import make_certificates
from solon_fl.launch.console import Console
from solon_fl.launch.errors import FederationError
from solon_fl.launch.processes import free_ports, listens
from solon_fl.launch.programs import Programs

__all__ = ["STARTUP_SECONDS", "SUPERLINK", "Run", "SuperLink", "key_values", "supernode_command"]

SUPERLINK = "superlink"
CONNECTION = "launched"  # the SuperLink's name in Flower's configuration
STARTUP_SECONDS = 90.0
HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


class SuperLink:
    """A SuperLink on this machine.

    Parameters
    ----------
    programs : Programs
        Used to start the SuperLink. Certificates and Flower's configuration go to their folder.
    host : str
        Address or name under which nodes reach the SuperLink.
    listen : str
        Address at which the SuperLink listens. Default: the host.
    program : sequence of str
        The program to start, with the options of ``flower-superlink``.

    Raises
    ------
    FederationError
        If the host is neither an IPv4 address nor a name.
    """

    def __init__(
        self, programs: Programs, host: str, listen: str = "", program: Sequence[str] = ("flower-superlink",)
    ) -> None:
        if HOST.fullmatch(host) is None:
            raise FederationError(
                f"the host must be an IPv4 address or a name of letters, digits and -, with dots between; got {host!r}."
            )
        self._programs = programs
        self._host = host
        self._listen = listen or host
        self._program = program
        self._console: Console | None = None
        self._runs: list[Run] = []
        self._names: dict[str, str] = {}  # by Flower's id, because Flower lists ids only
        self.port = 0

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self._host}:{self.port}"

    @property
    def certificate(self) -> Path:
        """The certificate of the CA that signed the SuperLink's certificate."""
        return self._programs.folder / "ca.crt"

    def start(self, *, erase: bool) -> None:
        """Start the SuperLink and wait until it listens.

        Parameters
        ----------
        erase : bool
            Whether to delete the programs' folder if this process is killed.
        """
        folder = self._programs.folder
        make_certificates(folder, [self._host, *(["127.0.0.1"] if self._listen != self._host else [])])
        (self.port,) = free_ports(1)
        home = Path(self._programs.variables("flwr")["FLWR_HOME"])
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink.{CONNECTION}]\naddress = "{self._control_host}:{self.port}"\n'
            f'root-certificates = "{self.certificate}"\n'
        )
        self._programs.start(
            SUPERLINK,
            [
                *(*self._program, "--host", self._listen, "--port", str(self.port)),
                *("--ssl-ca-certfile", str(self.certificate)),
                *("--ssl-certfile", str(folder / "server.pem")),
                *("--ssl-keyfile", str(folder / "server.key")),
                "--enable-supernode-auth",
                "--disable-runtime-dependency-installation",
            ],
        )
        self._console = Console(
            folder, self._programs.variables("flwr"), self._programs.log_path("flwr"), STARTUP_SECONDS, erase=erase
        )
        deadline = time.monotonic() + STARTUP_SECONDS
        while not listens(self._control_host, self.port):
            self.check()
            if time.monotonic() > deadline:
                raise FederationError(f"the SuperLink does not listen after {STARTUP_SECONDS:.0f} s.")
            time.sleep(0.1)

    def register(self, name: str, public_key: Path) -> None:
        """Register a node's public key under the node's name."""
        printed = self.flwr("supernode", "register", str(public_key), CONNECTION, "--name", name, "--format", "json")
        self._names[str(json.loads(printed)["node-id"])] = name

    def online(self) -> set[str]:
        """Return the names of the nodes that the SuperLink considers connected."""
        listed = json.loads(self.flwr("supernode", "list", CONNECTION, "--format", "json"))
        return {self._names[node["node-id"]] for node in listed["nodes"] if node["status"] == "online"}

    def wait_until_online(
        self, names: Iterable[str], check: Callable[[str], None], seconds: float = STARTUP_SECONDS
    ) -> None:
        """Wait until nodes with these names are connected.

        Parameters
        ----------
        names : iterable of str
            The registered names.
        check : callable
            Called repeatedly with the name of each missing node; it may raise.
        seconds : float
            The longest time to wait before raising.
        """
        deadline = time.monotonic() + seconds
        while missing := set(names) - self.online():
            for name in missing:
                check(name)
            if time.monotonic() > deadline:
                raise FederationError(
                    f"within {seconds:.0f} s these SuperNodes did not connect: {', '.join(sorted(missing))}."
                )
            time.sleep(0.2)

    def start_run(self, app: Path, config: Mapping[str, str | int | float]) -> "Run":
        """Start a Flower app with changed settings."""
        command = ["flwr", "run", str(app), CONNECTION, "--stream"]
        if config:
            command += ["--run-config", key_values(config)]
        with self._programs.log_path("flwr-run").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self._programs.variables("flwr"),
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
        """Run a command of ``flwr`` and return its output."""
        assert self._console is not None, "the SuperLink has not been started"
        return self._console.run(*arguments)

    def check(self) -> None:
        """Raise FederationError if the SuperLink has ended."""
        if self._programs.exit_code(SUPERLINK) is not None:
            raise FederationError(f"the SuperLink has ended.{self._programs.last_words(SUPERLINK)}")

    def last_words_of_start(self) -> str:
        """Return the end of the log of a run that did not start, for an error message."""
        return self._programs.last_words("flwr-run")

    def close(self) -> None:
        """Wait for the processes that use the SuperLink to end; they must have been killed."""
        for running in (*self._runs, self._console):
            if running is not None:
                running.close()

    @property
    def _control_host(self) -> str:
        """The host under which operators on this machine reach the SuperLink."""
        return self._host if self._listen == self._host else "127.0.0.1"


class Run:
    """A run that was started by `SuperLink.start_run`."""

    def __init__(self, superlink: SuperLink, process: subprocess.Popen[str]) -> None:
        self._superlink = superlink
        self._process = process
        self._id = ""

    def lines(self) -> Iterator[str]:
        """Yield the ServerApp's output and log, line by line, until the run ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "Successfully started run" in line:
                self._id = line.split("run ")[1].split()[0]
            yield line.rstrip("\n")
        self._process.wait()

    def checked_lines(self) -> Iterator[str]:
        """Yield the same lines as `lines`, and raise at the end if the run has failed."""
        tail: list[str] = []
        for line in self.lines():
            tail = [*tail[-15:], line]
            yield line
        status = self.facts()["status"]
        if status != "finished:completed":
            raise FederationError("\n    ".join([f"the run has failed ({status}). The end of its output:", *tail]))

    def facts(self) -> dict[str, Any]:
        """Return Flower's record of the run: its "status" ("finished:completed"), "network-traffic" and more."""
        self._superlink.check()
        if not self._id:
            raise FederationError(f"the run did not start.{self._superlink.last_words_of_start()}")
        listed = json.loads(self._superlink.flwr("list", CONNECTION, "--run-id", self._id, "--format", "json"))
        facts: dict[str, Any] = listed["runs"][0]
        return facts

    def close(self) -> None:
        """Wait for a run that was killed to end."""
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()


def supernode_command(
    program: Sequence[str], address: str, certificate: Path, key: Path, config: Mapping[str, str | int]
) -> list[str]:
    """Return the command line of a SuperNode.

    Parameters
    ----------
    program : sequence of str
        ``["flower-supernode"]``, or a replacement.
    address : str
        The SuperLink's host and port.
    certificate : Path
        File with the certificate of the CA that signed the SuperLink's certificate.
    key : Path
        File with the node's private key.
    config : mapping
        The node config.
    """
    (port,) = free_ports(1)
    command = [*program, "--superlink", address, "--port", str(port)]
    command += ["--root-certificates", str(certificate), "--auth-supernode-private-key", str(key)]
    return [*command, "--node-config", key_values(config)] if config else command


def key_values(settings: Mapping[str, str | int | float]) -> str:
    """Return settings in the form that Flower's commands accept: TOML, with quotes inside strings escaped.

    Raises
    ------
    FederationError
        If Flower's commands don't accept a key.
    """
    for key in settings:
        check_key(key)
    return " ".join(f"{key}={_as_toml(value)}" for key, value in settings.items())


def _as_toml(value: str | int | float) -> str:
    if isinstance(value, float):
        return repr(value)  # JSON spells nan and inf differently
    return json.dumps(value, ensure_ascii=False).replace('\\"', "\\u0022").replace("\x7f", "\\u007f")
