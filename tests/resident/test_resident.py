"""Resident workers: their answers, the processes that they serve, their ends and their clean-up."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import AuthenticationError
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array
from flwr.clientapp.client_app import LoadClientAppError

from solon_fl.errors import ConfigurationError, NodeFailedError
from solon_fl.resident import channel, flower, folder, resident
from solon_fl.resident.errors import ResidentError
from solon_fl.resident.outcome import Failure
from solon_fl.resident.processes import start_time
from solon_fl.resident.worker import Worker
from tests.deployment.support import wait_until
from tests.resident.support import APP, FakeNode, processes_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="these look for workers in /proc")


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the sockets of a test's workers."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    return temporary / f"solon-resident-{os.geteuid()}"


@pytest.fixture
def make_node(tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeNode]]:
    nodes: list[FakeNode] = []
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "toy_app.py").write_text(f"VERSION = 1\n{APP}")
    monkeypatch.syspath_prepend(str(tmp_path / "app"))

    def make(run_id: int = 1) -> FakeNode:
        nodes.append(FakeNode(tmp_path, run_id))
        monkeypatch.setattr(flower, "superexec", lambda: nodes[-1].supernode.pid)
        return nodes[-1]

    yield make
    for node in nodes:
        node.kill()
    try:
        wait_until(lambda: not processes_of(tmp_path), "the end of all workers", seconds=10)
    finally:
        for process in processes_of(tmp_path):
            os.kill(process, signal.SIGKILL)


@pytest.fixture
def node(make_node: Callable[..., FakeNode]) -> FakeNode:
    return make_node()


# Answers


@pytest.mark.slow
def test_one_process_that_stays_answers_all_messages_of_a_run(node: FakeNode) -> None:
    answers = [node.ask() for _ in range(3)]
    assert [answer["calls"] for answer in answers] == [1, 2, 3]
    (process,) = {answer["process"] for answer in answers}
    assert process in processes_of(node.folder)
    assert node.context.state.config_records["seen"]["calls"] == 3


@pytest.mark.slow
def test_arrays_travel_both_ways_even_when_flower_has_their_ids_cached(node: FakeNode) -> None:
    values = np.random.default_rng(0).standard_normal((300, 1000))
    message = node.message("train", Array(values))
    assert message.content.array_records["arrays"]["array"].object_id  # plain pickle fails afterwards
    reply = node.app()(message, node.context)
    np.testing.assert_array_equal(reply.content.array_records["arrays"]["array"].numpy(), values)
    assert reply.metadata.reply_to_message_id == message.metadata.message_id


@pytest.mark.slow
def test_an_exception_comes_back_as_if_it_had_been_raised_here(node: FakeNode) -> None:
    with pytest.raises(KeyError) as caught:
        node.ask("train.fail")
    # The text that Flower sends to the server.
    assert str(type(caught.value)) + ":<'" + str(caught.value) + "'>" == "<class 'toy_app.OddError'>:<'odd words'>"
    assert 'raise OddError("one", "other")' in str(caught.value.__cause__)
    assert node.context.state.config_records["seen"]["calls"] == -1
    with pytest.raises(NodeFailedError, match="in the user's words") as explained:
        node.ask("train.explain")
    assert str(type(explained.value)) == "<class 'solon_fl.errors.NodeFailedError'>"
    assert node.ask()["calls"] == 1  # by the same worker


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ModuleNotFoundError("No module named 'x'"), ImportError),  # Flower has an exit code for it
        (LoadClientAppError("no app"), LoadClientAppError),
        (UnicodeDecodeError("utf-8", b"a", 0, 1, "why"), ValueError),
        (ExceptionGroup("two", [ValueError("a"), TypeError("b")]), Exception),
        (PermissionError(13, "denied", "/x"), PermissionError),
    ],
)
def test_an_exception_of_whatever_kind_is_rebuilt(error: Exception, kind: type[Exception]) -> None:
    rebuilt = Failure.of(error).rebuilt()
    assert isinstance(rebuilt, kind)
    assert str(rebuilt) == str(error)
    assert str(type(rebuilt)) == str(type(error))


@pytest.mark.slow
def test_what_the_worker_prints_is_seen_where_the_nodes_words_are(
    node: FakeNode, capfd: pytest.CaptureFixture[str]
) -> None:
    node.ask("train.talk")
    assert "said by the worker" in capfd.readouterr().err


@pytest.mark.slow
def test_two_messages_at_once_are_answered_one_after_the_other(node: FakeNode) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = [answer.result() for answer in [pool.submit(node.ask, sleep=0.3) for _ in range(4)]]
    assert sorted(answer["calls"] for answer in answers) == [1, 2, 3, 4]
    assert len({answer["process"] for answer in answers}) == 1


@pytest.mark.slow
def test_the_thin_app_imports_no_torch() -> None:
    program = (
        "import sys, flwr.clientapp\n"
        "from solon_fl.resident import resident\n"
        "resident('my_package.client_app:app')\n"
        "import solon_fl\n"
        "assert 'SolonConfig' in dir(solon_fl)\n"
        "assert solon_fl.ConfigurationError.__name__ == 'ConfigurationError'\n"
        "loaded = {'torch', 'scipy', 'solon_fl.coding'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "from solon_fl import SolonConfig\n"
        "assert 'torch' in sys.modules\n"
        "try:\n    solon_fl.Typo\n"
        "except AttributeError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module 'solon_fl' has no attribute 'Typo'\n"


# Access


@pytest.mark.slow
def test_each_run_has_a_worker_of_its_own_and_so_has_an_updated_app(
    make_node: Callable[..., FakeNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node()
    first = node.ask()
    node.context = node.new_context(run_id=2)
    second = node.ask()
    # Flower installs an updated app in another folder, named after the app's digest.
    (tmp_path / "updated").mkdir()
    (tmp_path / "updated" / "toy_app.py").write_text(f"VERSION = 2\n{APP}")
    monkeypatch.syspath_prepend(str(tmp_path / "updated"))
    third = node.ask()
    node.context = node.new_context(run_id=1)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path / "updated")])
    again = node.ask()
    assert [answer["calls"] for answer in (first, second, third, again)] == [1, 1, 1, 2]
    assert [answer["version"] for answer in (first, second, third, again)] == [1, 1, 2, 1]
    assert again["process"] == first["process"]
    assert len({answer["process"] for answer in (first, second, third)}) == 3


@pytest.mark.parametrize("why", ["simulation", "setting", "dependencies", "windows"])
def test_without_a_worker_the_message_is_computed_here(
    node: FakeNode, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "simulation":
        monkeypatch.setattr(flower, "superexec", lambda: None)
    if why == "setting":
        node.context = node.new_context(1, resident=False)
    if why == "dependencies":
        monkeypatch.setattr(sys, "argv", ["flwr-clientapp", "--allow-runtime-dependency-installation"])
    if why == "windows":
        monkeypatch.setattr("solon_fl.resident.app.POSSIBLE", False)
    monkeypatch.delitem(sys.modules, "toy_app", raising=False)
    assert node.ask()["process"] == os.getpid()
    monkeypatch.delitem(sys.modules, "toy_app")


def spoil(how: str, sockets: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put something else in the folder's place, and return the expected message."""
    if how == "open to others":
        sockets.mkdir()
        sockets.chmod(0o755)
        return "must be closed to other users; got mode 755"
    if how == "another user's":
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)
        sockets.with_name(f"solon-resident-{other}").mkdir(mode=0o700)
        return f"must belong to this user, {other}; got user {other - 1}"
    if how == "link":
        sockets.with_name("elsewhere").mkdir(mode=0o700)
        sockets.symlink_to("elsewhere")
        return "must be a folder of this user"
    if how == "file":
        sockets.touch()
        return "must be a folder of this user"
    sockets.parent.rmdir()
    return "set TMPDIR to one that does"


