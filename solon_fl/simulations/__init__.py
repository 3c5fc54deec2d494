"""Built-in simulation: data, models, attacks, an in-process engine, and the command line `solon-fl`."""

from solon_fl.simulations.datasets import DATASETS, Dataset, load_dataset
from solon_fl.simulations.datasets.models import MODELS, build_model
from solon_fl.simulations.run.engine import Outcome, simulate
from solon_fl.simulations.run.float_noise import NodeKind, calibrate_scenario
from solon_fl.simulations.run.grid import InProcessGrid
from solon_fl.simulations.run.outcome import RoundRecord
from solon_fl.simulations.run.scenario import ATTACKS, STRATEGIES, Scenario

__all__ = [
    "ATTACKS",
    "DATASETS",
    "MODELS",
    "STRATEGIES",
    "Dataset",
    "InProcessGrid",
    "NodeKind",
    "Outcome",
    "RoundRecord",
    "Scenario",
    "build_model",
    "calibrate_scenario",
    "load_dataset",
    "simulate",
]
