"""Flower's own `start`, strategies around `SolonStrategy`, and evaluation."""

import copy
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod, message_size_mod
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from solon_fl.clients import Batch
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.strategies import RoundReport, SolonStrategy
from solon_fl.wire import to_array, trusted_tensor
from tests.strategies.liars import LIAR_IDS, LIARS
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


def test_under_flowers_own_start_the_result_is_the_same(honest_model: Tensor) -> None:
    reports: list[RoundReport] = []
    strategy = SolonStrategy(small_config(), SGD, on_round=reports.append)
    grid = InProcessGrid(Regression().client_app([attack_mod(Reverse(), LIARS)]), 14)
    result = Strategy.start(strategy, grid, record_of(initial_model()), num_rounds=5, timeout=5)
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-4, atol=1e-5)
    assert [report.corrupt_nodes for report in reports] == [LIAR_IDS] * 5


class Around(Strategy):
    """Passes on the results of another strategy with a changed model."""

    def __init__(self, inner: SolonStrategy, change: Callable[[dict[str, Tensor]], None]) -> None:
        self.inner = inner
        self.change = change

    def configure_train(self, *arguments: Any) -> Iterable[Message]:
        return self.inner.configure_train(*arguments)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = self.inner.aggregate_train(server_round, replies)
        assert arrays is not None
        tensors = {name: trusted_tensor(array).clone() for name, array in arrays.items()}
        self.change(tensors)
        return ArrayRecord({name: to_array(tensor) for name, tensor in tensors.items()}), metrics

    def configure_evaluate(self, *arguments: Any) -> Iterable[Message]:
        return []

    def aggregate_evaluate(self, *arguments: Any) -> None:
        return None

    def summary(self) -> None:
        pass


def test_a_model_that_a_strategy_around_it_has_changed_is_the_one_that_is_trained() -> None:
    def prune(tensors: dict[str, Tensor]) -> None:
        tensors["weight"][0, 0] = 0.0

    sgd: Any = partial(torch.optim.SGD, lr=0.1)
    grid = InProcessGrid(Regression().client_app(), 14)
    strategy = Around(SolonStrategy(small_config(), sgd), prune)
    result = strategy.start(grid, record_of(initial_model()), num_rounds=3, timeout=5)
    model = initial_model()
    optimizer = sgd(model.parameters())
    context: Any = None
    for server_round in range(1, 4):
        optimizer.zero_grad()
        losses = [REMEMBERING.batch_loss(model, Batch(0, server_round, number), context) for number in range(14)]
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
        prune(dict(model.state_dict()))
    torch.testing.assert_close(vector_of(result.arrays), vector_of(record_of(model)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update(weight=torch.zeros(1, 6)), r"got weight .*shape=\(1, 6\), which was \(1, 7\)"),
        (lambda tensors: tensors.update(weight=torch.zeros(1, 7, dtype=torch.int64)), "got weight of torch.int64"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), r"they differ in \['more'\]"),
    ],
)
def test_a_changed_model_of_another_kind_is_refused(change: Any, message: str) -> None:
    strategy = Around(SolonStrategy(small_config(), SGD), change)
    grid = InProcessGrid(Regression().client_app(), 14)
    with pytest.raises(ConfigurationError, match=message):
        strategy.start(grid, record_of(initial_model()), num_rounds=2, timeout=5)


def test_under_flowers_own_start_a_second_run_is_a_new_one() -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 14)
    models = [
        vector_of(Strategy.start(strategy, grid, record_of(initial_model()), num_rounds=2, timeout=5).arrays)
        for _ in range(2)
    ]
    assert models[0].equal(models[1])


def test_flowers_mods_that_measure_messages_can_be_put_around_a_node() -> None:
    _, reports = train(mods=[message_size_mod, arrays_size_mod], rounds=1)
    assert [group.status for group in reports[0].groups] == ["clean", "clean"]


def test_a_grid_that_copies_messages_works_with_flowers_own_start(honest_model: Tensor) -> None:
    class Copying(InProcessGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            return super().send_and_receive([copy.deepcopy(message) for message in messages])

    strategy = SolonStrategy(small_config(), SGD)
    grid = Copying(Regression().client_app(), 14)
    result = Strategy.start(strategy, grid, record_of(initial_model()), num_rounds=5, timeout=5)
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-5, atol=1e-6)


def test_messages_share_the_model_and_nothing_else() -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 14)
    arrays, config = record_of(initial_model()), ConfigRecord({"lr": 0.5})
    messages = strategy.configure_train(1, arrays, config, grid)
    assert isinstance(messages, list)
    assert len({id(message.content["config"]) for message in messages}) == 14
    assert len({id(message.content["arrays"]) for message in messages}) == 1
    assert messages[0].content["config"] == ConfigRecord({"lr": 0.5, "server-round": 1})
    assert config == ConfigRecord({"lr": 0.5})


def test_the_server_evaluates_before_and_after_every_round() -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 14)
    rounds: list[int] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        rounds.append(server_round)
        return MetricRecord({"norm": float(vector_of(arrays).norm())})

    result = strategy.start(grid, record_of(initial_model()), num_rounds=2, timeout=1, evaluate_fn=evaluate)
    assert rounds == [0, 1, 2]
    assert list(result.evaluate_metrics_serverapp) == [0, 1, 2]


