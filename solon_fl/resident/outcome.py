"""The outcome of a message, a reply or an exception, in a form that travels from the worker to Flower's process."""

import sys
import traceback
from dataclasses import dataclass
from typing import Any, Self

from flwr.app import Context, Message

__all__ = ["Failure", "Outcome"]


@dataclass(frozen=True)
class Failure:
    """An exception that can travel to a process which lacks its class.

    Attributes
    ----------
    lineage : list of (str, str)
        Module and name of the exception's class and of its base classes.
    text, trace : str
        The exception's text, and its traceback as Python prints it.
    """

    lineage: list[tuple[str, str]]
    text: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Describe an exception."""
        lineage = [(ancestor.__module__, ancestor.__qualname__) for ancestor in type(error).__mro__]
        return cls(lineage, str(error), "".join(traceback.format_exception(error)))

    def rebuilt(self) -> Exception:
        """Return an exception with the same class name and text, and with the traceback as its cause.

        It is an instance of the nearest class of the lineage that this process has imported.
        """
        known = next(found for name in self.lineage if (found := _known(*name)) is not None)
        (module, name), text = self.lineage[0], self.text
        own = {"__module__": module, "__qualname__": name, "__init__": _nothing, "__str__": lambda error: text}
        error: Exception = type(name.rpartition(".")[2], (known,), own)()
        error.__cause__ = _InWorker(self.trace)
        return error


@dataclass(frozen=True)
class Outcome:
    """A reply or an exception, and the context as the app left it."""

    reply: Message | None
    failure: Failure | None
    context: Context


class _InWorker(Exception):
    """Shows a traceback of another process, as `concurrent.futures` does."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _known(module: str, name: str) -> type[Exception] | None:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not issubclass(found, Exception) or issubclass(found, ExceptionGroup):
        return None  # a group can't be made without its members
    return found


def _nothing(error: Exception) -> None:
    """Replace the class's `__init__`, which may require arguments."""
