"""The tasks of a Slurm job: each runs a SuperNode, and the first one also the SuperLink and the run.

Tasks communicate through a folder that all of them see::

    keys/NODE.key, NODE.pub    keys of each node, kept so that a restarted job has the same nodes
    checkpoints/               the app's checkpoints, if it has a setting for them
    JOB.RESTART.STEP/          files of one attempt: nodes/, address, ca.crt, begun, beat, over, logs/, faults/
"""

import json
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from solon_fl.launch.apps import FlowerApp, Setting
from solon_fl.launch.certificates import make_node_key
from solon_fl.launch.errors import FederationError
from solon_fl.launch.faults import Fault, check_faults
from solon_fl.launch.guarded import GUARDED
from solon_fl.launch.injector import Injector, report
from solon_fl.launch.programs import Programs, check_node_name, file_name
from solon_fl.launch.superlink import SuperLink, supernode_command

__all__ = ["JobFolder", "Launch", "Task", "launch"]

FORKING = (sys.executable, "-P", "-m", "solon_fl.resident.supernode")
CHECKPOINTS = "checkpoints"  # an app's setting that names a folder for checkpoints
GATHERING_SECONDS = 600.0  # within which all tasks must have started
BEAT_SECONDS = 10.0  # between two heartbeats of the first task
SILENCE_SECONDS = 180.0  # without a heartbeat, after which the other tasks consider the first one dead
PAUSE = 0.3  # seconds between two checks


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task's place in its job.

    Attributes
    ----------
    job : str
        The job's number.
    attempt : str
        A name for this attempt, unique among all that use the job's folder; each restart of the job has a new one.
    rank, count : int
        The task's number, from 0, and the number of tasks.
    host : str
        The name of the task's machine.
    """

    job: str
    attempt: str
    rank: int
    count: int
    host: str

    @classmethod
    def from_environment(cls, variables: Mapping[str, str]) -> Self:
        """Return the task that Slurm's environment variables describe.

        Raises
        ------
        FederationError
            If there are no such variables, because this is not a task of a job.
        """
        try:
            job, rank = variables["SLURM_JOB_ID"], int(variables["SLURM_PROCID"])
            count = int(variables.get("SLURM_STEP_NUM_TASKS") or variables["SLURM_NTASKS"])
        except KeyError as error:
            raise FederationError(
                f"this must run as a task of a Slurm job, such as: srun python -m solon_fl.launch APP; got no "
                f"{error.args[0]}. For a template of a script, run: python -m solon_fl.launch --script."
            ) from None
        restart, step = variables.get("SLURM_RESTART_COUNT", "0"), variables.get("SLURM_STEP_ID", "0")
        host = variables.get("SLURMD_NODENAME") or socket.gethostname()
        return cls(job=job, attempt=f"{job}.{restart}.{step}", rank=rank, count=count, host=host)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The run that a job's tasks start.

    Attributes
    ----------
    app : FlowerApp
        The app.
    settings : dict
        All settings of the run.
    folder : Path
        The job's folder, which all tasks must see.
    name : str
        Name of this task's node.
    node_config : dict
        Node config of this task's node.
    faults : tuple of Fault
        Faults of all nodes.
    host : str
        Name or address under which other tasks reach the first task's machine; "" for its name in Slurm.
    superlink, supernode : tuple of str
        Commands that start a SuperLink and a SuperNode.
    """

    app: FlowerApp
    settings: Mapping[str, Setting]
    folder: Path
    name: str
    node_config: Mapping[str, str | int] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    host: str = ""
    superlink: Sequence[str] = GUARDED
    supernode: Sequence[str] = FORKING


