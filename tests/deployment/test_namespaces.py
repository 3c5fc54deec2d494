"""Nodes with their own links, whose processes are forked."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from deployment.loopback import make_federation
from deployment.namespaces import NamespacedFederation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None,
        reason="network namespaces need root, ip and tc",
    ),
]
ROOT = Path(__file__).parents[2]
ENTER = (
    "import os, sys; from deployment.hurry import _enter; _enter(sys.argv[1]); print(os.readlink('/proc/self/ns/net'))"
)


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"solon-test-{uuid4().hex[:6]}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make network namespaces")
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def enter(name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", ENTER, name], cwd=ROOT, capture_output=True, text=True)


def test_a_process_enters_a_namespace(namespace: str) -> None:
    there = ["ip", "netns", "exec", namespace, "readlink", "/proc/self/ns/net"]
    expected = subprocess.run(there, capture_output=True, text=True, check=True).stdout.strip()
    assert expected != os.readlink("/proc/self/ns/net")
    assert enter(namespace).stdout.strip() == expected


def test_a_namespace_that_is_not_there_is_told() -> None:
    assert "No such file or directory: '/var/run/netns/solon-none'" in enter("solon-none").stderr


def test_all_processes_of_a_hurried_node_are_behind_its_link(namespace: str) -> None:
    with make_federation("50mbit", hurry=True, resident=False) as federation:
        assert isinstance(federation, NamespacedFederation)
        federation.start_nodes({"node-1": {}, "node-2": {}})
        places: list[str] = []
        for name in ("superlink", "node-1", "node-2"):
            here = {os.readlink(f"/proc/{process}/ns/net") for process in federation.processes(name)}
            assert len(here) == 1, (name, here)
            places += here
        assert places[0] == os.readlink("/proc/self/ns/net")
        assert len(set(places)) == 3
