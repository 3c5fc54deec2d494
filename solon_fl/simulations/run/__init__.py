"""Running one scenario: its strategies, nodes and engines, and what comes of it.

Import `tables` and `plots` where you need them: they use packages that a node does without.
"""

from solon_fl.simulations.run.engines import run_apps
from solon_fl.simulations.run.float_noise import Kernels, NodeKind, calibrate_scenario
from solon_fl.simulations.run.grid import InProcessGrid
from solon_fl.simulations.run.nodes import ImageClient, make_client_app, measure_batch_seconds
from solon_fl.simulations.run.outcome import Outcome
from solon_fl.simulations.run.plain import jsonable
from solon_fl.simulations.run.round_record import NumberedGroup, NumberedReport, RoundRecord
from solon_fl.simulations.run.scenario import Engine, Scenario
from solon_fl.simulations.run.simulation import simulate
from solon_fl.simulations.run.strategies import STRATEGIES, NamedStrategy

__all__ = [
    "STRATEGIES",
    "Engine",
    "ImageClient",
    "InProcessGrid",
    "Kernels",
    "NamedStrategy",
    "NodeKind",
    "NumberedGroup",
    "NumberedReport",
    "Outcome",
    "RoundRecord",
    "Scenario",
    "calibrate_scenario",
    "jsonable",
    "make_client_app",
    "measure_batch_seconds",
    "run_apps",
    "simulate",
]
