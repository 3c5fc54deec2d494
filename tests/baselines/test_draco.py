"""Draco end to end; test_draco_codes.py tests the codes."""

from typing import Any

import pytest
import torch
from flwr.app import Context
from torch import Tensor, nn

from solon_fl.baselines import DracoStrategy, draco_client_app
from solon_fl.clients import Batch
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import RandomGaussian, Reverse
from solon_fl.simulations.attacks.mods import attack_mod, malformed_mod, silent_mod
from solon_fl.strategies import RoundReport
from tests.support import SGD, Regression, initial_model, record_of, train, vector_of

NUM_NODES = 14
CODES = ["repetition", "cyclic"]


def run(code: Any, mods: Any = (), rounds: int = 4, byzantine: int = 2) -> tuple[Tensor, list[RoundReport]]:
    reports: list[RoundReport] = []
    strategy = DracoStrategy(NUM_NODES, byzantine, SGD, code=code, on_round=reports.append)
    grid = InProcessGrid(draco_client_app(Regression(), list(mods)), NUM_NODES)
    result = strategy.start(grid, record_of(initial_model()), num_rounds=rounds, timeout=0.1)
    return vector_of(result.arrays), reports


@pytest.mark.parametrize("code", CODES)
def test_an_honest_run_ends_where_solons_does(code: str) -> None:
    final, reports = run(code, rounds=5)
    torch.testing.assert_close(final, vector_of(train()[0].arrays), rtol=1e-4, atol=1e-5)
    assert all(report.corrupt_nodes == () and report.stepped for report in reports)


@pytest.mark.parametrize("code", CODES)
def test_a_round_goes_on_in_the_epoch_where_the_one_before_ended(code: Any) -> None:
    seen: dict[tuple[int, int], list[int]] = {}

    class Sampling(Regression):
        def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
            seen[batch.round, batch.number] = batch.sample_epoch(2 * NUM_NODES * 3, 3).tolist()
            return super().batch_loss(model, batch, context)

    strategy = DracoStrategy(NUM_NODES, 2, SGD, code=code)
    grid = InProcessGrid(draco_client_app(Sampling()), NUM_NODES)
    strategy.start(grid, record_of(initial_model()), num_rounds=2, timeout=60)
    assert sorted(example for part in seen.values() for example in part) == list(range(2 * NUM_NODES * 3))


@pytest.mark.parametrize("code", CODES)
def test_the_bytes_are_those_of_whole_gradients(code: str) -> None:
    _, reports = run(code, rounds=1)
    numbers = 8 if code == "repetition" else 16  # complex
    assert reports[0].bytes_in == NUM_NODES * numbers * 4


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("attack", [Reverse(), RandomGaussian(), Reverse(-1.01)], ids=repr)
def test_liars_are_found_and_change_nothing(code: str, attack: Any) -> None:
    final, reports = run(code, [attack_mod(attack, {3, 12})])
    torch.testing.assert_close(final, run(code)[0], rtol=1e-4, atol=1e-5)
    assert all(report.corrupt_nodes == (4, 13) for report in reports)


@pytest.mark.parametrize("code", CODES)
def test_what_is_missing_or_malformed_counts_as_a_lie(code: str) -> None:
    final, reports = run(code, [silent_mod({3}), malformed_mod({12}, "garbage")])
    torch.testing.assert_close(final, run(code)[0], rtol=1e-4, atol=1e-5)
    assert reports[0].silent_nodes == (4,)
    assert reports[0].malformed_nodes == (13,)
    assert reports[0].corrupt_nodes == ()


@pytest.mark.parametrize("code", CODES)
def test_too_many_liars_skip_the_round(code: str, caplog: pytest.LogCaptureFixture) -> None:
    final, reports = run(code, [attack_mod(RandomGaussian(), {0, 1, 2, 3, 4})], rounds=2)
    torch.testing.assert_close(final, vector_of(record_of(initial_model())), rtol=0, atol=0)
    assert not any(report.stepped for report in reports)
    assert "can't decode" in caplog.text


@pytest.mark.parametrize("code", CODES)
def test_too_few_nodes_are_refused(code: Any) -> None:
    with pytest.raises(ConfigurationError, match="byzantine=7"):
        DracoStrategy(NUM_NODES, 7, SGD, code=code)


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="code='fourier'"):
        DracoStrategy(NUM_NODES, 2, SGD, code="fourier")  # type: ignore[arg-type]  # on purpose
