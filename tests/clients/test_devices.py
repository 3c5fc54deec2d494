"""A node sends the same bits for any number of devices.

Copies of a model on a single device stand in for several devices. Copying between them, the order of additions and
the batches of each copy are the same.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from solon_fl.clients import Batch, SolonTask
from solon_fl.clients.determinism import deterministic
from solon_fl.clients.gradient import flatten
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.strategies import buffer_names
from solon_fl.wire import is_continuous, real_view
from tests.support import Regression, initial_model, record_of, small_config, train

CONTEXT = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
Loss = Callable[[nn.Module, Tensor], Tensor]


def squared(model: nn.Module, inputs: Tensor) -> Tensor:
    loss: Tensor = (model(inputs) - inputs.sum(1, keepdim=True)).abs().square().mean()
    return loss


def in_parts(model: nn.Module, inputs: Tensor) -> Tensor:
    """Compute the gradients of two parts in `batch_loss`, as users do to save memory."""
    for part in inputs[:4].chunk(2):
        (squared(model, part) / 4).backward()  # type: ignore[no-untyped-call]  # torch's
    return squared(model, inputs[4:]) / 2


class OnDevices(Regression):
    """Computes on the node's devices, or on the first of them under several names."""

    def __init__(self, make_model: Callable[[], nn.Module], loss: Loss = squared, number: int | None = None) -> None:
        super().__init__(make_model)
        self.loss, self.number = loss, number
        self.computed: list[tuple[int, int]] = []  # model and batch

    def devices(self) -> Sequence[torch.device]:
        devices = super().devices()
        return devices if self.number is None else [devices[0]] * self.number

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        self.computed.append((id(model), batch.number))
        assert self.device() == next(model.parameters()).device
        inputs = torch.randn(8, 7, generator=batch.generator())
        return self.loss(model, inputs.to(next(model.parameters()).device))


def task_for(model: nn.Module, num_batches: int = 7) -> SolonTask:
    """Return a task whose number of batches is no multiple of any number of devices used here."""
    config = SolonConfig(num_nodes=7, byzantine=2, compression=3, batches_per_group=num_batches)
    dim = len(flatten(model.state_dict()))
    names = tuple(buffer_names(model))  # no entry is frozen, as some models here change entries without a gradient
    return SolonTask.of_run(config, 1, group=0, slot=0, dim=dim, buffers=names)


def vector_on(make_model: Callable[[], nn.Module], loss: Loss, number: int | None, num_batches: int = 7) -> Tensor:
    """Return the mean gradient and the buffers' change from a node with this many devices."""
    model = initial_model(make_model)
    task = task_for(model, num_batches)
    client = OnDevices(make_model, loss, number)
    return client.mean_gradient(record_of(model), task.batches, task.buffers, CONTEXT).cpu()


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 1))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 1))


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 9), nn.Dropout(0.5), nn.Linear(9, 1))


class Tied(nn.Module):
    """One weight under two names, used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(7, 7), nn.Linear(7, 7)
        self.outer.weight = self.inner.weight

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.outer(torch.tanh(self.inner(inputs))))
        result: Tensor = (hidden @ self.inner.weight).sum(1, keepdim=True)
        return result


class Checkpointed(Tied):
    """Adds to a weight's gradient several times in one backward pass."""

    def forward(self, inputs: Tensor) -> Tensor:
        forward = super().forward
        return torch.cat([checkpoint(forward, part, use_reentrant=True) for part in inputs.requires_grad_().chunk(4)])


class Numbers(nn.Module):
    """Complex weights, a complex buffer, float64 and float16 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.layer, self.last = nn.Linear(7, 3, dtype=torch.float16), nn.Linear(3, 1, dtype=torch.float64)
        self.phase: Tensor
        self.register_buffer("phase", torch.zeros(4, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(inputs)
        with torch.no_grad():
            self.phase += spectrum.mean(0)
        hidden = torch.fft.irfft((spectrum - 0.1 * self.phase) * self.weight, n=7)
        result: Tensor = self.last(self.layer(hidden.half()).double())
        return result


class Following(nn.Module):
    """Has all kinds of state that forward changes and that affect the next batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 1)
        self.codes = nn.Parameter(torch.zeros(7), requires_grad=False)
        self.mean: Tensor
        self.steps: Tensor
        self.latest: Tensor | None
        self.register_buffer("mean", torch.zeros(7))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("latest", None, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0)
            self.codes = nn.Parameter(0.5 * self.codes + inputs.amax(0), requires_grad=False)
            self.steps += 1
            before = torch.zeros(1, device=inputs.device) if self.latest is None else self.latest
            self.latest = inputs.mean(0)[: 1 + int(self.steps)].clone()  # a different shape each time
        result: Tensor = self.layer(inputs - self.mean - self.codes) * self.steps + before.sum()
        return result


