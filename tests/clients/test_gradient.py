"""Gradients of models with unusual state."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from flwr.app import ConfigRecord, Context, RecordDict
from torch import Tensor, nn

from solon_fl.clients import Batch, SolonTask
from solon_fl.clients.gradient import change_of, flatten
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.strategies import RoundReport, SolonStrategy, buffer_names
from tests.support import Regression, initial_model, record_of, small_config, train, vector_of

CONTEXT = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
ONE_GROUP = SolonConfig(num_nodes=7, byzantine=2, compression=3)


class Client(Regression):
    """Regression with a loss that the test defines."""

    def __init__(self, make_model: Callable[[], nn.Module], loss: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__(make_model)
        self.loss = loss

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        return self.loss(model, torch.randn(8, 7, generator=batch.generator()).to(next(model.parameters()).device))


def squared(model: nn.Module, inputs: Tensor) -> Tensor:
    loss: Tensor = (model(inputs) - inputs.sum(1, keepdim=True)).abs().square().mean()
    return loss


def task_for(model: nn.Module, config: SolonConfig = ONE_GROUP) -> SolonTask:
    dim = len(flatten(model.state_dict()))
    return SolonTask.of_run(config, 1, group=0, slot=0, dim=dim, buffers=buffer_names(model))


def alone(client: Client, model: nn.Module, rate: float, rounds: int) -> Tensor:
    """Return the model's entries after the same rounds in plain torch, as they are on the server."""
    twin = client.make_model()
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=rate)
    for server_round in range(1, rounds + 1):
        optimizer.zero_grad()
        for number in range(ONE_GROUP.batches_per_group):
            batch = Batch(ONE_GROUP.seed, server_round, number)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(batch.torch_seed)
                (client.batch_loss(twin, batch, CONTEXT) / ONE_GROUP.batches_per_group).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return vector_of(record_of(twin))


def together(
    client: Client, model: nn.Module, rate: float, rounds: int, mode: str = "gradient"
) -> tuple[Tensor, list[RoundReport]]:
    """Return the model's entries after rounds with seven honest nodes, and the reports."""
    reports: list[RoundReport] = []
    config = SolonConfig(num_nodes=7, byzantine=2, compression=3, mode=mode, on_group_failure="stop")  # type: ignore[arg-type]
    optimizer = partial(torch.optim.SGD, lr=rate if mode == "gradient" else 1.0)
    strategy = SolonStrategy(config, optimizer, buffers=buffer_names(model), on_round=reports.append)
    grid = InProcessGrid(client.client_app(), 7)
    result = strategy.start(
        grid, record_of(model), num_rounds=rounds, timeout=60, train_config=ConfigRecord({"lr": rate})
    )
    return vector_of(result.arrays), reports


class Centred(nn.Module):
    """Tracks the mean of its inputs in a buffer that forward rebinds."""

    def __init__(self, mean: Tensor | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 1)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(7) if mean is None else mean)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0)
        result: Tensor = self.layer(inputs - self.mean)
        return result


def test_a_buffer_that_forward_binds_anew_follows_the_batches() -> None:
    client, model = Client(Centred, squared), initial_model(Centred)
    found, _ = together(client, model, 0.01, rounds=3)
    torch.testing.assert_close(found, alone(client, model, 0.01, rounds=3), rtol=1e-4, atol=1e-5)


def codebook() -> nn.Module:
    class Codebook(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(7, 1)
            self.codes = nn.Parameter(torch.zeros(7), requires_grad=False)

        def forward(self, inputs: Tensor) -> Tensor:
            self.codes = nn.Parameter(self.codes + inputs.mean(0), requires_grad=False)
            result: Tensor = self.layer(inputs)
            return result

    return Codebook()


def test_a_frozen_weight_that_forward_replaces_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"must not change frozen weights.*'codes'.*buffers=tuple"):
        gradient_of(codebook, squared)


def test_a_weight_without_gradient_follows_if_the_server_takes_none_for_frozen() -> None:
    client, model = Client(codebook, squared), initial_model(codebook)
    task = replace(task_for(model), buffers=tuple(buffer_names(model)))
    vector = client.gradient(record_of(model), task, CONTEXT, {})
    batches = task.batches
    expected = sum(torch.randn(8, 7, generator=batch.generator()).mean(0) for batch in batches)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(vector[:7].cpu(), expected, rtol=1e-5, atol=1e-6)


