"""Events of faults as files, through which the nodes' processes, the injectors and the server communicate."""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

__all__ = ["ASKED", "BEGUN", "DONE", "DUE", "OVER", "TRIED", "Markers"]

DUE = "due"  # the time of a lie that begins by the clock has come
ASKED = "asked"  # the node has a task in which it should lie
BEGUN = "begun"  # the node has lied, or has the task during which it should be stopped or killed
DONE = "done"  # the node has been stopped or killed
OVER = "over"  # the node has recovered
TRIED = "tried"  # the lie had no effect, or the attack is not possible here


class Markers:
    """A store for events of faults, each of which happens once.

    Parameters
    ----------
    folder : Path
        The folder of the store, made if it is missing. All processes that use the store must see it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def set(self, fault: int, event: str, **facts: Any) -> bool:
        """Record an event of the fault with this number; return False if it was already recorded."""
        place = self._folder / f"{fault}.{event}"
        written = place.with_name(f"{place.name}-{uuid4().hex}")
        written.write_text(json.dumps(facts))
        try:
            os.link(written, place)  # atomic, and fails if the event was recorded before
        except FileExistsError:
            return False
        finally:
            written.unlink()
        return True

    def get(self, fault: int, event: str) -> dict[str, Any] | None:
        """Return the facts of an event, or None if it was not recorded."""
        try:
            facts: dict[str, Any] = json.loads((self._folder / f"{fault}.{event}").read_text())
        except FileNotFoundError:
            return None
        return facts
