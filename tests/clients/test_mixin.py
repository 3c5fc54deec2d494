import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor, nn

from solon_fl.clients import Batch, SolonClientMixin, SolonTask
from solon_fl.clients.gradient import flatten
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.simulations.run._compat import become_server
from solon_fl.strategies import buffer_names
from tests.support import Regression, initial_model, record_of, small_config, train, vector_of

CONTEXT = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def task_for(model: nn.Module, **changes: Any) -> SolonTask:
    values: dict[str, Any] = {
        "round": 1,
        "group": 0,
        "slot": 2,
        "seed": 0,
        "num_batches": 3,
        "groups_sharing_data": 2,
        "dim": len(flatten(model.state_dict())),
        "mode": "gradient",
        "code": "fourier",
        "compression": 3,
        "group_size": 7,
        "buffers": buffer_names(model),
    }
    return SolonTask(**{**values, **changes})


def normalised_model() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, 1))


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(7, 7, bias=False)
        self.outer = nn.Linear(7, 7, bias=False)
        self.outer.weight = self.inner.weight

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.outer(torch.tanh(self.inner(inputs))).sum(1, keepdim=True)
        return result


def frozen_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 1))
    model.get_parameter("0.weight").requires_grad = False
    return model


def mixed_model() -> nn.Module:
    """A float64 layer after a float32 one."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(7, 3), nn.Linear(3, 1).double()

        def forward(self, inputs: Tensor) -> Tensor:
            result: Tensor = self.last(self.first(inputs).double())
            return result

    return Mixed()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, 1),
    "batch-norm-and-dropout": normalised_model,
    "tied": Tied,
    "frozen": frozen_model,
    "mixed": mixed_model,
}


def reference(model: nn.Module, client: Regression, task: SolonTask) -> Tensor:
    """The vector computed with autograd.grad and the buffers' change, on the client's device."""
    model = copy.deepcopy(model).to(client.devices()[0]).train()
    before = flatten(model.state_dict(), task.frozen).clone()
    state = model.state_dict(keep_vars=True)
    names = [name for name, value in state.items() if value.requires_grad]
    sums = {name: torch.zeros_like(state[name]) for name in names}
    for batch in task.batches:
        torch.manual_seed(batch.torch_seed)  # seeds the CPU and all GPUs, because dropout draws on its device
        loss = client.batch_loss(model, batch, CONTEXT)
        for name, gradient in zip(names, torch.autograd.grad(loss, [state[n] for n in names]), strict=True):
            sums[name] += gradient
    change = flatten(model.state_dict(), task.frozen) - before
    every = {n: sums.get(n, torch.zeros_like(v)) for n, v in state.items() if v.is_floating_point()}
    gradients = flatten(every, task.frozen)
    return gradients / task.num_batches + change


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_the_mean_over_the_batches(name: str) -> None:
    model, client = initial_model(MODELS[name]), Regression(MODELS[name])
    task = task_for(model)
    vector = client.mean_gradient(record_of(model), task.batches, task.buffers, CONTEXT)
    gpus = [client.devices()[0]] if client.devices()[0].type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.testing.assert_close(vector, reference(model, client, task), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_nodes_of_a_group_compute_the_same_bits_whatever_went_before(name: str) -> None:
    model, client = initial_model(MODELS[name]), Regression(MODELS[name])
    first = client.gradient(record_of(model), task_for(model), CONTEXT, {})
    torch.manual_seed(123)
    assert torch.equal(first, client.gradient(record_of(model), task_for(model), CONTEXT, {}))


def test_the_global_random_state_is_left_alone() -> None:
    model = initial_model(normalised_model)
    before = torch.get_rng_state()
    Regression(normalised_model).gradient(record_of(model), task_for(model), CONTEXT, {})
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["batch-norm-and-dropout", "tied", "frozen", "mixed"])
def test_every_kind_of_model_trains_and_is_protected(name: str) -> None:
    model, client = initial_model(MODELS[name]), Regression(MODELS[name])
    honest = train(small_config(), client=client, model=model, rounds=3)[0]
    attacked, reports = train(
        small_config(), client=client, model=model, rounds=3, mods=[attack_mod(Reverse(), {1, 3, 9, 13})]
    )
    torch.testing.assert_close(vector_of(attacked.arrays), vector_of(honest.arrays), rtol=1e-4, atol=1e-5)
    assert all(report.corrupt_nodes == (2, 4, 10, 14) for report in reports)
    before = {name: array.numpy() for name, array in record_of(model).items()}
    moved = {name for name, array in honest.arrays.items() if (array.numpy() != before[name]).any()}
    may_stand_still = {"frozen": {"0.weight"}, "batch-norm-and-dropout": {"0.bias", "1.num_batches_tracked"}}
    assert set(before) - moved <= may_stand_still.get(name, set())
    if name == "tied":  # two entries on the server, which move together up to the rounding of a decode
        inner, outer = (torch.from_numpy(honest.arrays[f"{entry}.weight"].numpy()) for entry in ("inner", "outer"))
        torch.testing.assert_close(inner, outer, rtol=1e-5, atol=1e-6)


def test_batch_norm_statistics_are_the_average_of_the_groups() -> None:
    model, client = initial_model(normalised_model), Regression(normalised_model)
    result, _ = train(small_config(), client=client, model=model, rounds=1)
    tasks = [task_for(model, group=group, num_batches=7) for group in (0, 1)]
    changes = [client.gradient(record_of(model), task, CONTEXT, {}).cpu() for task in tasks]
    start = 36 + 6 + 6 + 6  # after the first layer and the normalisation's weight and bias, padded to a multiple of 3
    expected = sum(change[start : start + 5] for change in changes) / 2
    assert isinstance(expected, Tensor)
    running_mean = torch.from_numpy(result.arrays["1.running_mean"].numpy())
    torch.testing.assert_close(running_mean, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("server_model", "buffers", "message"),
    [
        (nn.Linear(7, 1, bias=False), (), r"differ in \['bias'\]"),
        (nn.Linear(7, 1), ("weight",), r"buffers are \[\], but the server was told \['weight'\]"),
    ],
)
def test_a_server_with_another_model_is_refused(
    server_model: nn.Module, buffers: tuple[str, ...], message: str
) -> None:
    task = task_for(server_model, buffers=buffers)
    with pytest.raises(ConfigurationError, match=message):
        Regression().gradient(record_of(server_model), task, CONTEXT, {})


def test_a_vector_of_another_length_is_refused() -> None:
    class Short(Regression):
        def gradient(self, *_: Any) -> Tensor:
            return torch.zeros(5)

    become_server()
    model = initial_model()
    content = RecordDict({"arrays": record_of(model), "solon": task_for(model).to_record()})
    with pytest.raises(ConfigurationError, match="dim=8 floating-point entries that are not frozen; got a vector of 5"):
        Short().train(Message(content, 1, MessageType.TRAIN), CONTEXT)


@pytest.mark.parametrize("keeps_state", [False, True])
def test_a_node_trains_with_an_empty_state_unless_it_is_kept(keeps_state: bool) -> None:
    seen = []

    class Looking(Regression):
        def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
            seen.append("mine" in context.state)
            context.state["mine"] = MetricRecord({"x": 1})
            return super().batch_loss(model, batch, context)

    client = Looking()
    client.keeps_state = keeps_state
    train(small_config(batches_per_group=1), client=client, rounds=2)
    assert seen == [False] * 14 + [keeps_state] * 14


def test_local_steps_need_a_learning_rate() -> None:
    model = initial_model()
    with pytest.raises(ConfigurationError, match="lr=None"):
        Regression().update(record_of(model), task_for(model, mode="update"), CONTEXT, {})


def test_what_a_user_must_define_is_named() -> None:
    class Nothing(SolonClientMixin):
        pass

    with pytest.raises(NotImplementedError, match="Nothing must define build_model"):
        Nothing().build_model(CONTEXT)
    with pytest.raises(NotImplementedError, match="Nothing must define batch_loss"):
        Nothing().batch_loss(nn.Linear(1, 1), Batch(0, 1, 0), CONTEXT)
    with pytest.raises(NotImplementedError, match="Nothing must define evaluate"):
        Nothing().evaluate(nn.Linear(1, 1), CONTEXT)


def test_the_whole_gradient_can_be_overridden() -> None:
    class ByHand(Regression):
        def gradient(self, arrays: Any, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
            assert config["server-round"] == task.round
            return torch.arange(8.0)

    result, _ = train(client=ByHand(), rounds=1)
    moved = vector_of(record_of(initial_model())) - vector_of(result.arrays)
    torch.testing.assert_close(moved, 0.1 * torch.arange(8.0).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("category", "method"),
    [("train", "SolonClientMixin.gradient"), ("evaluate", r"SolonClientMixin.evaluate\(model, context\)")],
)
def test_a_second_function_of_a_kind_is_refused_with_the_remedy(category: str, method: str) -> None:
    app = Regression().client_app()
    with pytest.raises(
        ConfigurationError, match=rf'a second @app.{category}\(\); override {method}.*@app.{category}\("mine"\)'
    ):
        getattr(app, category)()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nodes_compute_gradients_whatever_mode_the_program_is_in(mode: Any) -> None:
    expected = vector_of(train(client=Regression(), rounds=2)[0].arrays)
    with mode():
        found = train(client=Regression(), rounds=2)[0].arrays
    assert torch.equal(vector_of(found), expected)


@pytest.mark.parametrize("number", [0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor([0.5])])
def test_an_evaluation_may_be_a_number_of_numpy_or_torch(number: Any) -> None:
    class Evaluating(Regression):
        def evaluate(self, model: nn.Module, context: Context) -> dict[str, float]:
            return {"accuracy": number}

    result, _ = train(small_config(num_nodes=7), client=Evaluating(), rounds=1, client_evaluation=True)
    assert dict(result.evaluate_metrics_clientapp[1]) == {"accuracy": 0.5}


def test_functions_with_names_of_their_own_can_be_added() -> None:
    become_server()
    app = Regression().client_app()

    @app.evaluate("mine")
    def mine(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"mine": 1})}), reply_to=message)

    app.train("other")(mine)
    for kind in ("evaluate.mine", "train.other"):
        reply = app(Message(RecordDict(), 1, kind), CONTEXT)
        assert reply.content.metric_records["metrics"]["mine"] == 1
