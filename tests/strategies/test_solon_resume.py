"""Runs that stop, resume from a checkpoint, or start again, and learning-rate schedules."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import Result
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, ExponentialLR, LambdaLR, SequentialLR, StepLR

from solon_fl.errors import CheckpointError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.strategies import Checkpoints, RoundReport, SolonStrategy
from tests.strategies.liars import BROKEN_GROUP
from tests.support import (
    REMEMBERING,
    SGD,
    Regression,
    initial_model,
    record_of,
    small_config,
    train,
    vector_of,
)


def test_on_round_may_stop_the_run_and_it_can_go_on_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flwr").propagate = True
    evaluated: list[int] = []

    def run(num_rounds: int, stop_after: int) -> Result:
        strategy = SolonStrategy(
            small_config(),
            SGD,
            on_round=lambda report: report.round == stop_after,
            checkpoints=Checkpoints(tmp_path, every=10),
        )
        grid = InProcessGrid(REMEMBERING.client_app(), 14)
        model = record_of(initial_model())
        note: Any = lambda number, _: evaluated.append(number)  # noqa: E731
        return strategy.start(grid, model, num_rounds=num_rounds, timeout=1, evaluate_fn=note)

    stopped = run(5, stop_after=2)
    assert list(stopped.train_metrics_clientapp) == [1, 2]
    assert evaluated == [0, 1, 2]
    assert vector_of(stopped.arrays).equal(vector_of(train(rounds=2)[0].arrays))
    assert "Stopped after round 2 of 5" in caplog.text
    assert "made no step" not in caplog.text
    assert vector_of(run(3, stop_after=0).arrays).equal(vector_of(train(rounds=3)[0].arrays))
    assert evaluated == [0, 1, 2, 3], "the checkpoint was written where the run stopped"


def test_a_strategy_can_be_started_again() -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 14)
    runs = [strategy.start(grid, record_of(initial_model()), num_rounds=3, timeout=1) for _ in range(2)]
    assert torch.equal(vector_of(runs[0].arrays), vector_of(runs[1].arrays))


def test_a_run_resumed_by_another_strategy_object_is_the_same_run(tmp_path: Path) -> None:
    adam = partial(torch.optim.Adam, lr=0.01)
    mods = [attack_mod(Reverse(), {4, 9})]
    whole, _ = train(rounds=6, optimizer=adam, mods=mods, projection_seed=1)
    for rounds in (1, 4, 6):
        checkpoints = Checkpoints(tmp_path, every=2)
        part, reports = train(rounds=rounds, optimizer=adam, mods=mods, projection_seed=1, checkpoints=checkpoints)
    assert [report.round for report in reports] == [5, 6]
    assert vector_of(part.arrays).equal(vector_of(whole.arrays))
    for now, then in zip(*(r.train_metrics_clientapp.items() for r in (part, whole)), strict=True):
        assert now[0] == then[0]
        assert {k: v for k, v in now[1].items() if "seconds" not in k} == {
            k: v for k, v in then[1].items() if "seconds" not in k
        }


SCHEDULES: dict[str, Any] = {
    "step": partial(StepLR, step_size=2, gamma=0.1),
    "cosine": partial(CosineAnnealingLR, T_max=6),
    "function": partial(LambdaLR, lr_lambda=lambda step: 0.5**step),
    "sequence": lambda optimizer: SequentialLR(
        optimizer, [ConstantLR(optimizer, 0.1, 2), ExponentialLR(optimizer, 0.5)], milestones=[2]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    optimizer: Any = partial(Watched, lr=0.1)
    plain = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = SCHEDULES[name](plain)
    expected = []
    for _ in range(6):
        expected.append(plain.param_groups[0]["lr"])
        plain.step()
        schedule.step()
    whole, _ = train(rounds=6, optimizer=optimizer, scheduler=SCHEDULES[name])
    assert rates == expected
    rates.clear()
    for rounds in (2, 3, 6):
        checkpoints = Checkpoints(tmp_path)
        part, _ = train(rounds=rounds, optimizer=optimizer, scheduler=SCHEDULES[name], checkpoints=checkpoints)
    assert rates == expected
    assert vector_of(part.arrays).equal(vector_of(whole.arrays))


def test_a_round_without_a_step_does_not_move_the_schedule() -> None:
    optimizers: list[torch.optim.Optimizer] = []

    def halve(optimizer: torch.optim.Optimizer) -> StepLR:
        optimizers.append(optimizer)
        return StepLR(optimizer, 1, gamma=0.5)

    _, reports = train(
        small_config(on_group_failure="skip"), mods=[BROKEN_GROUP], rounds=3, optimizer=SGD, scheduler=halve
    )
    assert not any(report.stepped for report in reports)
    assert optimizers[0].param_groups[0]["lr"] == 0.1


def test_another_schedule_is_another_run(tmp_path: Path) -> None:
    train(rounds=1, scheduler=SCHEDULES["step"], checkpoints=Checkpoints(tmp_path))
    with pytest.raises(CheckpointError, match=r"optimizer\.scheduler is 'StepLR' there and 'CosineAnnealingLR' here"):
        train(rounds=2, scheduler=SCHEDULES["cosine"], checkpoints=Checkpoints(tmp_path))


def test_a_run_goes_on_when_the_optimizer_has_a_default_more(tmp_path: Path) -> None:
    """AdamW got a new default in torch 2.7."""

    def older(parameters: list[Tensor]) -> torch.optim.Optimizer:
        made = torch.optim.AdamW(parameters, lr=0.1)
        del made.defaults["decoupled_weight_decay"], made.defaults["foreach"]
        return made

    train(rounds=1, optimizer=older, checkpoints=Checkpoints(tmp_path))
    for odd in ({"weight_decay": 0.5}, {"amsgrad": True}):
        with pytest.raises(CheckpointError, match=rf"optimizer\.{next(iter(odd))} is not set there and '.*' here"):
            train(rounds=2, optimizer=partial(torch.optim.AdamW, lr=0.1, **odd), checkpoints=Checkpoints(tmp_path))
    optimizer = partial(torch.optim.AdamW, lr=0.1)
    _, reports = train(rounds=2, optimizer=optimizer, checkpoints=Checkpoints(tmp_path))
    assert [report.round for report in reports] == [2]


def test_checkpoints_of_another_run_are_refused_and_kept(tmp_path: Path) -> None:
    train(rounds=2, checkpoints=Checkpoints(tmp_path))
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="byzantine is 2 there and 1 here"):
        train(small_config(byzantine=1, group_size=7), rounds=3, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(CheckpointError, match=r"optimizer\.class is 'SGD' there and 'Adam' here"):
        train(rounds=3, optimizer=torch.optim.Adam, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(CheckpointError, match=r"optimizer\.lr is '0\.1' there and '5\.0' here"):
        train(rounds=3, optimizer=partial(torch.optim.SGD, lr=5.0, momentum=0.9), checkpoints=Checkpoints(tmp_path))
    with pytest.raises(CheckpointError, match="has reached round 2, beyond num_rounds=1"):
        train(rounds=1, checkpoints=Checkpoints(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    changed = small_config(quarantine_after=9, on_group_failure="skip")
    _, reports = train(changed, rounds=3, checkpoints=Checkpoints(tmp_path))
    assert [report.round for report in reports] == [3], "the policies may change"


@pytest.mark.parametrize("answer", [True, np.bool_(True), torch.tensor(True)], ids=["Python", "numpy", "torch"])
def test_any_kind_of_true_stops_the_run(answer: Any) -> None:
    reports: list[RoundReport] = []

    def on_round(report: RoundReport) -> Any:
        reports.append(report)
        return answer

    grid = InProcessGrid(Regression().client_app(), 14)
    SolonStrategy(small_config(), SGD, on_round=on_round).start(grid, record_of(initial_model()), num_rounds=3)
    assert len(reports) == 1
