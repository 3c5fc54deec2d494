"""Small runs that several tests share."""

import dataclasses
from typing import Any

from solon_fl.config import SolonConfig
from solon_fl.simulations import Outcome, Scenario, simulate

CONFIG = SolonConfig(num_nodes=14, byzantine=2, compression=3)
EXACT = dataclasses.replace(CONFIG, code="exact")
REGROUPED = dataclasses.replace(CONFIG, regroup="round")


def scenario(**changes: Any) -> Scenario:
    values: dict[str, Any] = {"config": CONFIG, "model": "logistic", "rounds": 4, "batch_size": 8}
    return Scenario(**{**values, **changes})


def run(**changes: Any) -> Outcome:
    return simulate(scenario(**changes))


def curve(outcome: Outcome) -> list[float]:
    return [record.accuracy for record in outcome.records]
