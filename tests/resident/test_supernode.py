"""A SuperNode that forks its processes for messages, with a stand-in for Flower's program."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from solon_fl.resident import supernode
from solon_fl.resident.processes import start_time
from tests.deployment.support import wait_until

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="processes are forked on Linux only"),
]

# Replaces flower-supernode: prints its options and process id, and starts a process for each line that it reads.
SUPERNODE = """
import os, subprocess, sys
print(os.getpid(), *sys.argv[1:], flush=True)
for line in sys.stdin:
    done = subprocess.run(["flwr-clientapp", *line.split()], stdout=subprocess.PIPE, text=True)
    print("it said:", done.stdout, flush=True)
"""


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / ("a folder whose path is longer than the address of a socket may be" * 2)
    folder.mkdir()
    return folder


@pytest.fixture
def start(tmp_path: Path, temporary: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    programs = tmp_path / "programs"
    programs.mkdir()
    (tmp_path / "supernode.py").write_text(SUPERNODE)
    for name, command in (
        ("flower-supernode", f'exec "{sys.executable}" "{tmp_path / "supernode.py"}" "$@"'),
        ("flwr-clientapp", 'echo "Flower\'s own program: $@"'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{command}\n")
        (programs / name).chmod(0o700)
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "solon_fl.resident.supernode", "--port", "1", "two words"],
                cwd=ROOT,
                env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(temporary)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen[str], words: str) -> str:
    """Return the process's output up to the first line with these words."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    pytest.fail(f"never said {words!r}: {lines}")


def ask(process: subprocess.Popen[str], options: str) -> None:
    assert process.stdin is not None
    print(options, file=process.stdin, flush=True)


def forker_of(supernode: int) -> int:
    (found,) = Path(f"/proc/{supernode}/task/{supernode}/children").read_text().split()
    return int(found)


def test_processes_for_messages_are_forked_and_nothing_is_left(
    start: Callable[[], subprocess.Popen[str]], temporary: Path
) -> None:
    process = start()
    assert says(process, "--port") == f"{process.pid} --port 1 two words\n"
    forker = forker_of(process.pid)
    descriptors = []
    for _ in range(2):
        ask(process, "--help")
        says(process, "it said: usage: flwr-clientapp")
        says(process, "Run a Flower ClientApp")
        time.sleep(1.5)
        assert Path(f"/proc/{forker}/task/{forker}/children").read_text() == ""  # the ended process was reaped
        descriptors.append(len(os.listdir(f"/proc/{forker}/fd")))
    assert descriptors[0] == descriptors[1]
    (folder,) = temporary.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    process.kill()
    wait_until(lambda: not start_time(forker), "the end of the process that forks", seconds=5)
    assert list(temporary.iterdir()) == []


def test_without_the_process_that_forks_flowers_own_program_is_started(
    start: Callable[[], subprocess.Popen[str]], temporary: Path
) -> None:
    process = start()
    says(process, "--port")
    ask(process, "--help")
    says(process, "Run a Flower ClientApp")
    os.kill(forker_of(process.pid), signal.SIGKILL)
    ask(process, "one two")
    says(process, "it said: Flower's own program: one two")
    process.kill()
    process.wait()
    (left,) = temporary.iterdir()
    says(start(), "--port")
    assert [path.name for path in temporary.iterdir()] != [left.name]  # the next SuperNode deletes it
    assert not left.exists()


def test_another_users_process_gets_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    user = os.geteuid()
    for geteuid, answer in ((lambda: user, [b"+"]), (lambda: user + 1, [])):
        answered = []
        monkeypatch.setattr(os, "geteuid", geteuid)
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        with ours, theirs:
            socket.send_fds(theirs, [b'[["a"], {}, "/"]'], [1, 2])
            theirs.shutdown(socket.SHUT_WR)
            request = supernode._take(ours)
            ours.close()
            with suppress(ConnectionResetError):
                answered.append(theirs.recv(1))
        assert answered == answer
        assert (request is None) == (not answer)
        if request is not None:
            assert (request.arguments, request.variables, request.folder) == (["a"], {}, "/")
            supernode._close(request.output)
    assert f"of user {user}" in capsys.readouterr().err


def test_without_flower_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from solon_fl.resident import supernode as s; s._path = lambda: '/'; s.main()"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("flower-supernode must be on the PATH or beside ")
