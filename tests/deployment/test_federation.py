"""A real deployment on this machine: liars are named, faults are tolerated, and nothing is left behind.

All tests share one deployment, because it takes long to start. They start additional nodes if they need them.
"""

import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch.nn.functional import cross_entropy

from deployment.federation import Federation
from deployment.hurry import NAMESPACE, Forker
from deployment.loopback import find_app, read_settings, run_app
from solon_fl.clients import Batch
from solon_fl.launch.apps import read_app
from solon_fl.launch.errors import FederationError
from solon_fl.launch.faults import Fault
from solon_fl.launch.processes import TAG, processes_with
from solon_fl.launch.programs import Programs
from solon_fl.launch.slurm import Launch, Task, launch
from solon_fl.simulations.datasets import load_dataset
from solon_fl.simulations.datasets.models import build_model
from tests.deployment.any_app import write_app
from tests.deployment.fleet import FleetNode
from tests.deployment.support import EXAMPLES, assert_nothing_is_left, ports_of, send, wait_until

APP = "fashion-mnist"
LIAR = "node-2"
RECEIVED, SENT = "Received successfully", "Sent successfully"  # log messages of a SuperNode

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for everything that the tests make."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def forker(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    """The process from which Flower's programs are forked."""
    folder = tmp_path_factory.mktemp("forker")
    forker = Forker(folder, {**os.environ, TAG: f"{uuid4().hex}/hurry/", "OMP_NUM_THREADS": "1"}, folder / "log")
    yield forker
    forker.process.kill()
    forker.close()


@pytest.fixture(scope="module")
def federation(temporary: Path, forker: Forker) -> Iterator[Federation]:
    """A deployment of four nodes, one of which lies."""
    with Federation(hurried=True, forker=forker) as federation:
        federation.start_nodes({name: {"attack": "reverse"} if name == LIAR else {} for name in names(4)})
        ports = ports_of(processes_with(federation.tag))
        assert len(ports) == 5, ports  # of the SuperLink and four nodes
        yield federation
    assert_nothing_is_left(temporary, ports)


def names(count: int) -> list[str]:
    return [f"node-{number}" for number in range(1, count + 1)]


def run(federation: Federation, capsys: pytest.CaptureFixture[str], *changes: str) -> str:
    """Run two rounds of the app and return its output."""
    app = find_app(APP)
    settings = read_settings(app, 2, list(changes))
    run_app(federation, app, settings, num_nodes=4)
    return capsys.readouterr().out


def hold(federation: Federation, *nodes: str) -> None:
    """Keep nodes from starting ClientApps; they stay connected."""
    for name in nodes:
        send(federation.processes(name, "flower-superexe"), signal.SIGSTOP)


def release(federation: Federation, *nodes: str) -> None:
    for name in nodes:
        send(federation.processes(name, "flower-superexe"), signal.SIGCONT)


def times_said(federation: Federation, name: str, words: str) -> int:
    return federation.log_path(name).read_text(errors="replace").count(words)


def test_a_slurm_job_runs_any_app_whose_nodes_lie_stall_and_die(
    temporary: Path, forker: Forker, tmp_path: Path
) -> None:
    """Three tasks as threads. This test is the first one, before other nodes use CPU time."""

    class Hurried(Programs):
        def start(self, name: str, command: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
            variables = {**self.variables(name), **(extra or {}), NAMESPACE: ""}
            self._processes[name] = forker.start(command, variables, self.log_path(name))

    app = read_app(write_app(tmp_path))
    faults = ["node-2:stall@1+2s", "node-1:lie=sign-flip@2", "node-3:die@2"]
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "3", "SLURMD_NODENAME": "127.0.0.1"}
    told: list[str] = []

    def task(rank: int) -> None:
        what = Launch(
            app=app,
            settings=app.settings(["num-server-rounds=2"]),
            folder=tmp_path / "job",
            name=f"node-{rank + 1}",
            node_config={"number": rank + 1},
            faults=list(map(Fault.parse, faults)),
            superlink=["flower-superlink"],
            supernode=["flower-supernode"],
        )
        launch(Task.from_environment({**slurm, "SLURM_PROCID": str(rank)}), what, told.append, Hurried)

    with ThreadPoolExecutor() as pool:
        list(pool.map(task, range(3)))
    output = "\n".join(told)
    models = [float(model) for model in re.findall(r"after round \d: (.*)", output)]
    assert models == [0, (1 + 2 + 3) / 3, (-1 + 2) / 2], output
    assert "aggregate_train: Received 2 results" in output
    assert told[-3:] == [
        "node-2 was stopped in round 1, and resumed 2 s later",
        "node-1 lied (sign-flip) from round 2 on",
        "node-3 was killed in round 2",
    ]
    logs = {path.name for path in (tmp_path / "job" / "17.0.0" / "logs").iterdir()}
    assert logs >= {"superlink.log", *(f"{name}.log" for name in names(3))}
    secrets = list((tmp_path / "job").rglob("*.key"))
    assert {path.name for path in secrets} == {f"{name}.key" for name in names(3)}  # without the server's key
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert_nothing_is_left(temporary, set())


