"""The program that runs an app on a deployment, from its command line to its clean-up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployment import loopback
from deployment.federation import Federation
from solon_fl.launch.faults import Fault
from tests.deployment.any_app import write_app
from tests.deployment.support import assert_nothing_is_left, ports_of, processes_in, wait_until

ROOT = Path(__file__).parents[2]
# The smallest deployment has a group of one node, which is trusted.
SMALLEST = ["--attack", "", "--setting", "num-nodes=1", "--setting", "byzantine=0", "--setting", "compression=1"]


def start(temporary_folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the program with its files in this folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "deployment.loopback", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary_folder), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_the_program_runs_an_example_and_leaves_nothing(tmp_path: Path) -> None:
    settings = ["--hurry", "--rounds", "1", "--setting", "referee=server", "--setting", "audit=1.0"]
    with start(tmp_path, *SMALLEST, "--spares", "0", *settings, "--fault", "node-1:stall@1+0.5s") as program:
        assert program.stdout is not None
        assert program.stderr is not None
        lines = []
        ports = set()
        for line in program.stdout:
            lines.append(line.rstrip())
            if line.startswith("Running"):
                ports = ports_of(processes_in(tmp_path))
        errors = program.stderr.read()
    output = "\n".join(lines)
    assert program.returncode == 0, output + errors
    assert lines[:3] == [
        "Starting 1 SuperNodes: node-1",
        "node-1 is going to stall",
        "Running fashion-mnist",
    ]
    assert lines[-1] == "node-1 was stopped in round 1, and resumed 0.5 s later"
    assert len(ports) == 2, ports  # of the SuperLink and the node
    assert "round 1: accuracy" in output
    assert "lying: nobody, referee asked: audit" in output
    assert_nothing_is_left(tmp_path, ports)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, number: signal.Signals
) -> None:
    apps = tmp_path_factory.mktemp("apps")
    # SIGINT comes in the middle of a round of a user's app, SIGTERM while the nodes of an example start.
    in_a_round = number == signal.SIGINT
    own = [str(write_app(apps)), "--nodes", "2", "--hurry"]
    with start(tmp_path, *(own if in_a_round else [*SMALLEST, "--spares", "1"])) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        for line in program.stdout:
            if line.startswith("after round 0: 0" if in_a_round else "Starting"):
                break
        awaited = "flwr-clientapp" if in_a_round else "flower-supernode"
        wait_until(lambda: processes_in(tmp_path, awaited), awaited)
        ports = ports_of(processes_in(tmp_path))
        program.send_signal(number)
        time.sleep(0.05)
        program.send_signal(number)  # an impatient user
        assert program.stderr.read() == "Interrupted; all processes have been stopped.\n"
    assert program.returncode == 128 + number
    assert ports
    assert_nothing_is_left(tmp_path, ports)


@pytest.mark.slow
def test_a_killed_program_leaves_nothing(tmp_path: Path) -> None:
    with start(tmp_path, *SMALLEST, "--spares", "1") as program:
        wait_until(lambda: ports_of(processes_in(tmp_path)), "the SuperLink")
        ports = ports_of(processes_in(tmp_path))
        program.kill()
    wait_until(lambda: not processes_in(tmp_path), "the end of all processes", seconds=20)
    assert_nothing_is_left(tmp_path, ports)


def test_a_mistake_is_told_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.flwr.app.config]\nrounds = 3\n")
    for arguments, words in (
        (["fashion"], "app='fashion'; did you mean fashion-mnist?"),
        (["examples"], "an app must be a folder with a pyproject.toml; got "),
        ([str(tmp_path)], "must name the app: [tool.flwr.app.components] with serverapp = "),
        (["--liar", "node-9"], "the node of a fault must be one of node-1, "),
        (["--attack", "revers"], "got attack='revers'; did you mean reverse?"),
        (["--fault", "node-4:lye@3"], "a fault must lie, stall or die; got 'node-4:lye@3'; did you mean lie?"),
        (["--node-config", "node-33:a=1"], "got 'node-33:a=1'; did you mean node-3?"),
        (["--link", "5"], "bandwidth must be a number with one of kbit, mbit, gbit; got bandwidth='5'."),
        (["--link", "5mbit,1"], "latency must be a number with one of us, ms, s; got latency='1'."),
        (["--setting", "num-nodes=6"], "num_nodes must be a multiple of group_size; got num_nodes=6"),
        (["--setting", "learning-rat=3"], "got 'learning-rat=3'; did you mean learning-rate?"),
        (["--setting", "resident=maybe"], "resident must be true or false; got 'maybe'."),
        (["own-model", "--resident"], "got 'resident=true'."),
        (["cross-silo", "--setting", "silos=superlink,b"], "a node must not be called 'superlink/1'"),
        (["--setting", "learning-rate=fast"], "learning-rate must be a number, like 0.005; got 'fast'."),
    ):
        done = CliRunner().invoke(loopback.program, arguments)
        assert done.exit_code == 1
        assert words in done.output, done.output
        assert "Traceback" not in done.output


def test_the_liar_is_the_third_node_or_the_last_of_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configs of the nodes and the choice of the liar, without a deployment."""
    told: list[dict[str, loopback.NodeConfig]] = []
    lie: list[list[str]] = []

    def start_nodes(federation: Federation, nodes: dict[str, loopback.NodeConfig], faults: list[Fault]) -> None:
        told.append(nodes)
        lie.append(list(map(str, faults)))

    monkeypatch.setattr(loopback, "start_nodes", start_nodes)
    monkeypatch.setattr(loopback, "run_app", lambda *arguments, **options: None)
    monkeypatch.setattr(Federation, "__enter__", lambda federation: federation)
    monkeypatch.setattr(Federation, "faults_that_happened", lambda federation: [])
    for arguments in (
        ["--spares", "0", "--node-config", "a=1", "--node-config", "node-2:a=b:c"],
        ["cross-silo", "--spares", "1"],
        ["--spares", "1", "--setting", "num-nodes=1", "--setting", "byzantine=0", "--setting", "compression=1"],
        ["--spares", "0", "--attack", ""],
        ["--nodes", "7", "--fault", "node-7:die@30s"],
    ):
        done = CliRunner().invoke(loopback.program, arguments)
        assert done.exit_code == 0, done.output
    first, silos, two, _, more = told
    assert first == {
        f"node-{number}": {"partition-id": number - 1, "num-partitions": 5, "a": "b:c" if number == 2 else 1}
        for number in range(1, 6)
    }
    assert list(silos) == [
        *(f"silo-a/{number}" for number in range(1, 6)),
        *(f"silo-b/{number}" for number in range(1, 5)),
    ]
    assert silos["silo-b/3"] == {"silo": "silo-b", "partition-id": 7, "num-partitions": 9}
    assert list(two) == ["node-1", "node-2"]
    assert len(more) == 7
    assert lie == [
        ["node-3:lie=reverse@1"],
        ["silo-a/3:lie=reverse@1"],
        ["node-2:lie=reverse@1"],
        [],
        ["node-7:die@30s"],
    ]