def launch(
    task: Task,
    what: Launch,
    tell: Callable[[str], None],
    make_programs: Callable[[str, Path], Programs] = Programs,
) -> None:
    """Perform a task of a job until the run is over, and leave no process behind.

    Parameters
    ----------
    task : Task
        This task.
    what : Launch
        The run, which is the same in all tasks except for name and node_config.
    tell : callable
        Called with each line for the user.
    make_programs : callable
        Called with a tag and a folder to make the `Programs`.

    Raises
    ------
    FederationError
        If a name can't be used, the run fails, a task or node is missing at the start, or the first task ends early.
    """
    check_node_name(what.name)
    job = JobFolder(what.folder, task)
    with _programs(make_programs, job.attempt / "logs") as programs:
        key = job.own_key(what.name)
        job.write(f"nodes/{task.rank}", {"name": what.name, "public_key": str(key.with_suffix(".pub"))})
        node = _Node(task, what, job, programs, key)
        if task.rank:
            try:
                node.start(job.wait_for("address", GATHERING_SECONDS)["address"])
                node.stay(tell)
            finally:
                node.end()
            return
        try:
            _lead(task, what, job, programs, node, tell)
        except BaseException as error:
            job.write("over", {"why": str(error) or type(error).__name__})
            raise
        job.write("over", {"why": ""})


def _lead(
    task: Task, what: Launch, job: "JobFolder", programs: Programs, node: "_Node", tell: Callable[[str], None]
) -> None:
    """Start the SuperLink, wait for all nodes, run the app, and report its lines and the faults."""
    superlink = SuperLink(programs, what.host or task.host, "0.0.0.0", what.superlink)
    try:
        superlink.start(erase=True)
        nodes = job.gather(task.count)
        check_faults(what.faults, list(nodes))
        for name, public_key in nodes.items():
            superlink.register(name, public_key)
        shutil.copy(superlink.certificate, job.certificate)
        job.write("address", {"address": superlink.address})
        with job.beating():
            tell(f"SuperLink at {superlink.address}; starting {len(nodes)} SuperNodes; logs: {job.attempt / 'logs'}")
            node.start(superlink.address)
            superlink.wait_until_online(nodes, lambda name: superlink.check(), GATHERING_SECONDS)
            job.write("begun", {})
            node.begin()
            for line in superlink.start_run(what.app.folder, job.with_checkpoints(what.settings)).checked_lines():
                tell(line)
        _tell_of_faults(what.faults, job, tell)
    finally:
        node.end()
        programs.kill_everything()
        superlink.close()


def _tell_of_faults(faults: Sequence[Fault], job: "JobFolder", tell: Callable[[str], None]) -> None:
    happened, missing = report(faults, job.attempt / "faults")
    for sentence in happened:
        tell(sentence)
    if missing:
        raise FederationError("\n    ".join(["these faults did not occur:", *missing]))


class _Node:
    """The SuperNode of a task."""

    def __init__(self, task: Task, what: Launch, job: "JobFolder", programs: Programs, key: Path) -> None:
        self._what = what
        self._job = job
        self._programs = programs
        self._config = {"partition-id": task.rank, "num-partitions": task.count, **what.node_config}
        self._key = key
        self._address = ""
        self._injector = Injector(what.faults, job.attempt / "faults", self, [what.name])
        self._is_told = False

    def start(self, address: str) -> None:
        self._address = address
        faulty = self._injector.variables(self._what.name)
        program = ["flower-supernode"] if faulty else self._what.supernode
        command = supernode_command(program, address, self._job.certificate, self._key, self._config)
        self._programs.start(self._what.name, command, faulty)

    def begin(self) -> None:
        """Inject its faults from now on."""
        self._injector.begin()

    def stay(self, tell: Callable[[str], None]) -> None:
        """Wait until the run is over; report a SuperNode that ends earlier, which the run may tolerate."""
        last, heard = "", time.monotonic()
        has_begun = False
        while (over := self._job.read("over")) is None:
            if not has_begun and self._job.read("begun") is not None:
                has_begun = True
                self.begin()
            beat = self._job.read("beat")
            if json.dumps(beat) != last:
                last, heard = json.dumps(beat), time.monotonic()
            if time.monotonic() - heard > SILENCE_SECONDS:
                raise FederationError(f"the first task has sent no heartbeat for {SILENCE_SECONDS:.0f} s.")
            self._look(tell)
            time.sleep(PAUSE)
        if over["why"]:
            raise FederationError("the run has failed; the first task reports the reason.")

    def end(self) -> None:
        self._injector.end()

    def _look(self, tell: Callable[[str], None]) -> None:
        name = self._what.name
        if self._programs.exit_code(name) is None:
            self._is_told = False
        elif not self._is_told and not any(fault.node == name for fault in self._what.faults):
            self._is_told = True
            tell(f"SuperNode {name} has ended.{self._programs.last_words(name)}")

    # Methods for the injector

    def stop(self, name: str) -> None:
        """See `Programs.stop`."""
        self._programs.stop(name)

    def go_on(self, name: str) -> None:
        """See `Programs.go_on`."""
        self._programs.go_on(name)

    def kill(self, name: str) -> None:
        """See `Programs.kill`."""
        self._programs.kill(name)

    def restart(self, name: str) -> None:
        """Start the SuperNode again."""
        self.start(self._address)

    def exit_code(self, name: str) -> int | None:
        """See `Programs.exit_code`."""
        return self._programs.exit_code(name)


