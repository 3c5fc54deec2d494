"""Draco, a baseline: its codes, the task of a node, the node and the strategy."""

from .code import DracoCode, DracoDecoded
from .cyclic import CyclicCode
from .node import draco_client_app
from .repetition import RepetitionCode
from .strategy import DracoStrategy
from .task import DracoTask, make_draco_code

__all__ = [
    "CyclicCode",
    "DracoCode",
    "DracoDecoded",
    "DracoStrategy",
    "DracoTask",
    "RepetitionCode",
    "draco_client_app",
    "make_draco_code",
]
