"""A task of a Slurm job: a SuperNode; in the first task, the SuperLink and the run as well.

Tasks find each other through a folder that all of them see:

    keys/NODE.key, NODE.pub    of each node, kept, so that a job that goes on has the same nodes
    checkpoints/               of the app, if it takes such a setting
    JOB.RESTART.STEP/          of one attempt: nodes/, address, ca.crt, begun, beat, over, logs/, faults/
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
CHECKPOINTS = "checkpoints"  # the setting of an app that names a folder for them
GATHERING_SECONDS = 600.0  # within which all tasks must have begun
BEAT_SECONDS = 10.0  # between two signs of life of the first task
SILENCE_SECONDS = 180.0  # after which the other tasks take the first one to be dead
PAUSE = 0.3  # seconds between two looks


@dataclass(frozen=True, kw_only=True)
class Task:
    """Where a task stands in its job.

    Attributes
    ----------
    job : str
        The job's number.
    attempt : str
        Unique among all that use the job's folder: another one after each restart of the job.
    rank, count : int
        Its number, from 0, and how many there are.
    host : str
        The name of its machine.
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
            If there are none: this is no task of a job.
        """
        try:
            job, rank = variables["SLURM_JOB_ID"], int(variables["SLURM_PROCID"])
            count = int(variables.get("SLURM_STEP_NUM_TASKS") or variables["SLURM_NTASKS"])
        except KeyError as error:
            raise FederationError(
                f"this must run as a task of a Slurm job, such as: srun python -m solon_fl.launch APP; got no "
                f"{error.args[0]}. A script to start from: python -m solon_fl.launch --script."
            ) from None
        restart, step = variables.get("SLURM_RESTART_COUNT", "0"), variables.get("SLURM_STEP_ID", "0")
        host = variables.get("SLURMD_NODENAME") or socket.gethostname()
        return cls(job=job, attempt=f"{job}.{restart}.{step}", rank=rank, count=count, host=host)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What is to be run.

    Attributes
    ----------
    app : FlowerApp
        The app.
    settings : dict
        All settings of the run.
    folder : Path
        All tasks must see it.
    name : str
        Of this task's node.
    node_config : dict
        What the app is told of this task's node.
    faults : tuple of Fault
        Of all nodes.
    host : str
        Under which other tasks reach the first task's machine; "" for the name that Slurm gives it.
    superlink, supernode : tuple of str
        What is started as such.
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
    """Do what a task of a job has to do, until the run is over; leave no process behind.

    Parameters
    ----------
    task : Task
        This one.
    what : Launch
        The same in all tasks but for name and node_config.
    tell : callable
        Called with each line for the user.
    make_programs : callable
        Called with a tag and a folder.

    Raises
    ------
    FederationError
        If a name can't be used, the run failed, a task or node is missing at the start, or the first task has ended.
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
    """Start the SuperLink, wait for all nodes, run the app and tell what came of it."""
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
        raise FederationError("\n    ".join(["these faults did not happen:", *missing]))


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
        """Bring its faults about from now on."""
        self._injector.begin()

    def stay(self, tell: Callable[[str], None]) -> None:
        """Wait until the run is over; say so if the SuperNode ends before, which the run may bear."""
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
                raise FederationError(f"the first task has given no sign of life for {SILENCE_SECONDS:.0f} s.")
            self._look(tell)
            time.sleep(PAUSE)
        if over["why"]:
            raise FederationError("the run has failed; the first task says why.")

    def end(self) -> None:
        self._injector.end()

    def _look(self, tell: Callable[[str], None]) -> None:
        name = self._what.name
        if self._programs.exit_code(name) is None:
            self._is_told = False
        elif not self._is_told and not any(fault.node == name for fault in self._what.faults):
            self._is_told = True
            tell(f"SuperNode {name} has ended.{self._programs.last_words(name)}")

    # What the injector does to it

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
        """Start it once more."""
        self.start(self._address)

    def exit_code(self, name: str) -> int | None:
        """See `Programs.exit_code`."""
        return self._programs.exit_code(name)


class JobFolder:
    """The folder that all tasks see.

    Parameters
    ----------
    folder : Path
        Made, for this user only, if it is not there.
    task : Task
        Which names the part for this attempt.

    Raises
    ------
    FederationError
        If others may look into it.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            raise FederationError(
                f"{folder} must be closed to other users, for it holds keys; got mode "
                f"{folder.stat().st_mode & 0o777:o}; run: chmod 700 {folder}."
            )
        self._folder = folder
        self.attempt = folder / task.attempt
        for name in ("nodes", "logs"):
            (self.attempt / name).mkdir(parents=True, exist_ok=True)

    @property
    def certificate(self) -> Path:
        """Of who signed the SuperLink's certificate."""
        return self.attempt / "ca.crt"

    def own_key(self, name: str) -> Path:
        """Return where a node's private key is; make it if it is not there."""
        key = self._folder / "keys" / f"{file_name(name)}.key"
        key.parent.mkdir(exist_ok=True)
        if not key.with_suffix(".pub").exists():
            make_node_key(key)
        return key

    def with_checkpoints(self, settings: Mapping[str, Setting]) -> dict[str, Setting]:
        """Return the settings, with a folder for checkpoints if the app takes one and none is named."""
        own = {CHECKPOINTS: str(self._folder / CHECKPOINTS)} if settings.get(CHECKPOINTS) == "" else {}
        return {**settings, **own}

    def write(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write a file, whole or not at all."""
        place = self.attempt / f"{name}.json"
        written = place.with_name(f"{place.name}-{uuid4().hex}")
        written.write_text(json.dumps(facts))
        written.replace(place)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return what a file says; None if it is not there."""
        try:
            facts: dict[str, Any] = json.loads((self.attempt / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        return facts

    def wait_for(self, name: str, seconds: float) -> dict[str, Any]:
        """Return what a file says, as soon as it is there; raise if the run is over before."""
        deadline = time.monotonic() + seconds
        while (facts := self.read(name)) is None:
            if self.read("over") is not None:
                raise FederationError("the run has failed; the first task says why.")
            if time.monotonic() > deadline:
                raise FederationError(
                    f"within {seconds:.0f} s there must be {self.attempt / name}.json; do all tasks see this folder?"
                )
            time.sleep(PAUSE)
        return facts

    def gather(self, count: int) -> dict[str, Path]:
        """Return the public key of each node, by its name."""
        found = [self.wait_for(f"nodes/{rank}", GATHERING_SECONDS) for rank in range(count)]
        nodes = {node["name"]: Path(node["public_key"]) for node in found}
        if len(nodes) < count:
            raise FederationError(f"each task must have a name of its own; got {', '.join(n['name'] for n in found)}.")
        return nodes

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Give signs of life in this context."""
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
    """Yield what starts programs, in a folder of this machine that is deleted, with all processes, in the end."""
    folder = Path(tempfile.mkdtemp(prefix="solon-launch-"))
    programs = make(uuid4().hex, folder)
    try:
        (folder / "tmp").mkdir()
        (folder / "logs").symlink_to(logs.resolve())
        yield programs
    finally:
        programs.kill_everything()
        shutil.rmtree(folder, ignore_errors=True)
