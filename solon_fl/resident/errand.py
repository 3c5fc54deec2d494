"""The description of a worker's job."""

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Self

from flwr.app import Context

from solon_fl.resident.errors import ResidentError
from solon_fl.resident.processes import start_time

__all__ = ["Errand"]


@dataclass(frozen=True)
class Errand:
    """The node, run and app that a worker serves.

    Attributes
    ----------
    reference : str
        "module:attribute" of the app.
    idle_seconds : float
        How long the worker waits for a message.
    superexec, started : int, str
        The process with which the worker ends, and that process's start time.
    run_id, node_id : int
        Flower's ids.
    sys_path : list of str
        The module search path. It includes the app's own folder, whose name has a digest of all its files.
    """

    reference: str
    idle_seconds: float
    superexec: int
    started: str
    run_id: int
    node_id: int
    sys_path: list[str]

    @classmethod
    def of(cls, reference: str, idle_seconds: float, superexec: int, context: Context) -> Self:
        """Return the errand for the current process, which Flower has started for a message."""
        started = start_time(superexec)
        if not started:
            raise ResidentError(f"flower-superexec, process {superexec}, has ended.")
        sys_path = [os.path.abspath(entry) for entry in sys.path]
        return cls(reference, idle_seconds, superexec, started, context.run_id, context.node_id, sys_path)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the errand that `to_json` has written."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Return the errand as JSON."""
        return json.dumps(asdict(self))

    @property
    def name(self) -> str:
        """The name of the worker's socket, unique to the errand and the Python executable."""
        digest = hashlib.sha256(f"{sys.executable}\n{self.to_json()}".encode()).hexdigest()
        return f"{self.superexec}-{self.started}-{digest[:32]}"
