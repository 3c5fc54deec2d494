from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn

from solon_fl.errors import ConfigurationError
from solon_fl.strategies import buffer_names
from solon_fl.strategies.model import ServerModel
from solon_fl.wire import to_array, trusted_tensor
from tests.support import SGD, record_of, vector_of


def normalised_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def test_buffer_names_are_statistics_and_frozen_weights() -> None:
    model = normalised_model()
    model.get_parameter("0.weight").requires_grad = False
    assert buffer_names(model) == ("0.weight", "1.running_mean", "1.running_var")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_model_of_a_dtype_that_flower_has_not_is_refused_with_the_remedy(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 1).to(dtype)
    for act in (buffer_names, record_of):
        with pytest.raises(ConfigurationError, match=rf"got .* of {dtype}; keep the server's model in float32"):
            act(model)


def test_a_model_in_float16_is_trained_and_the_server_keeps_float32() -> None:
    model = nn.Linear(1, 1, bias=False).half()
    server = ServerModel(record_of(model), buffer_names(model), partial(torch.optim.SGD, lr=1.0))
    before = server.vector.clone()
    for _ in range(100):  # each smaller than half the spacing of float16 at 1
        server.step(torch.full((1,), -1e-4), "gradient")
    torch.testing.assert_close(server.vector, before + 0.01, rtol=1e-5, atol=1e-6)
    assert trusted_tensor(server.to_record()["weight"]).dtype == torch.float16


def test_the_record_comes_back_as_it_was() -> None:
    model = normalised_model().half()
    model.get_parameter("2.bias").data = torch.ones(1, dtype=torch.float64)
    record = record_of(model)
    again = ServerModel(record, buffer_names(model), SGD).to_record()
    assert list(again) == list(record)
    for name, array in record.items():
        assert again[name].data == array.data
        assert again[name].dtype == array.dtype


@pytest.mark.parametrize(
    "optimizer", [SGD, partial(torch.optim.Adam, lr=0.01), partial(torch.optim.AdamW, weight_decay=0.1)]
)
def test_steps_are_those_of_the_torch_optimizer(optimizer: partial[torch.optim.Optimizer]) -> None:
    model = normalised_model()
    server = ServerModel(record_of(model), buffer_names(model), optimizer)
    reference = optimizer(list(model.parameters()))
    rng = torch.Generator().manual_seed(0)
    for _ in range(4):
        direction = torch.randn(server.dim, generator=rng)
        start = 0
        for name, value in model.state_dict(keep_vars=True).items():
            if not value.is_floating_point():
                continue
            part = direction[start : start + value.numel()].view(value.shape)
            start += value.numel()
            if name in buffer_names(model):
                value += part
            else:
                value.grad = part.clone()
        reference.step()
        server.step(direction, "gradient")
    for name, array in server.to_record().items():
        torch.testing.assert_close(trusted_tensor(array), model.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_an_update_is_added_as_it_is_by_sgd_with_lr_one() -> None:
    model = nn.Linear(3, 2)
    server = ServerModel(record_of(model), (), partial(torch.optim.SGD, lr=1.0))
    change = torch.arange(8.0)
    before = vector_of(record_of(model))
    server.step(change.clone(), "update")
    torch.testing.assert_close(vector_of(server.to_record()), before + change.double(), rtol=1e-6, atol=1e-6)


def test_integers_stay_as_they_are() -> None:
    record = ArrayRecord({"count": to_array(torch.tensor([3])), "w": to_array(torch.zeros(2))})
    server = ServerModel(record, (), SGD)
    assert server.dim == 2
    server.step(torch.ones(2), "gradient")
    assert trusted_tensor(server.to_record()["count"]).tolist() == [3]


def test_buffers_that_are_not_in_the_model_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="nonsense"):
        ServerModel(record_of(nn.Linear(2, 1)), ("nonsense",), SGD)


def test_a_model_without_floats_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="floating-point entries"):
        ServerModel(ArrayRecord({"count": to_array(torch.tensor([3]))}), (), SGD)


def test_a_schedule_that_needs_a_metric_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="got ReduceLROnPlateau, which needs a metric"):
        ServerModel(record_of(nn.Linear(2, 1)), (), SGD, torch.optim.lr_scheduler.ReduceLROnPlateau)


