from functools import partial

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