def test_a_parameter_that_batch_loss_replaces_is_named() -> None:
    def replace(model: nn.Module, inputs: Tensor) -> Tensor:
        model.register_parameter("bias", nn.Parameter(torch.zeros(1, device=inputs.device)))
        return squared(model, inputs)

    client, model = Client(lambda: nn.Linear(7, 1), replace), initial_model()
    with pytest.raises(ConfigurationError, match=r"must not replace parameters.*'bias'"):
        client.gradient(record_of(model), task_for(model), CONTEXT, {})


def test_a_buffer_that_changes_its_shape_is_named() -> None:
    def grow(model: nn.Module, inputs: Tensor) -> Tensor:
        model.mean = torch.zeros(1, 7, device=inputs.device)
        return squared(model, inputs)

    client, model = Client(Centred, grow), initial_model(Centred)
    grown = "batch_loss changed that of 'mean' from \\(7,\\) to \\(1, 7\\)"
    with pytest.raises(ConfigurationError, match=grown):
        client.gradient(record_of(model), task_for(model), CONTEXT, {})


class Attention(nn.Module):
    """Each value attends to those before it, with a mask of -inf as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.values = nn.Linear(7, 49), nn.Linear(7, 7)
        self.mask: Tensor
        self.register_buffer("mask", torch.full((7, 7), -torch.inf).triu(1))

    def forward(self, inputs: Tensor) -> Tensor:
        weights = (self.scores(inputs).view(-1, 7, 7) + self.mask).softmax(-1)
        result: Tensor = (weights @ self.values(inputs).unsqueeze(-1)).sum(1)
        return result


@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_a_mask_of_infinities_does_not_spoil_the_shares(mode: str) -> None:
    client, model = Client(Attention, squared), initial_model(Attention)
    found, reports = together(client, model, 0.01, rounds=2, mode=mode)
    assert all(group.status == "clean" for report in reports for group in report.groups)
    if mode == "gradient":
        torch.testing.assert_close(found, alone(client, model, 0.01, rounds=2), rtol=1e-4, atol=1e-5)


def test_what_becomes_infinite_is_not_hidden() -> None:
    before = torch.tensor([1.0, -torch.inf, torch.nan, 2.0, torch.inf])
    after = torch.tensor([1.5, -torch.inf, torch.nan, torch.inf, torch.nan])
    torch.testing.assert_close(
        change_of(after, before), torch.tensor([0.5, 0, 0, torch.inf, torch.nan]), equal_nan=True
    )


class Spectral(nn.Module):
    """Complex weights, as in Fourier neural operators, beside an odd number of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 1, bias=False)
        self.weight = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.phase: Tensor
        self.register_buffer("phase", torch.zeros(4, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(inputs)
        with torch.no_grad():
            self.phase += spectrum.mean(0)
        result: Tensor = self.layer(torch.fft.irfft(spectrum * self.weight, n=7))
        return result


@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_complex_parameters_and_buffers_are_trained(mode: str) -> None:
    client, model = Client(Spectral, squared), initial_model(Spectral)
    assert buffer_names(model) == ("phase",)
    found, _ = together(client, model, 0.01, rounds=3, mode=mode)
    before = vector_of(record_of(model))
    assert (found == before).sum() <= 2  # the imaginary parts of the weight and of the phase at frequency 0
    if mode == "gradient":
        torch.testing.assert_close(found, alone(client, model, 0.01, rounds=3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_torchs_defaults_disturb_neither_server_nor_nodes(dtype: torch.dtype, device: str) -> None:
    def make_model() -> nn.Module:
        return nn.Linear(7, 1, dtype=torch.float32, device="cpu")

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        chosen = batch.sample(100, 8)
        inputs = torch.arange(700, dtype=torch.float32, device="cpu").view(100, 7)[chosen].remainder(3)
        return squared(model, inputs.to(next(model.parameters()).device))

    class Sampling(Regression):
        def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
            return loss(model, batch)

    model = initial_model(make_model)
    config = small_config(redundancy="reactive")
    expected, _ = train(config, client=Sampling(make_model), model=model, rounds=2, projection_seed=1)
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        mods = [attack_mod(Reverse(), {1, 3, 9, 13})]
        found, reports = train(config, client=Sampling(make_model), model=model, rounds=2, mods=mods, projection_seed=1)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    torch.testing.assert_close(vector_of(found.arrays), vector_of(expected.arrays), rtol=1e-5, atol=1e-6)
    assert {node for report in reports for node in report.corrupt_nodes} == {2, 4, 10, 14}


def in_halves(model: nn.Module, inputs: Tensor) -> Tensor:
    """Compute the gradient of one half in `batch_loss`, as users do to save memory."""
    (squared(model, inputs[:4]) / 2).backward()  # type: ignore[no-untyped-call]  # torch's
    return squared(model, inputs[4:]) / 2


@pytest.mark.parametrize("set_to_none", [True, False, None])
def test_what_batch_loss_does_with_gradients_is_no_matter(set_to_none: bool | None) -> None:
    def as_in_a_training_loop(model: nn.Module, inputs: Tensor) -> Tensor:
        if set_to_none is None:
            return in_halves(model, inputs)
        model.zero_grad(set_to_none=set_to_none)
        return squared(model, inputs)

    model = initial_model()
    found, expected = (
        Client(lambda: nn.Linear(7, 1), loss).gradient(record_of(model), task_for(model), CONTEXT, {})
        for loss in (as_in_a_training_loop, squared)
    )
    torch.testing.assert_close(found, expected)
    assert set_to_none is None or torch.equal(found, expected)


class RandomFeatures(nn.Module):
    """Has constants outside its state_dict, drawn when it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.randn(7, 5)
        self.layer = nn.Linear(5, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.layer((inputs @ self.features.to(inputs.device)).sin())
        return result


class Inspected(Client):
    """Evaluates to a number that depends on the constants."""

    def evaluate(self, model: nn.Module, context: Context) -> dict[str, float]:
        assert isinstance(model, RandomFeatures)
        return {"features": float(model.features.sum())}


def test_random_constants_are_the_same_on_all_nodes_and_in_evaluation() -> None:
    client, model = Inspected(RandomFeatures, squared), initial_model(RandomFeatures)
    config = small_config(seed=5)
    result, reports = train(config, client=client, model=model, rounds=2, client_evaluation=True)
    assert all(group.status == "clean" for report in reports for group in report.groups)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = float(RandomFeatures().features.sum())
    assert [metrics["features"] for metrics in result.evaluate_metrics_clientapp.values()] == [expected, expected]


class HalfUsed(nn.Module):
    """Has a layer that forward never uses."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.used, self.left_out = nn.Linear(7, 1), nn.Linear(7, 3)
        self.left_out.requires_grad_(not frozen)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.used(inputs)
        return result


@pytest.mark.parametrize("frozen", [False, True])
def test_parameters_that_no_loss_reaches_stay_and_are_named_once_unless_they_are_frozen(
    frozen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    make_model = partial(HalfUsed, frozen)
    model = initial_model(make_model)
    decaying = partial(torch.optim.SGD, lr=0.1, weight_decay=0.5)
    result, _ = train(client=Regression(make_model), model=model, rounds=2, optimizer=decaying)
    named = "depends on 2 parameters in this round (left_out.weight, left_out.bias)"
    assert caplog.text.count(named) == (0 if frozen else 1)
    change = result.arrays["left_out.weight"].numpy() - model.state_dict()["left_out.weight"].numpy()
    assert not change.any()


# Changes that a gradient can't express


def gradient_of(make_model: Callable[[], nn.Module], loss: Callable[[nn.Module, Tensor], Tensor] = squared) -> Tensor:
    client, model = Client(make_model, loss), initial_model(make_model)
    return client.mean_gradient(record_of(model), task_for(model).batches, buffer_names(model), CONTEXT)


def clamping(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        next(model.parameters()).clamp_(-0.1, 0.1)
    return squared(model, inputs)


def norming(model: nn.Module, inputs: Tensor) -> Tensor:
    assert isinstance(model, nn.Embedding)
    return model(inputs.abs().long().clamp(max=6)).square().mean()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make_model", "loss"),
    [(lambda: nn.Linear(7, 1), clamping), (lambda: nn.Embedding(7, 3, max_norm=0.1), norming)],
    ids=["clamped", "max_norm"],
)
def test_weights_that_the_loss_changes_in_place_are_named(
    make_model: Callable[[], nn.Module], loss: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    with pytest.raises(ConfigurationError, match=r"must not change parameters in place.*'weight'"):
        gradient_of(make_model, loss)


def test_a_weight_that_is_not_finite_has_not_changed() -> None:
    def broken() -> nn.Module:
        model = nn.Linear(7, 1)
        with torch.no_grad():
            model.weight[0, 0] = torch.nan
        return model

    assert gradient_of(broken).isnan().any()


def test_a_frozen_layer_that_the_loss_lets_train_is_named() -> None:
    def make_model() -> nn.Module:
        model = nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 1))
        model[0].requires_grad_(False)
        return model

    def thawing(model: nn.Module, inputs: Tensor) -> Tensor:
        return squared(model.requires_grad_(True), inputs)

    with pytest.raises(ConfigurationError, match=r"treats '0\.weight' as an entry that no gradient moves"):
        gradient_of(make_model, thawing)


def test_a_layer_that_is_frozen_for_a_part_of_the_loss_keeps_the_gradient_of_the_other() -> None:
    """As in a GAN: the discriminator's loss, then the generator's through a frozen discriminator."""

    def make_model() -> nn.Module:
        return nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 1))

    def taking_turns(model: nn.Module, inputs: Tensor) -> Tensor:
        assert isinstance(model, nn.Sequential)
        model[1].requires_grad_(True)
        (model(inputs).square().mean() - model[1](inputs).mean()).backward(inputs=list(model[1].parameters()))
        model[1].requires_grad_(False)
        loss: Tensor = -model(inputs).mean()
        return loss

    model = initial_model(make_model)
    expected = torch.zeros(64)
    batches = task_for(model).batches
    for batch in batches:
        model.zero_grad()
        taking_turns(model, torch.randn(8, 7, generator=batch.generator())).backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in model.parameters()]
        expected += torch.cat([g.reshape(-1) for g in gradients if g is not None]) / len(batches)
    torch.testing.assert_close(gradient_of(make_model, taking_turns).cpu(), expected)


class Extremes(nn.Module):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 1)
        self.least: Tensor
        self.register_buffer("least", torch.full((7,), start))

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            self.least = torch.minimum(self.least, inputs.amin(0))
        return self.layer(inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize("start", [1e30, torch.inf])
def test_a_buffer_whose_change_does_not_say_what_it_is_is_named(start: float) -> None:
    with pytest.raises(ConfigurationError, match=r"'least' starts at (1e\+30|inf), too far"):
        gradient_of(lambda: Extremes(start))
    assert gradient_of(lambda: Extremes(100.0)).isfinite().all()


def test_a_buffer_that_is_resized_in_place_is_named() -> None:
    class Resizing(Extremes):
        def forward(self, inputs: Tensor) -> Tensor:
            self.least.resize_(9)
            return self.layer(inputs)  # type: ignore[no-any-return]

    with pytest.raises(ConfigurationError, match=r"batch_loss changed that of 'least' from \(7,\) to \(9,\)"):
        gradient_of(lambda: Resizing(1.0))


def test_tensors_that_share_memory_are_named() -> None:
    class Tied(nn.Module):
        def __init__(self, same: bool) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(7, 7), nn.Linear(7, 7)
            self.outer.weight = self.inner.weight if same else nn.Parameter(self.inner.weight.data.t())

    assert buffer_names(Tied(same=True)) == ()
    with pytest.raises(ConfigurationError, match=r"'inner\.weight' and 'outer\.weight' do; tie them by assigning"):
        buffer_names(Tied(same=False))
    assert buffer_names(nn.LSTM(3, 4, num_layers=2, bidirectional=True)) == ()


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda model, inputs: None, "got None"),
        (lambda model, inputs: (squared(model, inputs), 1), r"got \(tensor"),
        (lambda model, inputs: squared(model, inputs).item(), r"got \d"),
        (lambda model, inputs: squared(model, inputs).detach(), r"shape=\(\), requires_grad=False"),
        (lambda model, inputs: model(inputs), r"shape=\(8, 1\), requires_grad=True"),
    ],
)
@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_what_is_no_loss_is_refused(loss: Callable[[nn.Module, Tensor], Tensor], got: str, mode: str) -> None:
    with pytest.raises(Exception, match=f"batch_loss must return the batch's mean loss, .*{got}"):
        together(Client(lambda: nn.Linear(7, 1), loss), initial_model(), 0.1, 1, mode)


def test_a_loss_is_not_shown_unless_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Showing it would make every batch wait for the GPU."""
    monkeypatch.setattr(Tensor, "__repr__", lambda self: pytest.fail("a loss was shown"))
    gradient_of(lambda: nn.Linear(7, 1))