def test_what_is_taken_over_is_what_was_changed_and_the_rest_keeps_its_precision() -> None:
    record = ArrayRecord(
        {
            "half": to_array(torch.zeros(1, dtype=torch.float16)),
            "count": to_array(torch.tensor([3])),
            "w": to_array(torch.zeros(2)),
        }
    )
    server = ServerModel(record, (), partial(torch.optim.SGD, lr=1.0))
    server.step(torch.tensor([-1.0001, 0.0, 0.0]), "gradient")
    ours = server.to_record()
    given = ArrayRecord({**ours, "count": to_array(torch.tensor([4])), "w": to_array(torch.ones(2))})
    assert server.take_over(given, {name: array.data for name, array in ours.items()}) == ["count", "w"]
    assert server.vector.tolist() == [pytest.approx(1.0001), 1, 1]
    assert trusted_tensor(server.to_record()["count"]).tolist() == [4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "must make a torch.optim.Optimizer; got a NoneType"),
        (torch.optim.LBFGS, "got LBFGS"),
        (lambda _: torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1), "got one of other tensors"),
        (lambda ps: torch.optim.SGD([p for p in ps if p.requires_grad], lr=0.1), "do not select parameters by"),
    ],
)
def test_what_turns_out_to_be_no_fit_optimizer_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ServerModel(record_of(nn.Linear(2, 1)), (), make)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_entries_step_as_torch_lets_them(dtype: torch.dtype) -> None:
    optimizer = partial(torch.optim.Adam, lr=0.01)
    values = torch.randn(3, dtype=dtype)
    record = ArrayRecord(
        {"first": to_array(torch.ones(1)), "w": to_array(values), "c": to_array(torch.ones(2, dtype=dtype))}
    )
    server = ServerModel(record, ["c"], optimizer)
    assert server.dim == 1 + 6 + 4
    assert [array.data for array in server.to_record().values()] == [array.data for array in record.values()]
    parameter = values.clone().requires_grad_()
    reference = optimizer([parameter])
    for step in (1, 2):
        parameter.grad = torch.tensor([1 + 2j, step * 1j, -3], dtype=dtype)
        reference.step()
        server.step(torch.tensor([0, 1, 2, 0, step, -3, 0, 1, 1, 1, 1], dtype=server.vector.dtype), "gradient")
    torch.testing.assert_close(trusted_tensor(server.to_record()["w"]), parameter.detach())
    torch.testing.assert_close(trusted_tensor(server.to_record()["c"]), torch.full((2,), 3 + 2j, dtype=dtype))


def test_a_step_counts_batches_and_a_saved_model_has_the_count() -> None:
    model = normalised_model()
    server = ServerModel(record_of(model), buffer_names(model), SGD)
    for _ in range(2):
        server.step(torch.zeros(server.dim), "gradient", 5)
    again = ServerModel(record_of(model), buffer_names(model), SGD)
    again.restore(server.state())
    for each in (server, again):
        count = trusted_tensor(each.to_record()["1.num_batches_tracked"])
        assert (int(count), count.dtype, count.shape) == (10, torch.int64, ())


def test_only_a_whole_number_of_that_name_is_a_count() -> None:
    start = {
        "a.num_batches_tracked": torch.zeros((), dtype=torch.int32),
        "num_batches": torch.zeros((), dtype=torch.int64),
    }
    arrays = ArrayRecord({name: to_array(value) for name, value in {**start, "w": torch.zeros(2)}.items()})
    server = ServerModel(arrays, (), SGD)
    server.step(torch.zeros(2), "gradient", 5)
    assert [int(trusted_tensor(server.to_record()[name])) for name in start] == [0, 0]


@pytest.mark.parametrize("extra", [{"n": 3}, None])
def test_extra_state_that_is_no_tensor_is_refused_with_the_remedy(extra: object) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return extra

        def set_extra_state(self, state: Any) -> None:
            raise AssertionError

    with pytest.raises(
        ConfigurationError, match=rf"got _extra_state, a {type(extra).__name__}; let get_extra_state return"
    ):
        buffer_names(Extra(2, 1))


@pytest.mark.parametrize("found", ["of another", "a list"])
def test_what_turns_out_to_be_no_scheduler_of_the_optimizer_is_refused(found: str) -> None:
    another = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)

    def make(optimizer: torch.optim.Optimizer) -> Any:
        scheduler = torch.optim.lr_scheduler.StepLR(another if found == "of another" else optimizer, 1)
        return scheduler if found == "of another" else [scheduler]

    with pytest.raises(ConfigurationError, match="must make a scheduler of the optimizer that it is given"):
        ServerModel(record_of(nn.Linear(2, 1)), (), SGD, make)


@pytest.mark.parametrize("kind", ["SequentialLR", "ChainedScheduler"])
def test_several_schedulers_may_be_one(kind: str) -> None:
    def make(optimizer: torch.optim.Optimizer) -> Any:
        parts = [torch.optim.lr_scheduler.StepLR(optimizer, 1), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]
        if kind == "SequentialLR":
            return torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [2])
        return torch.optim.lr_scheduler.ChainedScheduler(parts)

    ServerModel(record_of(nn.Linear(2, 1)), (), SGD, make)


@pytest.mark.parametrize(
    "optimizer", [partial(torch.optim.AdamW, lr=0.1), partial(torch.optim.SGD, lr=0.1, momentum=0.9)]
)
def test_a_parameter_without_a_gradient_stays_where_it_is(optimizer: Any) -> None:
    record = ArrayRecord({"a": to_array(torch.ones(2)), "b": to_array(torch.ones(3))})
    server = ServerModel(record, (), optimizer)
    server.step(torch.ones(5), "gradient")
    before = server.vector.clone()
    server.step(torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]), "gradient", unreached={"a", "unknown"})
    assert torch.equal(server.vector[:2], before[:2])
    assert (server.vector[2:] < before[2:]).all()
