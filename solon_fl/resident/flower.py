"""What is private or undocumented of the process that Flower starts for a message."""

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
    """Return the id of the process that starts a process for each message; None if this isn't such a process.

    It is `flower-superexec`, and lives as long as the SuperNode: it ends 0.2 s after that.

    Parameters
    ----------
    arguments : list of str, optional
        Default: this process's command line.
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
    """Return whether Flower has installed the app's dependencies for this process alone, and deletes them after it."""
    return INSTALLS in sys.argv


@dataclass(frozen=True)
class Identity:
    """Whose task a process computes: Flower wants to know when a new message is made."""

    run_id: int
    node_id: int
    task_id: int

    @classmethod
    def of_this_process(cls) -> Self:
        """Return what Flower has set."""
        return cls(TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id)

    def assume(self) -> None:
        """Set it in this process."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.run_id, self.node_id, self.task_id
