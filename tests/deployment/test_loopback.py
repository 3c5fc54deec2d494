"""Real deployments on this machine: liars are caught by name, faults are survived, and nothing is left behind."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import loopback
import pytest
import torch
from federation import Federation, processes_with
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from solon_fl.clients import Batch
from solon_fl.simulations.datasets import load_dataset
from solon_fl.simulations.datasets.models import build_model

EXAMPLES = Path(__file__).parents[2] / "examples"
LOOPBACK = [sys.executable, loopback.__file__]
FASTER = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}

pytestmark = pytest.mark.slow


@pytest.fixture
def one_at_a_time() -> Iterator[None]:
    """Wait until no other worker runs a deployment: each starts more processes than there are CPUs."""
    with Path(__file__).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def temporary_folder(one_at_a_time: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the deployment makes its own; short-lived, and empty to begin with."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def own_processes(temporary_folder: Path, program: str = "", node: str = "") -> list[int]:
    """Return the processes of the deployment in this folder: all, or those of a program, or of a node."""
    found = []
    for process_id in processes_with(""):
        try:
            variables = Path(f"/proc/{process_id}/environ").read_text(errors="replace")
            command = Path(f"/proc/{process_id}/cmdline").read_text(errors="replace")
        except OSError:
            continue
        if str(temporary_folder) in variables and f"/{node}" in variables and program in command:
            found.append(process_id)
    return found


def ports_of(temporary_folder: Path) -> set[int]:
    """Return the ports that the deployment in this folder was told to listen at."""
    found = set()
    for process_id in own_processes(temporary_folder, "--port"):
        command = Path(f"/proc/{process_id}/cmdline").read_text().split("\0")
        found.add(int(command[command.index("--port") + 1]))
    return found


def assert_nothing_is_left(temporary_folder: Path, ports: set[int]) -> None:
    left = [path.name for path in temporary_folder.iterdir()]
    assert [name for name in left if not name.startswith("torchinductor")] == []  # that is of torch in this process
    assert own_processes(temporary_folder) == []
    deadline = time.monotonic() + 10  # a killed process may still be giving its ports back
    while still := {port for port in ports if listens(port)}:
        assert time.monotonic() < deadline, still
        time.sleep(0.1)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def send(process_ids: list[int], number: signal.Signals) -> None:
    for process_id in process_ids:
        os.kill(process_id, number)


def wait_for_answer(temporary_folder: Path, node: str) -> None:
    """Wait until the node's ClientApp has come and gone."""
    deadline = time.monotonic() + 60
    for there in (True, False):
        while bool(own_processes(temporary_folder, "flwr-clientapp", node)) != there:
            assert time.monotonic() < deadline, node
            time.sleep(0.05)


