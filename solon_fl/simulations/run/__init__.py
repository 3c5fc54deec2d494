"""Runs one scenario: its strategies, nodes and engines, and the outcome.

`tables` and `plots` are not imported here, as they need packages that nodes do not have.
"""

from solon_fl.simulations.run.engines import run_apps
from solon_fl.simulations.run.float_noise import Kernels, NodeKind, calibrate_scenario
from solon_fl.simulations.run.grid import InProcessGrid
from solon_fl.simulations.run.nodes import ImageClient, load_data, make_client_app, measure_batch_seconds
from solon_fl.simulations.run.outcome import Outcome
from solon_fl.simulations.run.own_strategies import strategy_named
from solon_fl.simulations.run.plain import jsonable, rebuilt
from solon_fl.simulations.run.round_record import NumberedGroup, NumberedReferee, NumberedReport, RoundRecord
from solon_fl.simulations.run.scenario import Engine, Scenario
from solon_fl.simulations.run.simulation import ScenarioServer, Stopped, simulate
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
    "NumberedReferee",
    "NumberedReport",
    "Outcome",
    "RoundRecord",
    "Scenario",
    "ScenarioServer",
    "calibrate_scenario",
    "jsonable",
    "load_data",
    "make_client_app",
    "measure_batch_seconds",
    "rebuilt",
    "run_apps",
    "Stopped",
    "simulate",
    "strategy_named",
]
