import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flwr.app import MetricRecord

from solon_fl.errors import ConfigurationError
from solon_fl.monitoring import MLflowWriter, RunStatus, TensorBoardWriter, WandbWriter
from solon_fl.strategies import RoundReport
from tests.monitoring.statuses import group, report


def status(number: int) -> RunStatus:
    made: RoundReport = report(number, [group(0, corrupt=(2, 5))])
    return RunStatus(
        report=made,
        num_rounds=3,
        ended=number == 3,
        training={number: made.to_metrics()},
        evaluation={number: MetricRecord({"accuracy": 0.25 * number})},
        node_evaluation={number: MetricRecord({"loss": 1.5})},
    )


def test_figures_can_be_read_by_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorBoardWriter(tmp_path)
    for number in (1, 2, 3):
        writer(status(number))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("solon/corrupt-nodes")] == [(1, 2), (2, 2), (3, 2)]
    assert [event.value for event in events.Scalars("evaluation/accuracy")] == [0.25, 0.5, 0.75]
    assert [event.value for event in events.Scalars("node-evaluation/loss")] == [1.5] * 3


def check_logged(logged: list[tuple[dict[str, float], dict[str, Any]]], keywords: dict[str, Any]) -> None:
    ((figures, given),) = logged
    assert given == keywords
    assert (figures["solon/corrupt-nodes"], figures["solon/bytes-in"], figures["evaluation/accuracy"]) == (
        2,
        10**6,
        0.5,
    )


# The calls below were tested manually with wandb 0.31.0 (mode "offline") and mlflow 3.17.2 (file and SQLite stores).


def test_figures_are_logged_to_a_run_of_weights_and_biases() -> None:
    logged: list[tuple[dict[str, float], dict[str, Any]]] = []

    class Run:
        def log(self, data: dict[str, float], step: int | None = None) -> None:
            logged.append((data, {"step": step}))

    WandbWriter(Run())(status(2))
    check_logged(logged, {"step": 2})
    with pytest.raises(ConfigurationError, match=r"run must be the result of wandb.init; got 'solon'"):
        WandbWriter("solon")


def test_figures_are_logged_to_a_run_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, float], dict[str, Any]]] = []

    def log_metrics(
        metrics: dict[str, float],
        step: int | None = None,
        synchronous: bool | None = None,
        run_id: str | None = None,
    ) -> None:
        logged.append((metrics, {"step": step, "run_id": run_id}))

    module: Any = ModuleType("mlflow")
    module.log_metrics = log_metrics
    module.__spec__ = importlib.util.spec_from_loader("mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    MLflowWriter("0123")(status(2))
    check_logged(logged, {"step": 2, "run_id": "0123"})


@pytest.mark.parametrize(("writer", "package"), [(TensorBoardWriter, "tensorboard"), (MLflowWriter, "mlflow")])
def test_without_its_package_a_writer_says_what_to_install(
    writer: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=rf"needs {package}, .*; pip install 'solon-fl\[{package}\]'"):
        writer("somewhere")
