"""Frozen weights are neither computed, encoded, sent nor kept, on nodes, on the server and in baselines."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from solon_fl.baselines import AggregatorStrategy, DracoStrategy, SignumStrategy, draco_client_app, signum_mod
from solon_fl.clients import Batch, SolonTask, downlink_mod, solon_mod
from solon_fl.errors import CheckpointError, ConfigurationError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.strategies import Checkpoints, RoundReport, SolonStrategy, buffer_names
from solon_fl.strategies.model import ServerModel
from solon_fl.wire import BufferNames, coded_sizes, to_array, trusted_tensor
from tests.support import SGD, Regression, initial_model, record_of, small_config, train

LIARS = {1, 4}
TRAINED = ("head.weight", "head.bias")


class Tuned(nn.Module):
    """A frozen backbone of 700 numbers, running statistics, and a trained head of 11 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))
        self.backbone = nn.Linear(7, 10).requires_grad_(False)
        self.more = nn.Parameter(torch.randn(620), requires_grad=False)
        self.head = nn.Linear(10, 1)
        self.seen: torch.Tensor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += inputs.mean()
        result: torch.Tensor = self.head(self.backbone(inputs).tanh() + 0 * self.more[:10])
        return result


def in_plain_torch(rounds: int, seed: int = 0, batches: int = 7, groups: int = 2) -> dict[str, torch.Tensor]:
    """Return the model after the same rounds in plain torch, with statistics averaged over the groups."""
    model = initial_model(Tuned)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad])
    client = Regression(Tuned)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    for server_round in range(1, rounds + 1):
        optimizer.zero_grad()
        before = model.seen.clone()  # type: ignore[operator]
        for number in range(batches * groups):
            loss = client.batch_loss(model, Batch(seed, server_round, number), context) / (batches * groups)
            loss.backward()  # type: ignore[no-untyped-call]
        model.seen.copy_(before + (model.seen - before) / groups)  # type: ignore[operator]
        optimizer.step()
    return dict(model.state_dict())


def as_tensors(arrays: ArrayRecord) -> dict[str, torch.Tensor]:
    return {name: trusted_tensor(array) for name, array in arrays.items()}


def assert_trained(arrays: ArrayRecord, rounds: int) -> None:
    start, expected = record_of(initial_model(Tuned)), in_plain_torch(rounds)
    for name, value in as_tensors(arrays).items():
        torch.testing.assert_close(value, expected[name].cpu(), rtol=1e-4, atol=1e-5)
        if name in ("backbone.weight", "backbone.bias", "more"):
            assert arrays[name].data == start[name].data


