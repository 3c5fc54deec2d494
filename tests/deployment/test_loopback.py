"""The program that runs an example on a deployment: from the command line to the end, in which nothing is left."""

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
from tests.deployment.support import assert_nothing_is_left, ports_of, processes_in, wait_until

ROOT = Path(__file__).parents[2]
# The smallest deployment: a group of one node, which is trusted.
SMALLEST = ["--attack", "", "--setting", "num-nodes=1", "--setting", "byzantine=0", "--setting", "compression=1"]


def start(temporary_folder: Path, spares: int, *arguments: str) -> subprocess.Popen[str]:
    """Start the program; it makes its files in this folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "deployment.loopback", *SMALLEST, "--spares", str(spares), *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary_folder), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_the_program_runs_an_example_and_leaves_nothing(tmp_path: Path) -> None:
    with start(tmp_path, 0, "--rounds", "1", "--setting", "referee=server", "--setting", "audit=1.0") as program:
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
    assert lines[:2] == ["Starting 1 SuperNodes: node-1", "Running fashion-mnist"]
    assert len(ports) == 2, ports  # the SuperLink's, and the node's
    assert "round 1: accuracy" in output
    assert "lying: nobody, referee asked: audit" in output
    assert_nothing_is_left(tmp_path, ports)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    # SIGINT comes in the middle of a round, SIGTERM while the nodes start.
    in_a_round = number == signal.SIGINT
    with start(tmp_path, 1, *(["--hurry"] if in_a_round else [])) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        for line in program.stdout:
            if ("round 0" if in_a_round else "Starting") in line:
                break
        awaited = "flwr-clientapp" if in_a_round else "flower-supernode"
        wait_until(lambda: processes_in(tmp_path, awaited), awaited)
        ports = ports_of(processes_in(tmp_path))
        program.send_signal(number)
        time.sleep(0.05)
        program.send_signal(number)  # an impatient user
        assert program.stderr.read() == "Interrupted; all processes are stopped.\n"
    assert program.returncode == 128 + number
    assert ports
    assert_nothing_is_left(tmp_path, ports)


@pytest.mark.slow
def test_a_killed_program_leaves_nothing(tmp_path: Path) -> None:
    with start(tmp_path, 1) as program:
        wait_until(lambda: ports_of(processes_in(tmp_path)), "the SuperLink")
        ports = ports_of(processes_in(tmp_path))
        program.kill()
    wait_until(lambda: not processes_in(tmp_path), "the end of all processes", seconds=20)
    assert_nothing_is_left(tmp_path, ports)


def test_a_mistake_is_told_in_plain_words() -> None:
    for arguments, words in (
        (["fashion"], "app must be one of fashion-mnist, own-model, cross-silo; got app='fashion'."),
        (["--liar", "node-9"], "liar must be one of node-1, "),
        (["--attack", "nosuch"], "got attack='nosuch'."),
        (["--link", "5"], "bandwidth must be a number with one of kbit, mbit, gbit; got bandwidth='5'."),
        (["--link", "5mbit,1"], "latency must be a number with one of us, ms, s; got latency='1'."),
        (["--setting", "num-nodes=6"], "num_nodes must be a multiple of group_size; got num_nodes=6"),
        (["--setting", "rate=3"], "KEY one of num-nodes, "),
        (["--setting", "resident=maybe"], "resident must be true or false; got 'maybe'."),
        (["own-model", "--resident"], "got 'resident=true'."),
        (["--setting", "learning-rate=fast"], "learning-rate must be a number, as 0.005 is; got 'fast'."),
    ):
        done = CliRunner().invoke(loopback.program, arguments)
        assert done.exit_code == 1
        assert words in done.output
        assert "Traceback" not in done.output


def test_the_liar_is_the_third_node_or_the_last_of_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the deployment left out: what each node is told."""
    told: list[dict[str, loopback.NodeConfig]] = []
    monkeypatch.setattr(loopback, "start_nodes", lambda federation, nodes: told.append(nodes))
    monkeypatch.setattr(loopback, "run_example", lambda *arguments, **options: None)
    monkeypatch.setattr(Federation, "__enter__", lambda federation: federation)
    for arguments in (
        ["--spares", "0"],
        ["cross-silo", "--spares", "1"],
        ["--spares", "1", "--setting", "num-nodes=1", "--setting", "byzantine=0", "--setting", "compression=1"],
        ["--spares", "0", "--attack", ""],
    ):
        done = CliRunner().invoke(loopback.program, arguments)
        assert done.exit_code == 0, done.output
    first, silos, two, honest = told
    assert first == {f"node-{number}": {"attack": "reverse"} if number == 3 else {} for number in range(1, 6)}
    assert list(silos) == [
        *(f"silo-a/{number}" for number in range(1, 6)),
        *(f"silo-b/{number}" for number in range(1, 5)),
    ]
    assert silos["silo-a/3"] == {"silo": "silo-a", "attack": "reverse"}
    assert silos["silo-b/3"] == {"silo": "silo-b"}
    assert two == {"node-1": {}, "node-2": {"attack": "reverse"}}
    assert not any(honest.values())
