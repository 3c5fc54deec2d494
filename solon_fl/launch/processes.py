"""Finds and ends processes, and finds free ports."""

import os
import random
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["TAG", "cpu_seconds_for_messages", "free_ports", "kill_all", "listens", "processes_with", "send_all"]

TAG = "SOLON_FEDERATION"  # environment variable of every process of a federation, including those that they start


def processes_with(tag: str, program: str = "") -> list[int]:
    """Return the ids of the living processes whose `TAG` starts with `tag` and which run this program.

    Parameters
    ----------
    tag : str
        ``"<the federation's tag>/<the node's name>/"``, or a prefix of it.
    program : str
        Part of the command line, or of the name that the process has given itself. Default: any program.
    """
    wanted = f"{TAG}={tag}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes()
            names = (entry / "cmdline").read_text(errors="replace") + (entry / "comm").read_text(errors="replace")
        except OSError:  # the process has ended, or belongs to another user
            continue
        if program in names and any(variable.startswith(wanted) for variable in variables.split(b"\0")):
            found.append(int(entry.name))
    return found


def cpu_seconds_for_messages(tag: str) -> float:
    """Return the CPU time of all processes that nodes have started to compute messages, in seconds.

    These are the children of the SuperExecs, living or not. With `solon_fl.resident`, they also are the processes that
    fork, the processes that those have forked, and the workers. The result is 0 if this user may not see them: a
    SuperExec hides its environment from everybody except root.
    """
    executors = set(processes_with(tag, "flower-superexe"))
    residents = set(processes_with(tag, "solon_fl.resident"))
    ticks = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        own, of_children = sum(map(int, fields[11:13])), sum(map(int, fields[13:15]))
        if int(entry.name) in residents or int(fields[1]) in executors:
            ticks += own + of_children
        elif int(entry.name) in executors:
            ticks += of_children
    return ticks / os.sysconf("SC_CLK_TCK")


def kill_all(tag: str) -> None:
    """Kill all processes with the tag except this one, including those that are started meanwhile."""
    while found := set(processes_with(tag)) - {os.getpid()}:
        for process_id in found:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        time.sleep(0.02)


def send_all(tag: str, number: signal.Signals) -> None:
    """Send a signal to all processes with the tag except this one."""
    for process_id in set(processes_with(tag)) - {os.getpid()}:
        with suppress(ProcessLookupError):
            os.kill(process_id, number)


def free_ports(count: int) -> list[int]:
    """Return free ports of this machine.

    They are below the range from which the kernel takes ports for outgoing connections, so that no such connection can
    take a port before it is used.
    """
    found: list[int] = []
    candidates = iter(random.SystemRandom().sample(range(12_000, 32_000), 500))
    while len(found) < count:
        port = next(candidates)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            found.append(port)
    return found


def listens(host: str, port: int) -> bool:
    """Return whether a process accepts connections at this address."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
