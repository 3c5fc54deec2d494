"""A real Flower deployment on one machine, for experiments and tests, which leaves nothing behind.

A SuperLink with TLS admits only SuperNodes with registered keys. Each SuperNode is a separate process, as if it ran on
its own machine. This needs Linux, because the processes that Flower starts are found in /proc.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from deployment.hurry import NAMESPACE, Forker
from solon_fl.launch.certificates import make_node_key
from solon_fl.launch.errors import FederationError
from solon_fl.launch.faults import Fault
from solon_fl.launch.injector import Injector, report
from solon_fl.launch.programs import Programs, file_name
from solon_fl.launch.superlink import SUPERLINK, Run, SuperLink, supernode_command

__all__ = ["SUPERLINK", "Federation"]


class Federation(Programs):
    """A context manager for a SuperLink and its SuperNodes on this machine.

    On leaving, also after an exception, all processes are killed and all files deleted. A program can turn the signals
    that it receives into exceptions. If the program is killed, the federation ends a moment later.

    Parameters
    ----------
    host : str
        Address at which the SuperLink listens.
    hurried : bool
        Whether to run Flower's programs as `deployment.hurry` does. A round then takes 1 to 2 s instead of 5 to 20.
    forking : bool
        Whether to start SuperNodes that fork their processes for messages: `solon_fl.resident.supernode`.
    faults : sequence of Fault
        Faults of nodes. Their clock starts with the first run.
    forker : Forker, optional
        The process from which hurried programs are forked. Default: the federation starts one.

    Attributes
    ----------
    tag : str
        A unique tag in the environment of every process.
    folder : Path
        The folder for all files: keys, certificates, logs and Flower's own files.
    superlink : SuperLink
        The SuperLink, which admits nodes and runs apps.

    Examples
    --------
    >>> with Federation(faults=[Fault.parse("node-2:die@3")]) as federation:  # doctest: +SKIP
    ...     federation.start_nodes({"node-1": {}, "node-2": {}})
    ...     run = federation.start_run(Path("examples/fashion-mnist"), {"num-rounds": 3})
    ...     for line in run.lines():
    ...         print(line)
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        hurried: bool = False,
        forking: bool = False,
        faults: Sequence[Fault] = (),
        forker: Forker | None = None,
    ) -> None:
        super().__init__(uuid4().hex)
        self.host = host
        self.superlink = SuperLink(self, host)
        self._hurried = hurried
        self._forking = forking
        self._forker = forker
        self._own_forker: Forker | None = None
        self._faults = faults
        self._injector: Injector | None = None
        self._has_begun = False  # whether a run was started
        self._configs: dict[str, Mapping[str, str | int]] = {}  # node configs, by name

    def __enter__(self) -> Self:
        if not Path("/proc/self/environ").exists():
            raise FederationError("this needs Linux, because it finds the processes that Flower starts in /proc.")
        self.folder = Path(tempfile.mkdtemp(prefix="solon-federation-"))
        try:
            self.make_folders()
            if self._faults:
                self._injector = Injector(self._faults, self.folder / "faults", self)
            if self._hurried and self._forker is None:
                self._forker = self._own_forker = Forker(self.folder, self.variables("hurry"), self.log_path("hurry"))
            self.superlink.start(erase=True)
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
        """Register a key for each name, start a SuperNode with that key and config, and wait until all are online."""
        for name in nodes:
            self.make_key(name)
            self.register(name)
        for name, config in nodes.items():
            self.start_node(name, config)
        self.wait_until_online(nodes)

    def make_key(self, name: str) -> None:
        """Make a node's key pair."""
        make_node_key(self.key_path(name))

    def register(self, name: str) -> None:
        """Register a node's public key with the SuperLink under the node's name."""
        self.superlink.register(name, self.key_path(name).with_suffix(".pub"))

    def start_node(self, name: str, config: Mapping[str, str | int] | None = None) -> None:
        """Start the SuperNode with this name's key; a node that died can be started again."""
        self._configs[name] = config or {}
        faulty = {} if self._injector is None else self._injector.variables(name)
        forking = self._forking and not faulty  # it would ignore the faulty replacement of flwr-clientapp
        program = [sys.executable, "-m", "solon_fl.resident.supernode"] if forking else ["flower-supernode"]
        link = self.superlink
        command = supernode_command(program, link.address, link.certificate, self.key_path(name), self._configs[name])
        self.start(name, command, faulty)

    def restart(self, name: str) -> None:
        """Start a node that was killed, with its previous config."""
        self.start_node(name, self._configs[name])

    def wait_until_online(self, names: Iterable[str]) -> None:
        """Wait until nodes with these names are connected to the SuperLink."""
        self.superlink.wait_until_online(names, self._check_node)

    def online(self) -> set[str]:
        """Return the names of the nodes that the SuperLink considers connected."""
        return self.superlink.online()

    def key_path(self, name: str) -> Path:
        """Return the path of a node's private key; the public key is beside it, with the suffix .pub."""
        return self.folder / f"{file_name(name)}.key"

    # Runs

    def start_run(self, app: Path, config: Mapping[str, str | int | float]) -> Run:
        """Start a Flower app with changed settings."""
        if self._injector is not None and not self._has_begun:
            self._injector.begin()
        self._has_begun = True
        return self.superlink.start_run(app, config)

    def flwr(self, *arguments: str) -> str:
        """Run a command of ``flwr`` and return its output."""
        return self.superlink.flwr(*arguments)

    def faults_that_happened(self) -> list[str]:
        """Return a sentence about each fault; raise if one did not occur."""
        happened, missing = report(self._faults, self.folder / "faults")
        if missing:
            raise FederationError("\n    ".join(["these faults did not occur:", *missing]))
        return happened

    # The end

    def close(self) -> None:
        """Kill everything and delete the folder."""
        if self._injector is not None:
            self._injector.end()
        # SIGKILL at once: there is nothing to save, and a SuperNode that ends gracefully may leave its ClientApp.
        self.kill_everything()
        self.superlink.close()
        if self._own_forker is not None:
            self._own_forker.close()
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)

    # Overrides of `Programs`

    def start(self, name: str, command: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
        """See `Programs.start`."""
        namespace = self._namespace(name)
        if self._forker is not None:
            variables = {**self.variables(name), **(extra or {}), NAMESPACE: namespace}
            self._processes[name] = self._forker.start(command, variables, self.log_path(name))
        else:
            prefix = ["ip", "netns", "exec", namespace] if namespace else []
            super().start(name, [*prefix, *command], extra)

    def variables(self, name: str) -> dict[str, str]:
        """See `Programs.variables`; many nodes share one machine here."""
        return {**super().variables(name), "OMP_NUM_THREADS": "1"}

    def last_words(self, name: str, lines: int = 8) -> str:
        """See `Programs.last_words`."""
        return super().last_words(name, lines) or super().last_words("hurry", lines)

    def _check_node(self, name: str) -> None:
        if self.exit_code(name) is not None:
            raise FederationError(f"SuperNode {name} has ended.{self.last_words(name)}")

    def _namespace(self, name: str) -> str:
        """Return the network namespace of a node, or of "superlink"; "" is that of the machine."""
        return ""