def test_buffer_names_knows_which_entries_are_frozen() -> None:
    names = buffer_names(Tuned())
    assert list(names) == ["more", "seen", "backbone.weight", "backbone.bias"]
    assert names.frozen == {"more", "backbone.weight", "backbone.bias"}
    assert BufferNames.of(tuple(names)).frozen == frozenset()
    with pytest.raises(ConfigurationError, match=r"must be among the names; got \['b'\], not in \['a'\]"):
        BufferNames(["a"], frozen=["b"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"code": "exact"},
        {"verification": "digest", "group_size": 7},
        {"redundancy": "reactive"},
    ],
    ids=str,
)
def test_the_result_is_that_of_plain_torch_and_no_frozen_number_is_sent_back(options: dict[str, Any]) -> None:
    client, model = Regression(Tuned), initial_model(Tuned)
    result, reports = train(
        small_config(**options), client=client, mods=[attack_mod(Reverse(), LIARS)], model=model, rounds=3, timeout=20
    )
    assert_trained(result.arrays, 3)
    assert all(report.stepped for report in reports)
    multiple = small_config(**options).make_code().multiple
    moving = sum(-(-size // multiple) * multiple for size in coded_sizes(record_of(model), buffer_names(model).frozen))
    shares = sum(len(group.nodes) - group.nodes.count(None) for group in reports[0].groups)
    digests = 32 * 7 if options.get("verification") == "digest" else 0
    assert reports[0].bytes_in <= shares * (4 * -(-moving // 3) + digests) < shares * (4 * 10 + digests)


def test_the_server_keeps_a_frozen_entry_once_and_as_it_came() -> None:
    arrays = record_of(initial_model(Tuned))
    model = ServerModel(arrays, buffer_names(Tuned()), SGD)
    assert (model.dim, model.vector.numel()) == (13, 13)
    assert model.to_record()["more"].data is arrays["more"].data
    assert "more" not in model.layout
    assert "more" not in model.state()["static"]


@pytest.mark.slow
def test_in_mode_update_frozen_weights_stay_too() -> None:
    model, reports = initial_model(Tuned), list[RoundReport]()
    config = small_config(mode="update")
    optimizer = partial(torch.optim.SGD, lr=1.0)
    strategy = SolonStrategy(config, optimizer, buffers=buffer_names(model), on_round=reports.append)
    grid = InProcessGrid(Regression(Tuned).client_app([attack_mod(Reverse(), LIARS)]), 14)
    settings = ConfigRecord({"lr": 0.01})
    result = strategy.start(grid, record_of(model), num_rounds=2, timeout=20, train_config=settings)
    start = record_of(model)
    changed = [name for name, array in result.arrays.items() if array.data != start[name].data]
    assert changed == ["seen", "head.weight", "head.bias"]
    assert {node for report in reports for node in report.corrupt_nodes} == {2, 5}  # ids of the partitions


@pytest.mark.parametrize("whole", [False, True], ids=["what moves", "all entries"])
@pytest.mark.parametrize("returns", ["vector", "model"])
def test_a_train_function_may_return_frozen_entries_or_leave_them_out(returns: Any, whole: bool) -> None:
    app, client = ClientApp(), Regression(Tuned)
    config = small_config(mode="gradient" if returns == "vector" else "update")

    @app.train(mods=[solon_mod(returns)])
    def plain(message: Message, context: Context) -> Message:
        model, task = Tuned(), SolonTask.from_message(message)
        arrays = message.content.array_records["arrays"]
        model.load_state_dict(as_tensors(arrays))
        change = torch.zeros(13)
        change[:2] = 1 / 4
        if returns == "vector":
            change = client.mean_gradient(arrays, task.batches, task.buffers, context)
        parts, start = {}, 0
        for name, value in model.state_dict().items():
            frozen = name in task.frozen
            size = 0 if frozen else value.numel()
            moved = torch.zeros_like(value) if frozen else change[start : start + size].view(value.shape)
            start += size
            if not frozen or whole:
                parts[name] = to_array(value + moved if returns == "model" else moved)
        return Message(RecordDict({"arrays": ArrayRecord(parts)}), reply_to=message)

    optimizer = SGD if returns == "vector" else partial(torch.optim.SGD, lr=1.0)
    result, reports = train(config, app=app, model=initial_model(Tuned), rounds=2, optimizer=optimizer, timeout=20)
    assert [report.stepped for report in reports] == [True, True]
    if returns == "vector":
        assert_trained(result.arrays, 2)
    else:
        assert trusted_tensor(result.arrays["seen"]).tolist() == [0.5, 0.5]


def test_a_train_function_that_changes_a_frozen_weight_is_told_so() -> None:
    app = ClientApp()

    @app.train(mods=[solon_mod("model")])
    def thawing(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        arrays = ArrayRecord({name: to_array(trusted_tensor(a) + 1) for name, a in arrays.items()})
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    with pytest.raises(Exception, match=r"must not change frozen weights.*it changed 'more'"):
        train(small_config(mode="update"), app=app, model=initial_model(Tuned), rounds=1, timeout=20)


@pytest.mark.parametrize("way", ["data", "item", "places"])
def test_a_loss_that_changes_a_frozen_weight_is_told_so(way: str) -> None:
    class Thawing(Regression):
        def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> torch.Tensor:
            assert isinstance(model, Tuned)
            if way == "data":
                model.more.data[3] += 1e-3
            elif way == "places":
                model.more.data.copy_(model.more.roll(1))
            else:
                model.backbone.weight[1, 1] = 5.0
            return super().batch_loss(model, batch, context)

    name = "backbone.weight" if way == "item" else "more"
    with pytest.raises(Exception, match=rf"must not change frozen weights.*it changed '{name}'"):
        train(client=Thawing(Tuned), model=initial_model(Tuned), rounds=1, timeout=20)


@pytest.mark.slow
def test_checkpoints_hold_no_frozen_numbers_and_go_on_only_with_the_same(tmp_path: Path) -> None:
    model = initial_model(Tuned)
    whole, _ = train(client=Regression(Tuned), model=model, rounds=4, timeout=20)
    train(client=Regression(Tuned), model=model, rounds=2, timeout=20, checkpoints=Checkpoints(tmp_path))
    saved = torch.load(tmp_path / "round-000002.pt", weights_only=True)
    assert saved["vector"].numel() == 13
    assert saved["static"] == {}
    resumed, _ = train(client=Regression(Tuned), model=model, rounds=4, timeout=20, checkpoints=Checkpoints(tmp_path))
    assert {name: array.data for name, array in resumed.arrays.items()} == {
        name: array.data for name, array in whole.arrays.items()
    }
    other = initial_model(Tuned)
    with torch.no_grad():
        other.more[0] += 1  # type: ignore[index, operator]
    with pytest.raises(CheckpointError, match="frozen"):
        train(client=Regression(Tuned), model=other, rounds=5, timeout=20, checkpoints=Checkpoints(tmp_path))


def test_under_flowers_loop_somebody_may_change_frozen_weights_but_not_their_shape() -> None:
    model = ServerModel(record_of(initial_model(Tuned)), buffer_names(Tuned()), SGD)
    given = model.to_record()
    ours = {name: array.data for name, array in given.items()}
    given["more"] = to_array(torch.ones(620))
    assert model.take_over(given, ours) == ["more"]
    assert trusted_tensor(model.to_record()["more"]).sum() == 620
    given["more"] = to_array(torch.ones(3))
    with pytest.raises(ConfigurationError, match=r"got more of torch\.float32 with shape=\(3,\), which was \(620,\)"):
        model.take_over(given, ours)


def plain_app(mods: list[Any]) -> ClientApp:
    app, client = ClientApp(), Regression(Tuned)

    @app.train(mods=mods)
    def plain(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        batch = Batch(0, 1, int(context.node_config["partition-id"]))
        names = buffer_names(Tuned())
        gradient = client.mean_gradient(arrays, [batch], names, context)
        sizes = {name: array.shape for name, array in arrays.items() if name not in names.frozen}
        parts = torch.split(gradient, [int(np.prod(shape)) for shape in sizes.values()])
        record = {n: to_array(part.view(shape)) for part, (n, shape) in zip(parts, sizes.items(), strict=True)}
        content = RecordDict({"arrays": ArrayRecord(record), "metrics": MetricRecord({"num-examples": 8})})
        return Message(content, reply_to=message)

    return app


@pytest.mark.parametrize("name", ["draco", "draco-cyclic", "signum", "median"])
def test_baselines_send_and_move_no_frozen_number(name: str) -> None:
    model, reports = initial_model(Tuned), list[RoundReport]()
    arguments: dict[str, Any] = {"buffers": buffer_names(model), "on_round": reports.append}
    strategy: Any
    if name.startswith("draco"):
        code: Any = "cyclic" if name == "draco-cyclic" else "repetition"
        strategy, app = DracoStrategy(10, 2, SGD, code=code, **arguments), draco_client_app(Regression(Tuned))
    elif name == "signum":
        strategy, app = SignumStrategy(10, SGD, **arguments), plain_app([signum_mod(0.9, buffer_names(model))])
    else:
        strategy = AggregatorStrategy(10, lambda rows: rows.median(dim=0).values, SGD, **arguments)
        app = plain_app([downlink_mod])
    result = strategy.start(InProcessGrid(app, 10), record_of(model), num_rounds=2, timeout=20)
    start = record_of(model)
    moved = {entry for entry, array in result.arrays.items() if array.data != start[entry].data}
    assert moved == {"seen", *TRAINED}
    assert reports[1].stepped
    assert reports[1].bytes_in <= 10 * 13 * 4 * (2 if name == "draco-cyclic" else 1)