def test_with_digests_and_resting_nodes_four_are_enough(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(federation, capsys, "num-nodes=4", "verification=digest", "redundancy=reactive", "code=exact")
    caught = re.findall(r"lying: nobody(?:, other bits: (.*))?", output)
    assert len(caught) == 2
    assert set(caught) <= {f"'{LIAR}'", ""}
    assert caught.count(f"'{LIAR}'") <= 1, "who was caught gets no more tasks"
    first, *_, last = (float(percent) for percent in re.findall(r"accuracy ([\d.]+)%", output))
    assert last > first + 20


def test_a_trusted_node_settles_what_three_others_disagree_about(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two shares suffice, so one liar of three is detected but can't be identified."""
    output = run(federation, capsys, "num-nodes=3", "compression=2", "code=exact", "referee=node-4")
    assert re.findall(r"lying: (.*)", output) == [f"'{LIAR}', referee asked: shares disagree", "nobody"]
    assert re.search(rf"'{LIAR}' +quarantined +1 ", output)
    assert not re.search("^'node-4'", output, re.MULTILINE), "who is trusted has no place"
    first, *_, last = (float(percent) for percent in re.findall(r"accuracy ([\d.]+)%", output))
    assert last > first + 20


def test_the_liar_alone_is_caught_by_name(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    federation.start_nodes({"node-5": {}})
    # Four agreeing shares of five are enough, so a liar that answers last would not be checked. Make an honest node
    # wait until the liar has answered.
    hold(federation, "node-1")
    answers = times_said(federation, LIAR, SENT)

    def release_when_the_liar_has_answered() -> None:
        wait_until(lambda: times_said(federation, LIAR, SENT) > answers, "the liar's answer")
        release(federation, "node-1")

    with ThreadPoolExecutor() as pool:
        released = pool.submit(release_when_the_liar_has_answered)
        output = run(federation, capsys)
        released.result()
    caught = re.findall(r"lying: (.*)", output)
    assert caught[0] == f"'{LIAR}'"
    assert caught[1] in (f"'{LIAR}'", "nobody")
    first, *_, last = (float(percent) for percent in re.findall(r"accuracy ([\d.]+)%", output))
    assert last > first + 20
    (row,) = re.findall(rf"'{LIAR}' +member +2 +(\d)", output)
    assert int(row) == caught.count(f"'{LIAR}'")


def test_a_failing_command_of_flowers_is_told(federation: Federation) -> None:
    with pytest.raises(FederationError, match=r"flwr list nowhere failed: (?s:.*)connection 'nowhere' not found"):
        federation.flwr("list", "nowhere")


@pytest.mark.filterwarnings("ignore:`verify=<str>` is deprecated:DeprecationWarning")  # Flower's own use of httpx
def test_stalled_replies_hold_up_nobody_and_who_restarts_has_its_place_again(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven nodes in threads of this test, three of which may be faulty; the deployment's nodes are spares."""
    deadline, rounds = 15.0, 5
    monkeypatch.syspath_prepend(str(EXAMPLES / APP))
    app = import_module("fashion_mnist.client_app").app
    changes = ["num-nodes=7", "byzantine=3", "compression=1", "batch-size=16", f"round-timeout={deadline:.0f}"]
    settings = read_settings(find_app(APP), rounds, changes)
    did: dict[str, list[int]] = {"announced": [], "dripped": [], "restarted": [], "was back": []}

    def round_of(message: Message) -> int:
        return int(message.metadata.group_id)

    def honest(node: FleetNode, message: Message) -> None:
        node.over.wait(4.5)  # so that all rounds before the last one together exceed the deadline
        node.send(node.answer(app, message, settings))

    def announcing(node: FleetNode, message: Message) -> None:
        node.announce(node.answer(app, message, settings))
        did["announced"].append(round_of(message))

    def dripping(node: FleetNode, message: Message) -> None:
        drops = RecordDict()
        for number in range(100):
            drops[f"drop-{number}"] = ConfigRecord({"number": number})
        drip = node.announce(Message(drops, reply_to=message))
        while not node.over.wait(1) and drip():
            did["dripped"].append(round_of(message))

    def restarting(node: FleetNode, message: Message) -> None:
        if round_of(message) == 2:
            did["restarted"].append(2)
            node.restart()
            return
        node.send(node.answer(app, message, settings))
        if node.times_online == 2:
            did["was back"].append(round_of(message))

    behaviours = [honest] * 4 + [announcing, dripping, restarting]
    begun: list[float] = []
    lines = []
    with ExitStack() as stack:  # these names sort before those of the other nodes
        nodes = [FleetNode(federation, f"a-{number}", behave) for number, behave in enumerate(behaviours, 1)]
        for node in nodes:
            stack.enter_context(node)
        wait_until(lambda: {node.name for node in nodes} <= federation.online(), "the seven nodes", pause=0.5)
        for line in federation.start_run(EXAMPLES / APP, settings).checked_lines():
            lines.append(line)
            if "[ROUND " in line:
                begun.append(time.monotonic())
    output = "\n".join(lines)
    print(output, *(f"{node.name}: {node.error}" for node in nodes), sep="\n")  # shown if an assertion fails
    # The faults did occur.
    assert did["announced"][:3] == [1, 2, 3]
    assert len(did["dripped"]) > deadline / 2
    assert set(did["dripped"]) == {1}
    assert did["restarted"] == [2]
    assert did["was back"][0] == 3
    # The server waited for no node, and every round made a step.
    lasted = sorted(end - start for start, end in pairwise(begun))
    assert lasted[len(lasted) // 2] < deadline
    assert lasted[-1] < deadline + 10
    assert len(re.findall("lying: nobody", output)) == rounds
    assert "made no step" not in output
    first, *_, last = (float(percent) for percent in re.findall(r"accuracy ([\d.]+)%", output))
    assert last > first + 20
    # Exactly the nodes that stalled are named. None counts as a liar or as malformed.
    assert set(re.findall("Node '(.*)' announced an answer and never sent it", output)) == {"a-5", "a-6"}
    table = re.findall(r"'(a-\d)' +(\w+) +(\d+) +(\d+) +(\d+) +(\d+)", output)
    assert [row[:5] for row in table] == [(node.name, "member", str(rounds), "0", "0") for node in nodes]
    not_awaited = {name: int(count) for name, *_, count in table}
    assert not_awaited["a-5"] == not_awaited["a-6"] == rounds
    assert not_awaited["a-7"] >= 1


def accuracies_without_faults(num_rounds: int) -> list[float]:
    """Return the accuracies of the same training in one process with honest nodes, in per cent."""
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


def lines_until(lines: Iterator[str], words: str, seen: list[str]) -> None:
    """Read lines until one contains these words, and add them to `seen`."""
    for line in lines:
        seen.append(line)
        if words in line:
            return
    pytest.fail("\n".join([f"no line with {words!r}:", *seen]))


def test_a_killed_server_resumes_a_spare_fills_in_and_strangers_are_refused(
    federation: Federation, tmp_path: Path
) -> None:
    """Kill a node in round 1 and the server in round 2. This test is the last one, because it kills a node."""
    federation.make_key("stranger")  # but not registered
    federation.start_node("stranger")
    settings: dict[str, str | int] = {"num-nodes": 3, "compression": 1, "checkpoints": str(tmp_path), "num-rounds": 99}
    first, killed, last = names(3)
    messages = {name: times_said(federation, name, RECEIVED) for name in (first, killed, last)}
    answers = times_said(federation, first, SENT)
    seen: list[str] = []
    hold(federation, killed, last)
    lines = federation.start_run(EXAMPLES / APP, settings).lines()
    wait_until(lambda: times_said(federation, killed, RECEIVED) == messages[killed] + 1, "the message of round 1")
    federation.kill(killed)  # the two others suffice until Flower notices, after 10 to 20 s
    wait_until(lambda: times_said(federation, first, SENT) == answers + 1, "an answer in round 1")
    hold(federation, first)
    release(federation, last)  # then round 1 ends, but round 2 does not
    lines_until(lines, "[ROUND 2/", seen)
    wait_until(lambda: times_said(federation, first, RECEIVED) == messages[first] + 2, "the message of round 2")
    wait_until(lambda: times_said(federation, last, RECEIVED) == messages[last] + 2, "the message of round 2")
    send(federation.processes("superlink", "flwr-serverapp"), signal.SIGKILL)
    wait_until(lambda: federation.exit_code("stranger") is not None, "the end of the stranger")
    assert federation.exit_code("stranger") != 0

    lines = federation.start_run(EXAMPLES / APP, settings).lines()
    lines_until(lines, "[ROUND 2/", seen)
    wait_until(lambda: killed not in federation.online(), "Flower's notice that the node is gone", pause=0.5)
    release(federation, first)  # then round 2 ends
    lines_until(lines, f"Node '{killed}' (group 0) is away: node 'node-4' fills in.", seen)
    lines_until(lines, "accuracy", seen)
    output = "\n".join(seen)
    assert f"Resuming after round 1, from {tmp_path}" in output
    results = re.findall(r"round (\d+): accuracy ([\d.]+)%", output)
    assert [int(number) for number, _ in results] == [*range(len(results))]  # each round exactly once
    accuracies = [float(percent) for _, percent in results]
    assert accuracies == pytest.approx(accuracies_without_faults(len(results) - 1), abs=0.3)
