from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from solon_fl.clients import SolonTask, solon_mod
from solon_fl.errors import ConfigurationError, GroupFailedError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.strategies import RoundReport, SolonStrategy
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


def undisciplined_app(draw: Callable[[Context], Tensor], **options: Any) -> ClientApp:
    """An app whose train function returns its random draws, for a model with one entry."""
    app = ClientApp()

    @app.train(mods=[solon_mod(**options)])
    def train_function(message: Message, context: Context) -> Message:
        return Message(RecordDict({"gradient": ArrayRecord({"w": to_array(draw(context))})}), reply_to=message)

    return app


def train_undisciplined(draw: Callable[[Context], Tensor], rounds: int = 3, **options: Any) -> list[RoundReport]:
    reports: list[RoundReport] = []
    strategy = SolonStrategy(small_config(), SGD, on_round=reports.append)
    grid = InProcessGrid(undisciplined_app(draw, **options), 14)
    strategy.start(grid, ArrayRecord({"w": to_array(torch.zeros(5))}), num_rounds=rounds, timeout=1)
    return reports


def test_torch_draws_the_same_on_all_nodes_of_a_group_and_other_numbers_elsewhere() -> None:
    drawn = []

    def draw(context: Context) -> Tensor:
        drawn.append(torch.randn(5))
        return drawn[-1]

    before = torch.get_rng_state()
    reports = train_undisciplined(draw)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(group.status == "clean" for report in reports for group in report.groups)
    assert len({tuple(values.tolist()) for values in drawn}) == 6  # three rounds of two groups


def test_the_log_lists_the_usual_reasons_why_nodes_differ(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng()
    with pytest.raises(GroupFailedError, match="the nodes of a group do not compute the same"):
        train_undisciplined(lambda context: torch.from_numpy(rng.normal(size=5)).float(), rounds=1)
    assert "random numbers (of numpy, a data loader or dropout)" in caplog.text
    assert "different data; different versions of the app, torch or solon_fl" in caplog.text


@pytest.mark.parametrize("keeps_state", [False, True])
def test_a_node_that_failed_once_is_no_liar_later_unless_state_is_kept(keeps_state: bool) -> None:
    failed: list[bool] = []

    def count(context: Context) -> Tensor:
        if context.node_id == 3 and not failed:
            failed.append(True)
            raise MemoryError
        seen = context.state.metric_records.get("rounds", MetricRecord({"number": 0}))
        context.state["rounds"] = MetricRecord({"number": int(str(seen["number"])) + 1})
        return torch.full((5,), float(str(context.state.metric_records["rounds"]["number"])))

    reports = train_undisciplined(count, keeps_state=keeps_state)
    assert 3 in reports[0].groups[0].malformed_nodes
    assert [report.corrupt_nodes for report in reports] == ([(), (3,), (3,)] if keeps_state else [(), (), ()])


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
        solon_mod(returns="weights")  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("changes", [{"num_nodes": 10, "verification": "digest"}, {"code": "exact"}], ids=str)
def test_where_bits_count_the_train_function_computes_with_deterministic_algorithms(changes: dict[str, Any]) -> None:
    seen = []

    def look(values: dict[str, Any]) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return as_arrays(values)

    config = small_config(batches_per_group=2, **changes)
    result, reports = train(config, app=gradient_app(look), timeout=60)
    assert seen
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled()
    expected = vector_of(train(config, timeout=60)[0].arrays)
    torch.testing.assert_close(vector_of(result.arrays), expected, rtol=1e-5, atol=1e-6)
    liars = (2, 5, 9) if config.num_nodes == 10 else (2, 5, 9, 14)
    assert all((report.corrupt_nodes or report.different_nodes) == liars for report in reports)


def app_that_returns(**records: MetricRecord | ConfigRecord) -> ClientApp:
    """An app whose train function returns these records beside the arrays."""
    app = ClientApp()

    @app.train(mods=[solon_mod()])
    def train_function(message: Message, context: Context) -> Message:
        content = RecordDict({"gradient": ArrayRecord({"w": to_array(torch.ones(5))}), **records})
        return Message(content, reply_to=message)

    return app


def replies_and_report(**records: MetricRecord | ConfigRecord) -> tuple[list[Message], RoundReport]:
    replies: list[Message] = []
    reports: list[RoundReport] = []

    class Looking(InProcessGrid):
        def _handle(self, message: Message) -> Message | None:
            reply = super()._handle(message)
            assert reply is not None
            replies.append(reply)
            return reply

    strategy = SolonStrategy(small_config(num_nodes=7), SGD, on_round=reports.append)
    arrays = ArrayRecord({"w": to_array(torch.zeros(5))})
    strategy.start(Looking(app_that_returns(**records), 7), arrays, num_rounds=1, timeout=1)
    return replies, reports[0]


def test_what_a_train_function_returns_beside_its_arrays_is_sent_as_it_is() -> None:
    metrics, note = MetricRecord({"loss": 0.25, "num-examples": 8}), ConfigRecord({"device": "cpu"})
    replies, report = replies_and_report(metrics=metrics, note=note)
    for reply in replies:
        assert set(reply.content) == {"share", "metrics", "note"}
        assert reply.content.metric_records["metrics"] == metrics
        assert reply.content.config_records["note"] == note
    assert report.training_loss == 0.25
    share_size = 2  # five numbers, padded, in three shares
    assert report.bytes_in == 4 * share_size * 7


@pytest.mark.parametrize("name", ["share", "digests"])
def test_a_record_with_a_name_that_is_taken_is_refused(name: str) -> None:
    with pytest.raises(GroupFailedError, match=rf"must not be named 'share' or 'digests'; got \['{name}'\]"):
        replies_and_report(**{name: MetricRecord({"loss": 1.0})})