@pytest.mark.parametrize("found", [{"accuracy": np.float32(0.5)}, {"accuracy": torch.tensor(0.5)}, {"accuracy": 0.5}])
def test_the_server_s_metrics_may_be_a_plain_dict(found: Any) -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 14)
    model = record_of(initial_model())
    result = strategy.start(grid, model, num_rounds=1, timeout=1, evaluate_fn=lambda *_: found)
    assert dict(result.evaluate_metrics_serverapp[1]) == {"accuracy": 0.5}


@pytest.mark.parametrize("found", [(0.1, {"accuracy": 0.5}), {"accuracy": "good"}, {"accuracy": True}])
def test_server_metrics_that_are_no_numbers_are_refused_before_training(found: Any) -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(ClientApp(), 14)
    with pytest.raises(ConfigurationError, match="evaluate_fn must return None or named numbers"):
        strategy.start(grid, record_of(initial_model()), num_rounds=1, timeout=1, evaluate_fn=lambda *_: found)


def test_client_metrics_are_aggregated_by_the_median_of_sane_values() -> None:
    class Boasting(Regression):
        def evaluate(self, model: nn.Module, context: Context) -> dict[str, float]:
            if context.node_id in (3, 4):
                return {"number": 1e300, "only-here": 1.0}
            if context.node_id == 5:
                return {"number": float("nan")}
            if context.node_id == 6:
                raise RuntimeError("no test data")
            return super().evaluate(model, context)

    result, _ = train(client=Boasting(), rounds=1, client_evaluation=True)
    # Twelve values: nodes 1, 2, 7..14, and 1e300 twice.
    assert dict(result.evaluate_metrics_clientapp[1]) == {"number": 10.5}


class Unlucky(Regression):
    """Its evaluation fails, or returns what the test wants."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found

    def evaluate(self, model: nn.Module, context: Context) -> dict[str, float]:
        if self.found is None:
            raise RuntimeError(f"no test data\non node {context.node_id}")
        return {"accuracy": self.found}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            None,
            "Evaluation failed on 14 of the 14 nodes that replied; the first .* node 1: error .*no test data on",
        ),
        ("good", "Evaluation failed on 14 of the 14 nodes.*TypeError"),
        (float("nan"), "14 nodes evaluated, but no metric was reported by more than half .* not NaN"),
    ],
)
def test_an_evaluation_that_fails_on_the_nodes_is_told_once(
    found: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("flwr").propagate = True
    result, reports = train(client=Unlucky(found), rounds=3, client_evaluation=True)
    assert len(reports) == 3
    assert not result.evaluate_metrics_clientapp
    (told,) = [record.message for record in caplog.records if "valuat" in record.message]
    assert re.match(words, told), told


def test_stray_replies_to_aggregate_train_are_ignored() -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 14)
    messages = strategy.configure_train(1, record_of(initial_model()), ConfigRecord(), grid)
    replies = list(grid.send_and_receive(messages))
    stray = Message(RecordDict({"share": ArrayRecord({"share": to_array(torch.zeros(3))})}), reply_to=replies[0])
    arrays, metrics = strategy.aggregate_train(1, [stray, *replies])
    assert arrays is not None
    assert metrics is not None
    assert metrics["corrupt-nodes"] == []


def test_aggregating_without_a_round_is_a_plain_error() -> None:
    with pytest.raises(RuntimeError, match="before configure_train"):
        SolonStrategy(small_config(), SGD).aggregate_train(1, [])


@pytest.mark.parametrize("mute_rounds", [{1, 2, 3, 4}, {1, 3}])
def test_a_node_that_does_not_evaluate_is_waited_for_once(
    mute_rounds: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    class Mute(InProcessGrid):
        looks: list[int]  # the round of each look for its evaluation

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            (message_id,) = message_ids
            waiting = self._waiting.get(message_id)
            if waiting and waiting.metadata.message_type == "evaluate" and waiting.metadata.dst_node_id == 3:
                self.looks.append(int(waiting.metadata.group_id))
                if self.looks[-1] in mute_rounds:
                    return []
            return super().pull_messages([message_id])

    class Evaluating(Regression):
        def evaluate(self, model: nn.Module, context: Context) -> dict[str, float]:
            return {"accuracy": 0.5}

    logging.getLogger("flwr").propagate = True
    grid = Mute(Evaluating().client_app(), 14)
    grid.looks = []
    strategy = SolonStrategy(small_config(), SGD, client_evaluation=True)
    result = strategy.start(grid, record_of(initial_model()), num_rounds=4, timeout=0.3)
    assert [metrics["accuracy"] for metrics in result.evaluate_metrics_clientapp.values()] == 4 * [0.5]
    assert caplog.text.count("No evaluation from nodes 3;") == 1
    looks = Counter(grid.looks)
    assert looks[1] > 3, "in the first round it is waited for until the deadline"
    assert all(looks[server_round] == 1 for server_round in (2, 3, 4))
    assert all(record.offences == record.silent == 0 for record in strategy.ledger.values())
