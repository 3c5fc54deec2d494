"""Access to private or undocumented parts of the process that Flower starts for a message."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Identity", "installs_dependencies", "superexec"]

PROGRAM = "flwr-clientapp"
PARENT = "--parent-pid"
INSTALLS = "--allow-runtime-dependency-installation"


def superexec(arguments: list[str] | None = None) -> int | None:
    """Return the process id of the SuperExec that started this process for a message; None in any other process.

    The SuperExec, ``flower-superexec``, starts a process for each message. It ends 0.2 s after the SuperNode.

    Parameters
    ----------
    arguments : list of str, optional
        A command line. Default: that of this process.
    """
    program, *options = sys.argv if arguments is None else arguments
    if Path(program).name != PROGRAM:
        return None
    for option, value in zip(options, [*options[1:], ""], strict=True):
        name, equals, after = option.partition("=")
        number = after if equals else value
        if name == PARENT and number.isdigit():
            return int(number)
    return None


def installs_dependencies() -> bool:
    """Return whether Flower has installed the app's dependencies for this process only, to delete them afterwards."""
    return INSTALLS in sys.argv


@dataclass(frozen=True)
class Identity:
    """The task that a process computes, which Flower reads whenever a message is made."""

    run_id: int
    node_id: int
    task_id: int

    @classmethod
    def of_this_process(cls) -> Self:
        """Return the identity that Flower has set in this process."""
        return cls(TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id)

    def assume(self) -> None:
        """Set this identity in the current process."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.run_id, self.node_id, self.task_id