class JobFolder:
    """The folder that all tasks see.

    Parameters
    ----------
    folder : Path
        The folder, made if it is missing, with access for this user only.
    task : Task
        The task, whose attempt names the subfolder to use.

    Raises
    ------
    FederationError
        If other users can read the folder.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            raise FederationError(
                f"{folder} must be closed to other users, as it holds keys; got mode "
                f"{folder.stat().st_mode & 0o777:o}; run: chmod 700 {folder}."
            )
        self._folder = folder
        self.attempt = folder / task.attempt
        for name in ("nodes", "logs"):
            (self.attempt / name).mkdir(parents=True, exist_ok=True)

    @property
    def certificate(self) -> Path:
        """The certificate of the CA that signed the SuperLink's certificate."""
        return self.attempt / "ca.crt"

    def own_key(self, name: str) -> Path:
        """Return the path of a node's private key, and make the key if it is missing."""
        key = self._folder / "keys" / f"{file_name(name)}.key"
        key.parent.mkdir(exist_ok=True)
        if not key.with_suffix(".pub").exists():
            make_node_key(key)
        return key

    def with_checkpoints(self, settings: Mapping[str, Setting]) -> dict[str, Setting]:
        """Return the settings, with a folder for checkpoints if the app has an empty setting for one."""
        own = {CHECKPOINTS: str(self._folder / CHECKPOINTS)} if settings.get(CHECKPOINTS) == "" else {}
        return {**settings, **own}

    def write(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write a file atomically."""
        place = self.attempt / f"{name}.json"
        written = place.with_name(f"{place.name}-{uuid4().hex}")
        written.write_text(json.dumps(facts))
        written.replace(place)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a file's content, or None if there is no such file."""
        try:
            facts: dict[str, Any] = json.loads((self.attempt / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        return facts

    def wait_for(self, name: str, seconds: float) -> dict[str, Any]:
        """Wait for a file and return its content; raise if the run ends first."""
        deadline = time.monotonic() + seconds
        while (facts := self.read(name)) is None:
            if self.read("over") is not None:
                raise FederationError("the run has failed; the first task reports the reason.")
            if time.monotonic() > deadline:
                raise FederationError(
                    f"{self.attempt / name}.json must exist within {seconds:.0f} s; do all tasks see this folder?"
                )
            time.sleep(PAUSE)
        return facts

    def gather(self, count: int) -> dict[str, Path]:
        """Return the public key of each node, by its name."""
        found = [self.wait_for(f"nodes/{rank}", GATHERING_SECONDS) for rank in range(count)]
        nodes = {node["name"]: Path(node["public_key"]) for node in found}
        if len(nodes) < count:
            raise FederationError(f"each task must have a different name; got {', '.join(n['name'] for n in found)}.")
        return nodes

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Send heartbeats inside."""
        ends = threading.Event()

        def beat() -> None:
            count = 0
            while not ends.wait(BEAT_SECONDS):
                count += 1
                self.write("beat", {"count": count})

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()


@contextmanager
def _programs(make: Callable[[str, Path], Programs], logs: Path) -> Iterator[Programs]:
    """Yield programs in a folder on this machine; on leaving, end all processes and delete the folder."""
    folder = Path(tempfile.mkdtemp(prefix="solon-launch-"))
    programs = make(uuid4().hex, folder)
    try:
        (folder / "tmp").mkdir()
        (folder / "logs").symlink_to(logs.resolve())
        yield programs
    finally:
        programs.kill_everything()
        shutil.rmtree(folder, ignore_errors=True)