@pytest.mark.parametrize("how", ["open to others", "another user's", "link", "file", "no temporary folder"])
def test_a_folder_that_is_not_this_users_alone_is_refused_in_plain_words(
    node: FakeNode, sockets: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = spoil(how, sockets, monkeypatch)
    monkeypatch.delitem(sys.modules, "toy_app", raising=False)
    monkeypatch.setattr("solon_fl.resident.app.logger.propagate", True)
    assert node.ask()["process"] == os.getpid()
    monkeypatch.delitem(sys.modules, "toy_app")
    assert words in caplog.text
    assert "The message is computed without one." in caplog.text


def test_who_does_not_know_the_key_gets_no_message(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "toy_app", raising=False)
    monkeypatch.setattr("solon_fl.resident.app.logger.propagate", True)
    name = node.errand().name
    refused = []

    def pretend(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            try:
                channel.welcome(connection, b"another key")
            except AuthenticationError as error:
                refused.append(error)

    with socket.socket(socket.AF_UNIX) as listener:
        with folder.opened() as place:
            listener.bind(place.address(name))
            listener.listen()
            place.write_key(name, b"one key")
        impostor = threading.Thread(target=pretend, args=[listener])
        impostor.start()
        assert node.ask()["process"] == os.getpid()
        impostor.join()
    monkeypatch.delitem(sys.modules, "toy_app")
    assert refused
    assert "does not know its key. The message is computed without one." in caplog.text


def test_another_users_process_is_refused_at_both_ends(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errand = node.errand()
    with folder.opened() as place:
        place.write_key(errand.name, b"key")
    user = os.geteuid()
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs, socket.socket(socket.AF_UNIX) as listener:
        worker = Worker(errand, listener)
        channel.check_peer(ours)
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        with pytest.raises(
            ResidentError, match=f"must belong to user {user + 1}; got process {os.getpid()} of user {user}"
        ):
            channel.check_peer(ours)
        worker._answer(ours)
        ours.close()
        assert theirs.recv(1) == b""  # the worker sends nothing, not even a challenge
    assert f"of user {user}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_thin_app_checks_who_listens(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "toy_app", raising=False)
    monkeypatch.setattr("solon_fl.resident.app.logger.propagate", True)
    node.ask()

    def check_peer(connection: socket.socket) -> None:
        raise ResidentError("not ours.")

    monkeypatch.setattr(channel, "check_peer", check_peer)
    assert node.ask()["process"] == os.getpid()
    monkeypatch.delitem(sys.modules, "toy_app")
    assert "This node has no resident worker: not ours. The message is computed without one." in caplog.text


# Ends of workers


@pytest.mark.slow
def test_a_worker_that_dies_with_a_message_is_replaced_once(node: FakeNode) -> None:
    first = node.ask()
    answer = node.ask("train.die", folder=str(node.folder), times=1)
    assert answer["calls"] == 1
    assert answer["process"] != first["process"]
    assert node.ask()["process"] == answer["process"]
    with pytest.raises(
        NodeFailedError, match=r"got 2 processes that ended while they computed this message \(signal 9\)"
    ):
        node.ask("train.die", folder=str(node.folder), times=99)
    with pytest.raises(NodeFailedError, match=r"this message \(exit code 3\); see the SuperNode's log"):
        node.ask("train.leave")
    assert node.ask()["calls"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_socket_of_a_worker_that_died_between_messages_is_replaced(
    node: FakeNode, sockets: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    first = int(node.ask()["process"])
    os.kill(first, number)
    wait_until(lambda: not start_time(first), "the end of the worker")
    assert sockets.exists() == (number == signal.SIGKILL)
    assert node.ask()["process"] != first
    assert len(list(sockets.iterdir())) == 2  # a socket and a key
    assert number == signal.SIGKILL or not caplog.text  # a killed worker's socket may exist a moment longer


@pytest.mark.slow
def test_a_worker_ends_with_its_supernode_whatever_it_does_and_leaves_nothing(
    make_node: Callable[..., FakeNode], sockets: Path
) -> None:
    node = make_node()
    node.ask()
    node.context = node.new_context(run_id=2)
    with ThreadPoolExecutor() as pool:
        interrupted = pool.submit(node.ask, sleep=60.0)
        wait_until(lambda: len(processes_of(node.folder)) == 2, "the second worker")
        time.sleep(1.5)  # let the worker become idle
        killed = time.monotonic()
        node.kill()
        wait_until(lambda: not processes_of(node.folder), "the end of both workers", seconds=5)
        assert time.monotonic() - killed < 2.5
        # In a deployment, the waiting process would end, too.
        with pytest.raises(NodeFailedError, match="the SuperNode ended while"):
            interrupted.result()
    wait_until(lambda: not sockets.exists(), "the end of their folder", seconds=5)


@pytest.mark.slow
def test_who_comes_next_deletes_what_was_left_when_everything_was_killed(
    make_node: Callable[..., FakeNode], sockets: Path
) -> None:
    node = make_node()
    dead = int(node.ask()["process"])
    os.kill(dead, signal.SIGKILL)
    node.kill()
    left = {path.name for path in sockets.iterdir()}
    assert len(left) == 2
    make_node().ask()
    found = {path.name for path in sockets.iterdir()}
    assert len(found) == 2
    assert not found & left


@pytest.mark.slow
def test_an_idle_worker_ends_but_not_in_the_middle_of_a_long_message(node: FakeNode, sockets: Path) -> None:
    first = node.ask(idle_seconds=0.5, sleep=2.0)
    assert first["calls"] == 1
    wait_until(lambda: not processes_of(node.folder), "the end of the idle worker", seconds=10)
    assert not sockets.exists()
    assert node.ask(idle_seconds=0.5)["process"] != first["process"]


# Arguments


def test_functions_belong_to_the_real_app() -> None:
    app = resident("my_package.client_app:app")
    for register in (app.train, app.evaluate, app.query, app.lifespan):
        with pytest.raises(ConfigurationError, match="one for the resident app of 'my_package"):
            register()


@pytest.mark.parametrize("reference", ["", "my_package.client_app", "my package:app", ":app", "a:", "a:b c"])
def test_a_reference_of_another_form_is_refused(reference: str) -> None:
    with pytest.raises(ConfigurationError, match=f'must be "module:attribute"; got reference={reference!r}'):
        resident(reference)


def test_an_impossible_time_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="got idle_seconds=0"):
        resident("a:b", idle_seconds=0)
    with pytest.raises(ConfigurationError, match="got idle_seconds='1'"):
        resident("a:b", idle_seconds="1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("/venv/bin/flwr-clientapp --runtime-api-address a:1 --token t --insecure --parent-pid 12", 12),
        ("flwr-clientapp --parent-pid=12 --token t", 12),
        ("flwr-clientapp --token t", None),
        ("flwr-clientapp --token t --parent-pid", None),
        ("flwr-simulation --parent-pid 12", None),
        ("", None),
    ],
)
def test_flowers_command_line_is_understood(command: str, found: int | None) -> None:
    assert flower.superexec(command.split(" ")) == found
