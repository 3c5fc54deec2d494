import importlib.util
from pathlib import Path

import pytest

from solon_fl.errors import ConfigurationError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.strategies import SolonStrategy, TensorBoardWriter
from tests.support import SGD, Regression, initial_model, record_of, small_config


def test_every_round_s_figures_can_be_read_by_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    strategy = SolonStrategy(small_config(), SGD, on_round=TensorBoardWriter(tmp_path))
    grid = InProcessGrid(Regression().client_app([attack_mod(Reverse(), {1, 4, 8})]), 14)
    strategy.start(grid, record_of(initial_model()), num_rounds=3, timeout=1)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("solon/corrupt-nodes")] == [(1, 3), (2, 3), (3, 3)]
    for name in ("bytes-in", "unprotected-training-loss"):
        assert [event.value > 0 for event in events.Scalars(f"solon/{name}")] == [True] * 3


def test_without_tensorboard_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'solon-fl\[tensorboard\]'"):
        TensorBoardWriter(tmp_path)
