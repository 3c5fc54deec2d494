"""The task that the server gives one node in one round of Draco."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from flwr.app import ConfigRecord, Message

from solon_fl.baselines.draco.code import DracoCode
from solon_fl.baselines.draco.cyclic import CyclicCode
from solon_fl.baselines.draco.repetition import RepetitionCode
from solon_fl.checks import check_one_of
from solon_fl.task import task_record, task_values

__all__ = ["DRACO_TASK", "DracoCodeName", "DracoTask", "make_draco_code"]

DRACO_TASK = "draco"  # server -> node: a DracoTask
DracoCodeName = Literal["repetition", "cyclic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DracoTask:
    """A node's work in one round of Draco.

    Attributes
    ----------
    round, number : int
        Server round, from 1, and the node's number, from 0.
    seed : int
        Seed of the run.
    buffers : tuple of str
        Entries of the model that no gradient moves. The changes of those that are not frozen are encoded.
    code, num_nodes, byzantine
        See `DracoStrategy`.
    """

    round: int
    number: int
    seed: int
    code: DracoCodeName
    num_nodes: int
    byzantine: int
    buffers: tuple[str, ...] = ()

    def make_code(self) -> DracoCode:
        """Return the code."""
        return make_draco_code(self.code, self.num_nodes, self.byzantine)

    def to_record(self) -> ConfigRecord:
        """Return the task as a Flower record, a new one for every node."""
        return task_record({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_message(cls, message: Message) -> "DracoTask":
        """Return the task from a message of the server.

        Raises
        ------
        ConfigurationError
            If the message has no task, or one that this version does not understand.
        """
        texts = {"code": get_args(DracoCodeName)}
        return cls(**task_values(message, DRACO_TASK, "DracoStrategy", cls.__slots__, texts))


@lru_cache(maxsize=8)
def make_draco_code(name: DracoCodeName, num_nodes: int, byzantine: int) -> DracoCode:
    """Return the code with this name and these parameters; a process makes each code once."""
    check_one_of("code", name, get_args(DracoCodeName))
    return (RepetitionCode if name == "repetition" else CyclicCode)(num_nodes, byzantine)
