"""Frozen weights are never sent, and a node with different ones reports an error."""

from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import Tensor, nn

from solon_fl import ConfigurationError
from solon_fl.clients import Batch, TrainedOnly
from solon_fl.clients.trained import SUMS
from solon_fl.strategies import buffer_names
from tests.support import Regression, Remembering, initial_model, record_of, small_config, train

CONTEXT = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})


def half_frozen() -> TrainedOnly:
    """Return a model of 370 kB with 6 kB of trained weights."""
    model = nn.Sequential(nn.Linear(7, 300), nn.Linear(300, 300), nn.BatchNorm1d(300), nn.Linear(300, 1))
    model[:2].requires_grad_(False)
    return TrainedOnly(model)


def test_what_is_trained_travels_alone_and_is_trained_as_in_the_whole_model() -> None:
    model: Any = initial_model(half_frozen)
    config, client = small_config(num_nodes=7), Remembering(half_frozen)
    found, reports = train(config, client=client, model=model, rounds=2)
    assert max(report.bytes_out for report in reports) < 7 * 20_000
    assert max(report.bytes_in for report in reports) < 7 * 5_000
    whole, _ = train(config, client=Remembering(lambda: half_frozen().model), model=model.model, rounds=2)
    expected = {f"model.{name}": value for name, value in whole.arrays.to_torch_state_dict().items()}
    for name, value in found.arrays.to_torch_state_dict().items():
        assert name == SUMS or torch.equal(value, expected[name]), name


def test_a_node_with_other_frozen_weights_says_so_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Other(Remembering):
        def gradient(self, *args: Any) -> Tensor:
            context: Context = args[2]
            return (
                self.mean_gradient(args[0], args[1].batches, args[1].buffers, context)
                if context.node_id == 5
                else super().gradient(*args)
            )

        def build_model(self, context: Context) -> nn.Module:
            model = self.make_model()
            if context.node_id == 5:
                with torch.no_grad():
                    model.get_parameter("model.1.bias")[7] += 1e-6
            return model

    model = initial_model(half_frozen)
    _, (report,) = train(small_config(num_nodes=7), client=Other(half_frozen), model=model, rounds=1)
    assert "frozen weights must be the same everywhere, bit by bit; 1 of 4 are not the server's" in caplog.text
    assert "the first is '1.bias'" in caplog.text
    assert report.malformed_nodes == (5,)
    assert report.stepped


def test_a_loss_that_changes_frozen_weights_is_an_error() -> None:
    class Changing(Regression):
        def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
            with torch.no_grad():
                model.get_parameter("model.0.bias").add_(1)
            return super().batch_loss(model, batch, context)

    model = initial_model(half_frozen)
    batches = [Batch(0, 1, 0)]
    with pytest.raises(ConfigurationError, match=f"it changed '{SUMS}'"):
        Changing(half_frozen).mean_gradient(record_of(model), batches, buffer_names(model), CONTEXT)


def test_other_frozen_weights_or_none_are_refused() -> None:
    model = initial_model(half_frozen)
    state = model.state_dict()
    model.load_state_dict(state)
    with pytest.raises(ConfigurationError, match=r"which this one has 4; got sums_of_frozen_weights of 3 of them"):
        model.load_state_dict({**state, SUMS: state[SUMS][:3]})
    with pytest.raises(ConfigurationError, match="got sums_of_frozen_weights of none"):
        model.load_state_dict({name: value for name, value in state.items() if name != SUMS})
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*model\.3\.bias"):
        model.load_state_dict({name: value for name, value in state.items() if name != "model.3.bias"})


def test_a_model_without_frozen_weights_is_whole() -> None:
    model = TrainedOnly(nn.Linear(3, 1))
    assert list(model.state_dict()) == ["model.weight", "model.bias", SUMS]
    model.load_state_dict(model.state_dict())
    assert torch.equal(model(torch.ones(2, 3)), model.model(torch.ones(2, 3)))


def test_writes_that_torch_does_not_count_are_found_when_a_state_is_loaded() -> None:
    model = half_frozen()
    state = model.state_dict()
    weight = model.get_parameter("model.1.weight")
    weight.data.mul_(2)  # as PEFT's merge_adapter does
    with pytest.raises(ConfigurationError, match=r"the first is '1\.weight'"):
        model.load_state_dict(state)
    weight.data.div_(2)
    model.load_state_dict(state)


@pytest.mark.parametrize(("wrap", "prefix"), [(nn.Sequential, "0."), (nn.DataParallel, "module.")])
def test_within_another_module_it_loads_its_own_state(wrap: Any, prefix: str) -> None:
    inner = half_frozen()
    whole = wrap(inner)
    frozen = {name: (value.data_ptr(), value._version) for name, value in inner.frozen().items()}
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    bias = inner.get_parameter("model.3.bias")
    bias.data.add_(1)
    whole.load_state_dict(state)
    assert torch.equal(bias, state[f"{prefix}model.3.bias"])
    assert {name: (value.data_ptr(), value._version) for name, value in inner.frozen().items()} == frozen
    with pytest.raises(RuntimeError, match=rf"Missing key\(s\).*: \"{prefix}model\.3\.bias\"\. $"):
        whole.load_state_dict({name: value for name, value in state.items() if not name.endswith("3.bias")})


def test_all_may_be_unfrozen_later() -> None:
    model = half_frozen()
    model.state_dict()
    state = model.requires_grad_(True).state_dict()
    assert (state[SUMS].shape, state[SUMS].dtype) == ((0,), torch.int64)
    model.load_state_dict(state)
