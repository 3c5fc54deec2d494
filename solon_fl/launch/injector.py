"""Injects faults into nodes during a run, and reports afterwards which ones occurred."""

import os
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from solon_fl.launch.faults import Fault
from solon_fl.launch.faulty import CLIENTAPP, FAULTS, describe
from solon_fl.launch.markers import ASKED, BEGUN, DONE, DUE, OVER, TRIED, Markers

__all__ = ["Injector", "Nodes", "report"]

PAUSE = 0.1  # seconds between two checks
AGAIN_SECONDS = 2.0  # between two attempts to start a node


class Nodes(Protocol):
    """The nodes into which faults are injected."""

    def stop(self, name: str) -> None:
        """Suspend all processes of a node."""

    def go_on(self, name: str) -> None:
        """Resume the processes of a suspended node."""

    def kill(self, name: str) -> None:
        """Kill a node and all processes that it has started."""

    def restart(self, name: str) -> None:
        """Start a node that was killed."""

    def exit_code(self, name: str) -> int | None:
        """Return a node's exit code, or None while it runs."""


class Injector:
    """Injects faults into nodes.

    Parameters
    ----------
    faults : sequence of Fault
        All faults of the run.
    folder : Path
        A folder for its files. If nodes run on several machines, all machines must see it.
    nodes : Nodes
        The nodes that this process manages; faults of other nodes are ignored.
    names : collection of str, optional
        Names of these nodes. Default: those of all faults.
    """

    def __init__(self, faults: Sequence[Fault], folder: Path, nodes: Nodes, names: Sequence[str] | None = None) -> None:
        self._folder = folder
        self._markers = Markers(folder)
        self._nodes = nodes
        self._faults = [(number, fault) for number, fault in enumerate(faults) if names is None or fault.node in names]
        self._start: float | None = None  # time of the run's start
        self._happened: dict[int, float] = {}  # times at which faults occurred, by number
        self._started = 0.0  # time at which a node was last restarted
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="faults", daemon=True)

    def variables(self, name: str) -> dict[str, str]:
        """Return the additional environment variables of a node's SuperNode; none if the node has no faults."""
        own = [(number, fault) for number, fault in self._faults if fault.node == name]
        if not own:
            return {}
        programs = self._folder / "programs"
        programs.mkdir(exist_ok=True)
        script = programs / CLIENTAPP  # found before Flower's
        script.write_text(
            f'#!/bin/sh\nexec {shlex.join([sys.executable, "-P", "-m", "solon_fl.launch.faulty"])} "$@"\n'
        )
        script.chmod(0o700)
        places = [str(programs), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        return {FAULTS: describe(self._folder, own), "PATH": os.pathsep.join(places)}

    def begin(self) -> None:
        """Record the run's start, and inject faults from now on."""
        self._start = time.monotonic()
        self._thread.start()

    def end(self) -> None:
        """Stop injecting faults."""
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look_after(self) -> None:
        while not self._ends.wait(PAUSE):
            for number, fault in self._faults:
                self._look_at(number, fault)

    def _look_at(self, number: int, fault: Fault) -> None:
        assert self._start is not None
        now = time.monotonic()
        if number not in self._happened:
            is_due = fault.after is not None and now - self._start >= fault.after
            if fault.kind == "lie":
                if is_due:
                    self._markers.set(number, DUE)
                if self._markers.get(number, BEGUN) is not None:
                    self._happened[number] = now
            elif is_due or self._markers.get(number, BEGUN) is not None:
                (self._nodes.stop if fault.kind == "stall" else self._nodes.kill)(fault.node)
                self._markers.set(number, BEGUN)
                self._markers.set(number, DONE)
                self._happened[number] = now
        elif fault.lasts is not None and now - self._happened[number] >= fault.lasts:
            self._end(number, fault, now)

    def _end(self, number: int, fault: Fault, now: float) -> None:
        is_first = self._markers.set(number, OVER)
        if fault.kind == "stall" and is_first:
            self._nodes.go_on(fault.node)
        # A SuperLink refuses a node that it still considers online, for half a minute to a minute after its death.
        is_away = is_first or self._nodes.exit_code(fault.node) is not None
        if fault.kind == "die" and is_away and now - self._started >= AGAIN_SECONDS:
            self._started = now
            self._nodes.restart(fault.node)


def report(faults: Sequence[Fault], folder: Path) -> tuple[list[str], list[str]]:
    """Return a sentence about each fault that occurred, and one about each that did not.

    Parameters
    ----------
    faults : sequence of Fault
        All faults of the run.
    folder : Path
        The folder of the run's `Injector` or injectors.
    """
    markers = Markers(folder)
    happened, missing = [], []
    for number, fault in enumerate(faults):
        begun = markers.get(number, BEGUN if fault.kind == "lie" else DONE)
        if begun is None:
            missing.append(f"{fault}: it did not occur, because {_why_not(number, fault, markers)}.")
            continue
        facts = markers.get(number, BEGUN) or {}
        verb = {"lie": f"lied ({fault.attack})", "stall": "was stopped", "die": "was killed"}[fault.kind]
        when = f"in round {facts['round']}" if "round" in facts else f"{fault.after:g} s after the start"
        if fault.kind == "lie" and "round" in facts:
            when = f"from round {facts['round']} on"
        back = {"lie": "was honest again", "stall": "resumed", "die": "was restarted"}[fault.kind]
        end = f", and {back} {fault.lasts:g} s later" if markers.get(number, OVER) is not None else ""
        happened.append(f"{fault.node} {verb} {when}{end}")
    return happened, missing


def _why_not(number: int, fault: Fault, markers: Markers) -> str:
    if (tried := markers.get(number, TRIED)) is not None:
        return str(tried["why"]).rstrip(".")
    if markers.get(number, ASKED) is not None:
        return "the run ended before the node had answered"
    if fault.round is not None:
        return f"the node had no task of round {fault.round} or a later one"
    if markers.get(number, DUE) is not None:
        return "the node had no task from then on"
    return "the run had ended before"
