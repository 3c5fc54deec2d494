import gc
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Bulyan, FedAvg, MultiKrum

from solon_fl.baselines.garbage import quick_collections
from solon_fl.config import SolonConfig
from solon_fl.simulations import Scenario, simulate
from solon_fl.simulations.plan.server_time import MeasuredServer


def test_what_exists_already_is_passed_over_for_a_while() -> None:
    assert gc.get_freeze_count() == 0
    with quick_collections():
        assert gc.get_freeze_count() > 10_000
        assert len(gc.get_objects()) < 10_000
    assert gc.get_freeze_count() == 0


def test_what_others_have_frozen_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with quick_collections():
            assert gc.get_freeze_count() <= frozen
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


@pytest.mark.slow
def test_aggregators_are_timed_without_visiting_the_objects_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    visible: list[int] = []

    def noting(strategy: type[FedAvg]) -> None:
        aggregate: Callable[..., tuple[ArrayRecord | None, Any]] = strategy.aggregate_train

        def noted(*arguments: Any) -> tuple[ArrayRecord | None, Any]:
            visible.append(len(gc.get_objects()))
            return aggregate(*arguments)

        monkeypatch.setattr(strategy, "aggregate_train", noted)

    noting(Bulyan)
    noting(MultiKrum)
    config = SolonConfig(num_nodes=7, byzantine=1, compression=1, group_size=7)
    simulate(Scenario(config=config, strategy="flower-bulyan", model="logistic", rounds=2))
    assert len(visible) == 2
    MeasuredServer(byzantine=1)("multikrum", 7, 7, 1, 1000)
    assert len(visible) == 2 + 2 * 4
    assert max(visible) < 50_000
    assert gc.get_freeze_count() == 0
