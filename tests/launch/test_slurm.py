"""Tasks of a Slurm job, with the environment variables of its tasks as a stand-in for Slurm."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from solon_fl.launch import command
from solon_fl.launch.apps import FlowerApp
from solon_fl.launch.errors import FederationError
from solon_fl.launch.processes import processes_with
from solon_fl.launch.programs import Programs
from solon_fl.launch.slurm import JobFolder, Launch, Task, launch
from tests.deployment.any_app import write_app

SLURM = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "3", "SLURM_PROCID": "1", "SLURMD_NODENAME": "c001"}


def test_a_task_knows_its_place() -> None:
    assert Task.from_environment(SLURM) == Task(job="17", attempt="17.0.0", rank=1, count=3, host="c001")
    again = {**SLURM, "SLURM_RESTART_COUNT": "2", "SLURM_STEP_ID": "4", "SLURM_STEP_NUM_TASKS": "2"}
    assert Task.from_environment(again) == Task(job="17", attempt="17.2.4", rank=1, count=2, host="c001")
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS"):
        with pytest.raises(FederationError, match=f"must run as a task of a Slurm job.*got no {name}.*--script"):
            Task.from_environment({key: value for key, value in SLURM.items() if key != name})


def test_a_job_that_goes_on_has_the_same_nodes_and_checkpoints(tmp_path: Path) -> None:
    first = JobFolder(tmp_path / "job", Task.from_environment(SLURM))
    second = JobFolder(tmp_path / "job", Task.from_environment({**SLURM, "SLURM_RESTART_COUNT": "1"}))
    key = first.own_key("silo/1")
    secret = key.read_bytes()
    assert second.own_key("silo/1").read_bytes() == secret
    assert first.own_key("silo/2").read_bytes() != secret
    assert first.own_key("silo_1").read_bytes() != secret
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert first.with_checkpoints({"a": 1, "checkpoints": ""}) == second.with_checkpoints({"a": 1, "checkpoints": ""})
    assert first.with_checkpoints({"checkpoints": ""})["checkpoints"] == str(tmp_path / "job" / "checkpoints")
    assert first.with_checkpoints({"checkpoints": "/x"}) == {"checkpoints": "/x"}
    assert first.with_checkpoints({"a": 1}) == {"a": 1}
    first.write("over", {"why": ""})
    assert second.read("over") is None  # the file belongs to the previous attempt


def test_a_name_that_is_no_nodes_is_told_before_anything_is_started(tmp_path: Path) -> None:
    app, task = FlowerApp(folder=tmp_path, components={}, config={}), Task.from_environment(SLURM)
    for name, words in (
        ("superlink", "must not be called 'superlink'"),
        ("flwr/1", "must not be called 'flwr/1'"),
        ("..", "must begin with a letter or a digit"),
        ("a\n", "no control characters"),
        ("a" * 201, "at most 200 characters"),
    ):
        with pytest.raises(FederationError, match=words):
            launch(task, Launch(app=app, settings={}, folder=tmp_path / "job", name=name), print, nothing_is_started)
    with pytest.raises(AssertionError):
        launch(task, Launch(app=app, settings={}, folder=tmp_path / "job", name="silo-0/3"), print, nothing_is_started)


def nothing_is_started(tag: str, folder: Path) -> Programs:
    raise AssertionError(folder)


def test_tasks_must_have_names_of_their_own_and_a_folder_that_others_cannot_read(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", Task.from_environment(SLURM))
    for rank, name in enumerate(["a", "b"]):
        job.write(f"nodes/{rank}", {"name": name, "public_key": f"/{name}.pub"})
    assert job.gather(2) == {"a": Path("/a.pub"), "b": Path("/b.pub")}
    job.write("nodes/1", {"name": "a", "public_key": "/a.pub"})
    with pytest.raises(FederationError, match="each task must have a different name; got a, a"):
        job.gather(2)
    with pytest.raises(FederationError, match=r"/address\.json must exist within 0 s; do all tasks see"):
        job.wait_for("address", 0)
    job.write("over", {"why": "x"})
    with pytest.raises(FederationError, match="the first task reports the reason"):
        job.wait_for("address", 60)
    (tmp_path / "job").chmod(0o755)
    with pytest.raises(FederationError, match=r"closed to other users, as it holds keys; got mode 755; run: chmod"):
        JobFolder(tmp_path / "job", Task.from_environment(SLURM))


def test_the_command_prints_a_script_and_tells_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = CliRunner().invoke(command.program, ["--script"]).output
    assert "srun --kill-on-bad-exit=1 python -m solon_fl.launch" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    app = str(write_app(tmp_path))
    for variables, arguments, words in (
        ({}, [app], "must run as a task of a Slurm job"),
        (SLURM, [], "launch needs an app's folder"),
        (SLURM, [str(tmp_path)], "an app must be a folder with a pyproject.toml"),
        (SLURM, [app, "--fault", "node-1"], "a fault must be NODE:KIND@WHEN"),
        (SLURM, [app, "--node-config", "silo"], "node-config must be KEY=VALUE"),
        (SLURM, [app, "--node-config", "my silo=a"], "with dots between; got 'my silo'"),
        (SLURM, [app, "--setting", "round-timeuot=1"], "did you mean round-timeout?"),
    ):
        for name in SLURM:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        done = CliRunner().invoke(command.program, arguments)
        assert done.exit_code == 1
        assert words in done.output, done.output


@pytest.mark.slow
def test_a_task_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    """The second of three tasks, whose SuperNode finds no SuperLink."""
    job = JobFolder(tmp_path / "job", Task.from_environment(SLURM))
    job.write("address", {"address": "127.0.0.1:9"})
    app, temporary = write_app(tmp_path), tmp_path / "tmp"
    temporary.mkdir()
    task = subprocess.Popen(
        [sys.executable, "-m", "solon_fl.launch", str(app), "--folder", str(tmp_path / "job")],
        env={**os.environ, **SLURM, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )

    def nodes() -> list[int]:
        variables = (Path(f"/proc/{process}/environ") for process in processes_with("", "supernode"))
        return [int(path.parent.name) for path in variables if str(temporary) in path.read_text(errors="replace")]

    deadline = time.monotonic() + 60
    while not nodes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert nodes()
    task.send_signal(signal.SIGTERM)
    assert task.communicate(timeout=60)[1] == "Interrupted; all processes have been stopped.\n"
    assert task.returncode == 128 + signal.SIGTERM
    assert not nodes()
    assert not list(temporary.iterdir())