class HalfUsed(nn.Module):
    """Has a layer that forward never uses, and one that only some batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.sometimes, self.idle = nn.Linear(7, 1), nn.Linear(7, 1), nn.Linear(7, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.used(inputs)
        return result + self.sometimes(inputs) if inputs[0, 0] > 0 else result


MODELS: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "plain": (plain, squared),
    "batch-norm": (normalised, squared),
    "dropout": (with_dropout, squared),
    "tied": (Tied, squared),
    "numbers": (Numbers, squared),
    "following": (Following, squared),
    "half-used": (HalfUsed, squared),
    "in-parts": (plain, in_parts),
    "tied-in-parts": (Tied, in_parts),
    "checkpointed": (Checkpointed, squared),
}


@pytest.mark.parametrize("number", [2, 3, 4, 9, None])
@pytest.mark.parametrize("name", MODELS)
def test_a_node_computes_the_same_bits_on_any_number_of_devices(name: str, number: int | None) -> None:
    make_model, loss = MODELS[name]
    assert torch.equal(vector_on(make_model, loss, number), vector_on(make_model, loss, 1))


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_the_bits_are_those_of_accumulation_in_plain_torch(name: str, number: int) -> None:
    make_model, loss = MODELS[name]
    client = OnDevices(make_model, loss)
    model = initial_model(make_model).to(client.devices()[0]).train()
    before = flatten({name: value.clone() for name, value in model.state_dict().items()})
    for batch in task_for(model).batches:
        with deterministic(batch.torch_seed, client.devices()[0]):
            client.batch_loss(model, batch, CONTEXT).backward()  # type: ignore[no-untyped-call]  # torch's
    state, names = model.state_dict(keep_vars=True), buffer_names(model)
    gradients = flatten({n: torch.zeros_like(v) if v.grad is None else v.grad for n, v in state.items()}).to(before)
    coded = {n: real_view(v.detach()) for n, v in state.items() if is_continuous(v)}
    is_buffer = torch.cat([torch.full((v.numel(),), n in names) for n, v in coded.items()])
    expected = torch.where(is_buffer, (flatten(state) - before).cpu(), gradients.cpu() * (1 / 7))
    found = vector_on(make_model, loss, number)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    if loss is not in_parts:  # torch adds the parts of a batch to the sum, a node adds them to each other
        assert torch.equal(found[~is_buffer], expected[~is_buffer])


def test_the_devices_take_the_batches_in_turn() -> None:
    client = OnDevices(plain, number=3)
    train(small_config(num_nodes=7, batches_per_group=7), client=client, model=initial_model(plain), rounds=1)
    taken = client.computed[:7]  # by the first node
    assert [number for _, number in taken] == list(range(7))
    models = [model for model, _ in taken]
    assert len(set(models)) == 3
    assert models == (models[:3] * 3)[:7]


def test_no_model_is_copied_for_devices_that_no_batch_is_left_for() -> None:
    class NotToBeCopied(nn.Linear):
        def __deepcopy__(self, memo: object) -> "NotToBeCopied":
            raise AssertionError("copied")

    vector_on(lambda: NotToBeCopied(7, 1), squared, number=4, num_batches=1)


def test_the_gradients_of_one_device_are_written_in_place() -> None:
    """Autograd adds to the vector that is encoded, so there is no second vector."""
    seen: list[Tensor] = []

    def looking(model: nn.Module, inputs: Tensor) -> Tensor:
        model.get_parameter("weight").register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]  # torch's
            lambda value: seen.append(value.grad)
        )
        return squared(model, inputs)

    model = initial_model()
    task = task_for(model)
    vector = OnDevices(lambda: nn.Linear(7, 1), looking).gradient(record_of(model), task, CONTEXT, {})
    assert {gradient.data_ptr() for gradient in seen} == {vector.data_ptr()}


def test_unreached_parameters_are_those_that_no_device_reached(caplog: pytest.LogCaptureFixture) -> None:
    class Never(HalfUsed):
        def __init__(self) -> None:
            super().__init__()
            self.never = nn.Linear(7, 2)

    vector_on(Never, squared, number=3)
    assert "4 parameters in this round (idle.weight, idle.bias, never.weight, never.bias)" in caplog.text


def test_local_steps_take_the_first_device_alone() -> None:
    client = OnDevices(plain, number=3)
    model = initial_model(plain)
    client.update(record_of(model), task_for(model), CONTEXT, {"lr": 0.1})
    assert len({model for model, _ in client.computed}) == 1


def test_a_node_without_a_device_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"devices\(\) must return at least one device; got \[\]"):
        vector_on(plain, squared, number=0)


def test_a_parameter_that_a_later_device_replaces_is_named() -> None:
    calls = []

    def replace(model: nn.Module, inputs: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            model.register_parameter("bias", nn.Parameter(torch.zeros(1, device=inputs.device)))
        return squared(model, inputs)

    with pytest.raises(ConfigurationError, match="it replaced 'bias'"):
        vector_on(lambda: nn.Linear(7, 1), replace, number=2)


def test_a_loss_is_told_the_device_of_its_batch() -> None:
    """Two different names of the CPU."""
    told = []

    class Asking(OnDevices):
        def devices(self) -> Sequence[torch.device]:
            return [torch.device("cpu"), torch.device("cpu", 0)]

        def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
            told.append(self.device())
            return squared(model, torch.ones(8, 7))

    client, model = Asking(plain), initial_model(plain)
    client.gradient(record_of(model), task_for(model, 4), CONTEXT, {})
    assert told == [torch.device("cpu"), torch.device("cpu", 0)] * 2
    assert client.device() == torch.device("cpu")
