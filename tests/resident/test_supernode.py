"""A SuperNode whose processes for messages are forked, with a program in the SuperNode's place that does as told."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from solon_fl.resident.processes import start_time
from tests.deployment.support import wait_until

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="processes are forked on Linux only"),
]

# In the place of flower-supernode: shows its options and process, and starts a process for each line that it reads.
SUPERNODE = """
import os, subprocess, sys
print(os.getpid(), *sys.argv[1:], flush=True)
for line in sys.stdin:
    done = subprocess.run(["flwr-clientapp", *line.split()], env={**os.environ, "COLUMNS": "200"})
    print("started", done.returncode, flush=True)
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
    """Return what the process prints until a line has these words."""
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
    supernode = start()
    assert says(supernode, "--port") == f"{supernode.pid} --port 1 two words\n"
    for _ in range(2):
        ask(supernode, "--help")
        says(supernode, "Run a Flower ClientApp")  # where the SuperNode says it
    forker = forker_of(supernode.pid)
    time.sleep(1)
    assert Path(f"/proc/{forker}/task/{forker}/children").read_text() == ""  # it has noted their ends
    assert len(os.listdir(f"/proc/{forker}/fd")) < 10
    (folder,) = temporary.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    supernode.kill()
    wait_until(lambda: not start_time(forker), "the end of the process that forks", seconds=5)
    assert list(temporary.iterdir()) == []


def test_without_the_process_that_forks_flowers_own_program_is_started(
    start: Callable[[], subprocess.Popen[str]], temporary: Path
) -> None:
    supernode = start()
    says(supernode, "--port")
    ask(supernode, "--help")
    says(supernode, "Run a Flower ClientApp")
    os.kill(forker_of(supernode.pid), signal.SIGKILL)
    ask(supernode, "one two")
    assert "Flower's own program: one two" in says(supernode, "own program")
    supernode.kill()
    supernode.wait()
    (left,) = temporary.iterdir()
    says(start(), "--port")
    assert [path.name for path in temporary.iterdir()] != [left.name]  # who comes next deletes it
    assert not left.exists()


def test_without_flower_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from solon_fl.resident import supernode as s; s._path = lambda: '/'; s.main()"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("flower-supernode must be on the PATH, or beside ")
