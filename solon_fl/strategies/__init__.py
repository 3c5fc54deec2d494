"""The server side: Flower strategies."""

from solon_fl.strategies.aggregator import AggregatorStrategy
from solon_fl.strategies.calibration import Calibration, calibrate
from solon_fl.strategies.checkpoint import Checkpoints
from solon_fl.strategies.draco import DracoStrategy
from solon_fl.strategies.gradient import GradientStrategy
from solon_fl.strategies.group import GroupReport
from solon_fl.strategies.model import buffer_names
from solon_fl.strategies.nodes import NodeRecord
from solon_fl.strategies.report import RoundReport
from solon_fl.strategies.signum import SignumStrategy
from solon_fl.strategies.solon import SolonStrategy
from solon_fl.strategies.tensorboard import TensorBoardWriter

__all__ = [
    "AggregatorStrategy",
    "Calibration",
    "Checkpoints",
    "DracoStrategy",
    "GradientStrategy",
    "GroupReport",
    "NodeRecord",
    "RoundReport",
    "SignumStrategy",
    "SolonStrategy",
    "TensorBoardWriter",
    "buffer_names",
    "calibrate",
]
