"""Resident workers on a real deployment: one for each node, instead of one process per message."""

import os
import re
import signal
import tempfile
from pathlib import Path

import pytest

from deployment.federation import Federation
from deployment.loopback import find_app, read_settings
from tests.deployment.support import EXAMPLES, send, wait_until

pytestmark = pytest.mark.slow

SMALLEST = ["num-nodes=1", "byzantine=0", "compression=1", "resident=true"]


def test_a_worker_stays_is_replaced_when_killed_and_ends_with_its_supernode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[str] = []
    with Federation(forking=True) as federation:
        federation.start_nodes({"node-1": {}})

        def workers() -> list[int]:
            return federation.processes("node-1", "resident.worker")

        settings = read_settings(find_app("fashion-mnist"), 5, SMALLEST)
        served: list[int] = []  # process ids by round
        for line in federation.start_run(EXAMPLES / "fashion-mnist", settings).checked_lines():
            seen.append(line)
            if re.match(r"round [1-5]: accuracy", line):
                served += workers()
            if line.startswith("round 2: accuracy"):
                send(workers(), signal.SIGKILL)
        output = "\n".join(seen)
        assert len(served) == 5, output
        assert len(set(served[:2])) == len(set(served[2:])) == 1, output
        assert served[1] != served[2]
        accuracies = [float(percent) for percent in re.findall(r"accuracy ([\d.]+)%", output)]
        assert accuracies[-1] > accuracies[0] + 20, output
        folder = federation.folder / "tmp" / f"solon-resident-{os.geteuid()}"
        assert len(list(folder.iterdir())) == 2  # a socket and a key
        send(federation.processes("node-1", "flower-supernod"), signal.SIGKILL)
        wait_until(lambda: federation.exit_code("node-1") is not None, "the end of the SuperNode")
        wait_until(lambda: not workers(), "the end of the worker", seconds=10)
        left = federation.folder / "tmp"
        wait_until(lambda: not list(left.glob("solon-*")), "the end of all files", seconds=10)
        wait_until(lambda: not federation.processes("node-1"), "the end of all processes", seconds=10)