def test_the_liar_alone_is_caught_by_name_and_nothing_is_left(temporary_folder: Path) -> None:
    with subprocess.Popen(
        [*LOOPBACK, "--rounds", "2", "--liar", "node-2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **FASTER},
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        lines = []
        for line in program.stdout:
            lines.append(line.rstrip())
            if line.startswith("Running"):
                # Four of the five that agree are enough, so a liar who answers last would not be looked at. Make an
                # honest node slow until the liar has answered.
                ports = ports_of(temporary_folder)
                slow = own_processes(temporary_folder, node="node-1/")
                send(slow, signal.SIGSTOP)
                wait_for_answer(temporary_folder, "node-2/")
                send(slow, signal.SIGCONT)
        errors = program.stderr.read()
    output = "\n".join(lines)
    assert program.returncode == 0, output + errors
    assert len(ports) == 8, ports  # the SuperLink's, and seven nodes'
    caught = re.findall(r"lying: (.*)", output)
    assert caught[0] == "'node-2'"
    assert caught[1] in ("'node-2'", "nobody")
    first, *_, last = (float(percent) for percent in re.findall(r"accuracy ([\d.]+)%", output))
    assert last > first + 20
    (row,) = re.findall(r"'node-2' +member +2 +(\d)", output)
    assert int(row) == caught.count("'node-2'")
    assert_nothing_is_left(temporary_folder, ports)


def test_with_digests_and_resting_nodes_four_are_enough(temporary_folder: Path) -> None:
    settings = ("num-nodes=4", "verification=digest", "redundancy=reactive")
    command = [*LOOPBACK, "--rounds", "2", "--liar", "node-2", "--spares", "0"]
    command += [argument for setting in settings for argument in ("--setting", setting)]
    program = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **FASTER}, check=False)
    assert program.returncode == 0, program.stdout + program.stderr
    caught = re.findall(r"lying: (.*)", program.stdout)
    assert len(caught) == 2
    assert set(caught) <= {"'node-2'", "nobody"}
    assert caught.count("'node-2'") <= 1, "who was caught gets no more tasks"
    first, *_, last = (float(percent) for percent in re.findall(r"accuracy ([\d.]+)%", program.stdout))
    assert last > first + 20
    assert_nothing_is_left(temporary_folder, set())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(temporary_folder: Path, number: signal.Signals) -> None:
    command = [*LOOPBACK, "--spares", "0", "--setting", "num-nodes=3", "--setting", "compression=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        # SIGINT comes in the middle of a round, SIGTERM while the nodes start.
        awaited = "round 0" if number == signal.SIGINT else "Starting"
        for line in program.stdout:
            if awaited in line:
                break
        time.sleep(4)
        ports = ports_of(temporary_folder)
        program.send_signal(number)
        time.sleep(0.05)
        program.send_signal(number)  # an impatient user
        assert program.stderr.read() == "Interrupted; all processes are stopped.\n"
    assert program.returncode == 128 + number
    assert ports
    assert_nothing_is_left(temporary_folder, ports)


def test_a_mistake_is_told_in_plain_words() -> None:
    for arguments, words in (
        (["fashion"], "app must be one of fashion-mnist, own-model, cross-silo; got app='fashion'."),
        (["--liar", "node-9"], "liar must be one of node-1, "),
        (["--attack", "nosuch"], "got attack='nosuch'."),
        (["--bandwidth", "5mbit"], "--bandwidth 5mbit limits the links of --namespaces; give that too."),
        (["--setting", "num-nodes=6"], "num_nodes must be a multiple of group_size; got num_nodes=6"),
        (["--setting", "rate=3"], "KEY one of num-nodes, "),
        (["--setting", "learning-rate=fast"], "learning-rate must be a number, as 0.005 is; got 'fast'."),
    ):
        done = CliRunner().invoke(loopback.program, arguments)
        assert done.exit_code == 1
        assert words in done.output
        assert "Traceback" not in done.output


def accuracies_without_faults(num_rounds: int) -> list[float]:
    """Return what the same training gives in one process with honest nodes, in percent."""
    data = load_dataset("fashion-mnist-6k")
    model = build_model("cnn", (1, 28, 28), num_classes=10, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    accuracies = []
    for server_round in range(num_rounds + 1):
        for number in range(3 if server_round else 0):  # the batches of a group of three
            chosen = Batch(0, server_round, number).sample(len(data.train_labels), 64)
            loss = cross_entropy(model(data.train_inputs[chosen]), data.train_labels[chosen])
            (loss / 3).backward()  # type: ignore[no-untyped-call]  # torch's
        if server_round:
            optimizer.step()
            optimizer.zero_grad()
        with torch.inference_mode():
            right = model(data.test_inputs).argmax(1) == data.test_labels
        accuracies.append(100 * float(right.float().mean()))
    return accuracies


@pytest.fixture
def federation(temporary_folder: Path) -> Iterator[Federation]:
    with Federation(environment=FASTER) as federation:
        yield federation
    assert_nothing_is_left(temporary_folder, {federation.port})


def test_a_killed_server_resumes_a_spare_fills_in_and_strangers_are_refused(
    federation: Federation, temporary_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    federation.start_nodes({f"node-{number}": {} for number in range(1, 5)})
    federation.make_key("stranger")  # and not registered
    federation.start_node("stranger")
    folder = tmp_path_factory.mktemp("checkpoints")
    app = EXAMPLES / "fashion-mnist"
    settings: dict[str, str | int] = {"num-nodes": 3, "compression": 1, "checkpoints": str(folder), "num-rounds": 30}
    lines = []
    for line in federation.start_run(app, settings).lines():
        lines.append(line)
        if "round 0: accuracy" in line:
            federation.kill("node-2")  # the two others suffice until Flower notices, after 30 to 60 s
        if "[ROUND 2/" in line:
            send(own_processes(temporary_folder, "flwr-serverapp"), signal.SIGKILL)
            break
    assert federation.exit_code("stranger") not in (None, 0)
    filled_in = False
    for line in federation.start_run(app, settings).lines():
        lines.append(line)
        filled_in |= "Node 'node-2' (group 0) is away: node 'node-4' fills in." in line
        if filled_in and "accuracy" in line:
            break
    output = "\n".join(lines)
    assert filled_in, output
    assert f"Resuming after round 1, from {folder}" in output
    results = re.findall(r"round (\d+): accuracy ([\d.]+)%", output)
    assert [int(number) for number, _ in results] == [*range(len(results))]  # none is missing, none twice
    accuracies = [float(percent) for _, percent in results]
    assert accuracies == pytest.approx(accuracies_without_faults(len(results) - 1), abs=0.3)
