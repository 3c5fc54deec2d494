"""Faults: their notation, and their injection by a node's app and by the node's injector."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from solon_fl.launch import injector as injector_module
from solon_fl.launch.errors import FederationError
from solon_fl.launch.faults import Fault, check_faults, faults_from_json, faults_to_json
from solon_fl.launch.faulty import FaultyApp
from solon_fl.launch.injector import Injector, report
from solon_fl.launch.markers import BEGUN, DONE, Markers
from solon_fl.simulations.run._compat import become_server


def faults_of(*texts: str) -> list[Fault]:
    return [Fault.parse(text) for text in texts]


def test_a_fault_is_what_its_text_says_and_back() -> None:
    assert Fault.parse("silo-a/3:lie=min-max@4+1.5s") == Fault(
        node="silo-a/3", kind="lie", attack="min-max", round=4, lasts=1.5
    )
    assert Fault.parse("node-5:die@30s") == Fault(node="node-5", kind="die", after=30.0)
    for text in ("node-3:lie=reverse@4", "node-5:die@0.5s", "node-2:stall@3+20s", "a:b:stall@3"):
        (fault,) = faults_from_json(faults_to_json(faults_of(text)))
        assert str(fault) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node-3", r"a fault must be NODE:KIND@WHEN\[\+FOR\], such as .*; got 'node-3'"),
        ("node-3:lie@4+3", "a fault must be NODE:KIND@WHEN"),
        ("node-3:dies@4", "a fault must lie, stall or die; got 'node-3:dies@4'; did you mean die?"),
        ("node-3:stall=alie@4", "only a lie has an attack; got 'node-3:stall=alie@4'; leave out =alie"),
        ("node-3:lie@0", "rounds are counted from 1; got 'node-3:lie@0'"),
        (f"node-3:lie@{'9' * 5000}", "a fault must be NODE:KIND@WHEN"),
        (f"node-3:die@5s+{'9' * 400}s", "a fault must be NODE:KIND@WHEN"),
        ("node-3:lie@1.2.3s", "seconds must be a number, such as 20s; got 'node-3:lie@1.2.3s'"),
    ],
)
def test_a_text_that_is_no_fault_is_told(text: str, words: str) -> None:
    with pytest.raises(FederationError, match=words):
        Fault.parse(text)


def test_nodes_and_attacks_must_exist() -> None:
    nodes = ["node-1", "node-2"]
    check_faults(faults_of("node-1:lie=alie@1", "node-2:die@1"), nodes)
    with pytest.raises(FederationError, match=r"one of node-1, node-2; got 'nod-2:die@1'; did you mean node-2\?"):
        check_faults(faults_of("nod-2:die@1"), nodes)
    with pytest.raises(FederationError, match=r"got attack='alei'; did you mean alie\?"):
        check_faults(faults_of("node-1:lie=alei@1"), nodes)


# In the node's process


def message(server_round: int, kind: str = "train") -> Message:
    become_server()
    content = RecordDict({"config": ConfigRecord({"server-round": server_round})})
    return Message(content, 7, kind)


def context() -> Context:
    return Context(run_id=1, node_id=7, node_config={"partition-id": 1}, state=RecordDict(), run_config={})


def ones(asked: Message, told: Context) -> Message:
    return Message(RecordDict({"arrays": ArrayRecord({"w": Array(np.ones(2))})}), reply_to=asked)


def answer(app: FaultyApp, asked: Message) -> float:
    return float(app(asked, context()).content.array_records["arrays"]["w"].numpy()[0])


def test_a_liar_lies_from_its_round_on_and_only_when_it_trains(tmp_path: Path) -> None:
    faults, markers = faults_of("other:die@1", "me:lie=sign-flip@2"), Markers(tmp_path)
    app = FaultyApp(ones, [(1, faults[1])], markers)
    assert answer(app, message(1)) == 1
    assert report(faults[1:], tmp_path)[0] == []
    assert [answer(app, message(2)), answer(app, message(3)), answer(app, message(3, "evaluate"))] == [-1, -1, 1]
    happened, missing = report(faults, tmp_path)
    assert happened == ["me lied (sign-flip) from round 2 on"]
    assert missing == ["other:die@1: it did not occur, because the node had no task of round 1 or a later one."]


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        ("label-flip", "its replies were honest"),  # it needs an app that supports it
        ("near-codeword", "this attack is made against Solon's code|attack='near-codeword' is made against"),
        ("alie", "an omniscient attack needs num-partitions"),
    ],
)
def test_a_lie_that_changes_nothing_did_not_happen(attack: str, why: str, tmp_path: Path) -> None:
    (fault,) = faults_of(f"me:lie={attack}@1")
    assert answer(FaultyApp(ones, [(0, fault)], Markers(tmp_path)), message(1)) == 1
    happened, (missing,) = report([fault], tmp_path)
    assert not happened
    assert any(words in missing for words in why.split("|")), missing


def test_a_liar_that_does_not_come_to_answer_is_told(tmp_path: Path) -> None:
    (fault,) = faults_of("me:lie=reverse@1")

    def interrupted(asked: Message, told: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FaultyApp(interrupted, [(0, fault)], Markers(tmp_path))(message(1), context())
    assert report([fault], tmp_path)[1] == [
        f"{fault}: it did not occur, because the run ended before the node had answered."
    ]


def test_a_node_that_crashes_on_purpose_did(tmp_path: Path) -> None:
    (fault,) = faults_of("me:lie=crash@1")
    with pytest.raises(RuntimeError, match="this node has crashed"):
        FaultyApp(ones, [(0, fault)], Markers(tmp_path))(message(1), context())
    assert report([fault], tmp_path)[0] == ["me lied (crash) from round 1 on"]


# In the process that manages nodes


def test_an_event_is_noted_once(tmp_path: Path) -> None:
    assert [Markers(tmp_path).set(3, DONE, n=1), Markers(tmp_path).set(3, DONE, n=2)] == [True, False]
    assert Markers(tmp_path).get(3, DONE) == {"n": 1}
    assert Markers(tmp_path).get(2, DONE) is None


class SomeNodes:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def stop(self, name: str) -> None:
        self.calls.append(f"stop {name}")

    def go_on(self, name: str) -> None:
        self.calls.append(f"go on {name}")

    def kill(self, name: str) -> None:
        self.calls.append(f"kill {name}")

    def restart(self, name: str) -> None:
        self.calls.append(f"restart {name}")

    def exit_code(self, name: str) -> int | None:
        return 305 if self.calls.count(f"restart {name}") < 3 else None


def wait_for(nodes: SomeNodes, *calls: str) -> None:
    deadline = time.monotonic() + 20
    while nodes.calls != list(calls) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert nodes.calls == list(calls)


def test_a_node_is_stopped_in_the_midst_of_its_round_and_goes_on(tmp_path: Path) -> None:
    faults, nodes = faults_of("me:stall@2+0.2s", "you:stall@1"), SomeNodes()
    injector = Injector(faults, tmp_path, nodes, ["me"])
    assert injector.variables("you") == {}  # another process manages this node
    app = FaultyApp(ones, [(0, faults[0])], Markers(tmp_path))
    injector.begin()
    try:
        assert answer(app, message(1)) == 1
        assert nodes.calls == []
        called_before: list[str] = []

        def answer_late() -> None:
            answer(app, message(3))  # it had no task of round 2
            called_before.extend(nodes.calls)

        stopped = threading.Thread(target=answer_late)
        stopped.start()
        wait_for(nodes, "stop me", "go on me")
        stopped.join(20)
        assert called_before[:1] == ["stop me"]
        answer(app, message(4))  # the fault occurs only once
    finally:
        injector.end()
    assert nodes.calls == ["stop me", "go on me"]
    happened, missing = report(faults, tmp_path)
    assert happened == ["me was stopped in round 3, and resumed 0.2 s later"]
    assert len(missing) == 1


def test_a_node_is_killed_by_the_clock_and_started_until_it_is_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injector_module, "AGAIN_SECONDS", 0.0)
    faults, nodes = faults_of("me:die@0.1s+0.1s", "me:lie=sign-flip@0.1s", "me:stall@999s"), SomeNodes()
    injector = Injector(faults, tmp_path, nodes)
    assert not Markers(tmp_path).get(0, BEGUN)
    injector.begin()
    try:
        wait_for(nodes, "kill me", *["restart me"] * 3)
    finally:
        injector.end()
    assert Markers(tmp_path).get(0, DONE) is not None
    app = FaultyApp(ones, list(enumerate(faults)), Markers(tmp_path))
    assert answer(app, message(1)) == -1
    happened, missing = report(faults, tmp_path)
    assert happened == [
        "me was killed 0.1 s after the start, and was restarted 0.1 s later",
        "me lied (sign-flip) from round 1 on",
    ]
    assert missing == ["me:stall@999s: it did not occur, because the run had ended before."]
