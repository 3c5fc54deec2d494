from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from solon_fl.clients import SolonTask, solon_mod
from solon_fl.errors import ConfigurationError, GroupFailedError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.strategies import SolonStrategy
from solon_fl.wire import to_array, trusted_tensor
from tests.support import SGD, Regression, initial_model, record_of, small_config, train, vector_of


def gradient_app(change: Any = lambda arrays: arrays) -> ClientApp:
    """An ordinary app whose train function returns the group's gradient; `change` spoils what it returns."""
    client, app = Regression(), ClientApp()

    @app.train(mods=[attack_mod(Reverse(), {1, 4, 8, 13}), solon_mod()])
    def train_function(message: Message, context: Context) -> Message:
        task = SolonTask.from_message(message)
        arrays = message.content.array_records["arrays"]
        gradient = client.mean_gradient(arrays, task.batches, (), context)
        named = {"weight": gradient[:7].view(1, 7), "bias": gradient[7:]}
        record = ArrayRecord(change({name: value.cpu().numpy() for name, value in named.items()}))
        return Message(RecordDict({"gradient": record, "metrics": MetricRecord({"loss": 1.0})}), reply_to=message)

    return app


def as_arrays(values: dict[str, Any]) -> Any:
    return {name: torch.from_numpy(value) for name, value in values.items()}


def test_an_ordinary_train_function_becomes_a_solon_node() -> None:
    result, reports = train(app=gradient_app(as_arrays))
    torch.testing.assert_close(vector_of(result.arrays), vector_of(train()[0].arrays), rtol=1e-5, atol=1e-6)
    assert all(report.corrupt_nodes == (2, 5, 9, 14) for report in reports)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: {"weight": torch.from_numpy(values["weight"])}, "differ in .*'bias'"),
        (lambda values: dict(reversed(as_arrays(values).items())), "differ in their order"),
        (lambda values: {**as_arrays(values), "bias": torch.zeros(2)}, r"'bias', \(2,\)"),
    ],
)
def test_a_train_function_that_returns_something_else_is_told_so(change: Any, message: str) -> None:
    with pytest.raises(GroupFailedError, match=message):
        train(app=gradient_app(change), rounds=1)


def trained_model_app() -> ClientApp:
    """An app as in Flower's tutorials: returns the trained model."""
    client, app = Regression(), ClientApp()

    @app.train(mods=[solon_mod(returns="model")])
    def train_function(message: Message, context: Context) -> Message:
        task = SolonTask.from_message(message)
        arrays = message.content.array_records["arrays"]
        rate = float(str(message.content.config_records["config"]["lr"]))
        change = client.update(arrays, task, context, {"lr": rate})
        trained = vector_of(arrays).float() + change.cpu()
        record = ArrayRecord({"weight": trained[:7].view(1, 7), "bias": trained[7:]})
        return Message(RecordDict({"arrays": record}), reply_to=message)

    return app


def test_a_trained_model_is_turned_into_its_change() -> None:
    config = small_config(mode="update", batches_per_group=2)
    results = [
        SolonStrategy(config, SGD).start(
            InProcessGrid(app, 14), record_of(initial_model()), timeout=1, train_config=ConfigRecord({"lr": 0.05})
        )
        for app in (trained_model_app(), Regression().client_app())
    ]
    torch.testing.assert_close(*(vector_of(result.arrays) for result in results), rtol=1e-4, atol=1e-5)


def test_a_trained_model_may_hold_infinities_that_do_not_change() -> None:
    app = ClientApp()

    @app.train(mods=[solon_mod(returns="model")])
    def train_function(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        trained = ArrayRecord({"w": to_array(trusted_tensor(arrays["w"]) + 1), "mask": arrays["mask"]})
        return Message(RecordDict({"arrays": trained}), reply_to=message)

    start = ArrayRecord({"w": to_array(torch.zeros(4)), "mask": to_array(torch.tensor([0.0, -torch.inf]))})
    optimizer = partial(torch.optim.SGD, lr=1.0)
    strategy = SolonStrategy(small_config(mode="update"), optimizer, buffers=["mask"])
    result = strategy.start(InProcessGrid(app, 14), start, num_rounds=1, timeout=1)
    torch.testing.assert_close(vector_of(result.arrays), torch.tensor([1.0, 1, 1, 1, 0, -torch.inf]).double())


def test_returning_a_model_in_gradient_mode_is_refused() -> None:
    with pytest.raises(GroupFailedError, match=r"returns='model'\) needs mode='update'"):
        train(app=trained_model_app(), rounds=1)


def test_an_unknown_kind_of_return_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="returns='weights'"):
        solon_mod(returns="weights")  # type: ignore[arg-type]  # the point of the test


def test_with_digests_the_train_function_computes_with_deterministic_algorithms() -> None:
    seen = []

    def look(values: dict[str, Any]) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return as_arrays(values)

    config = small_config(num_nodes=10, verification="digest")
    result, reports = train(config, app=gradient_app(look))
    assert seen
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled()
    torch.testing.assert_close(vector_of(result.arrays), vector_of(train(config)[0].arrays), rtol=1e-5, atol=1e-6)
    assert all(report.corrupt_nodes == (2, 5, 9) for report in reports)
