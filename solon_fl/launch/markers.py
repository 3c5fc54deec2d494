"""What has become of each fault, in files: nodes' processes, those who stop them and the server tell each other so."""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

__all__ = ["ASKED", "BEGUN", "DONE", "DUE", "OVER", "TRIED", "Markers"]

DUE = "due"  # its time has come (of a lie that begins by the clock)
ASKED = "asked"  # the node has a task in which it is to lie
BEGUN = "begun"  # it happens: a node has lied, or has the task with which it is to be stopped or killed
DONE = "done"  # the node has been stopped or killed
OVER = "over"  # it is well again
TRIED = "tried"  # it lied, and that changed nothing, or the attack is not possible here


class Markers:
    """Events of faults, each of which happens once.

    Parameters
    ----------
    folder : Path
        Where they are kept; made if it is not there. All who look at them must see this folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def set(self, fault: int, event: str, **facts: Any) -> bool:
        """Note an event of the fault with this number; return False if it has been noted before."""
        place = self._folder / f"{fault}.{event}"
        written = place.with_name(f"{place.name}-{uuid4().hex}")
        written.write_text(json.dumps(facts))
        try:
            os.link(written, place)  # whole or not at all, and once
        except FileExistsError:
            return False
        finally:
            written.unlink()
        return True

    def get(self, fault: int, event: str) -> dict[str, Any] | None:
        """Return the facts of an event; None if it has not been noted."""
        try:
            facts: dict[str, Any] = json.loads((self._folder / f"{fault}.{event}").read_text())
        except FileNotFoundError:
            return None
        return facts
