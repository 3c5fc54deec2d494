"""Simulations on one machine: data, models, attacks, runs of every strategy, comparisons and plans."""

from solon_fl.simulations.attacks import ATTACKS
from solon_fl.simulations.datasets import DATASETS, MODELS, Dataset, build_model, load_dataset
from solon_fl.simulations.run import (
    STRATEGIES,
    InProcessGrid,
    NodeKind,
    Outcome,
    RoundRecord,
    Scenario,
    Stopped,
    calibrate_scenario,
    simulate,
)

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
    "Stopped",
    "simulate",
]
