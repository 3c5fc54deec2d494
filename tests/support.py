"""A tiny regression task, for tests of the strategy and the clients."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import Result
from torch import Tensor, nn

from solon_fl.clients import Batch, SolonClientMixin
from solon_fl.clients.losses import Losses, collected_losses, note_loss
from solon_fl.config import SolonConfig
from solon_fl.simulations import InProcessGrid
from solon_fl.strategies import RoundReport, SolonStrategy, buffer_names
from solon_fl.task import SolonTask
from solon_fl.wire import real_view, to_array, trusted_tensor

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
BACKWARD = torch.Tensor.backward


class Regression(SolonClientMixin):
    """Learns y = sum(x) from random inputs, with the test's model."""

    def __init__(self, make_model: Callable[[], nn.Module] = lambda: nn.Linear(7, 1)) -> None:
        self.make_model = make_model

    def build_model(self, context: Context) -> nn.Module:
        return self.make_model()

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        inputs = torch.randn(8, 7, generator=batch.generator()).to(next(model.parameters()).device)
        loss: Tensor = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        return loss

    def evaluate(self, model: nn.Module, context: Context) -> dict[str, float]:
        return {"number": float(context.node_id)}


class Remembering(Regression):
    """Computes gradient and loss only once for all nodes of a group, and for all runs with the same model."""

    def __init__(self, make_model: Callable[[], nn.Module] = lambda: nn.Linear(7, 1)) -> None:
        super().__init__(make_model)
        self._gradients: dict[tuple[Any, ...], tuple[Tensor, Losses]] = {}

    def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        if torch.Tensor.backward is not BACKWARD:  # a test has replaced it to make it fail
            return super().gradient(arrays, task, context, config)
        multiple = task.make_code().multiple
        key = (*((name, array.data) for name, array in arrays.items()), task.batches, task.buffers, multiple)
        if key not in self._gradients:
            with collected_losses() as losses:
                self._gradients[key] = super().gradient(arrays, task, context, config), losses
        gradient, losses = self._gradients[key]
        note_loss(losses)
        return gradient.clone()


REMEMBERING = Remembering()


def initial_model(make_model: Callable[[], nn.Module] = lambda: nn.Linear(7, 1)) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # models are built on the CPU
        return make_model()


def record_of(model: nn.Module) -> ArrayRecord:
    return ArrayRecord({name: to_array(value) for name, value in model.state_dict().items()})


def vector_of(arrays: ArrayRecord) -> Tensor:
    return torch.cat([real_view(trusted_tensor(array)).reshape(-1).double() for array in arrays.values()])


def small_config(**changes: Any) -> SolonConfig:
    """Return a config with two groups of seven nodes, two of which may lie. A share is a third of the gradient."""
    return SolonConfig(**{"num_nodes": 14, "byzantine": 2, "compression": 3, **changes})


def train(
    config: SolonConfig | None = None,
    *,
    mods: list[Mod] | None = None,
    client: SolonClientMixin | None = None,
    app: ClientApp | None = None,
    model: nn.Module | None = None,
    rounds: int = 5,
    timeout: float = 1.0,
    num_spares: int = 0,
    **strategy_arguments: Any,
) -> tuple[Result, list[RoundReport]]:
    """Run SolonStrategy in this process; return its result and the reports of all rounds."""
    config = config or small_config()
    model = model or initial_model()
    reports: list[RoundReport] = []
    strategy = SolonStrategy(
        config,
        strategy_arguments.pop("optimizer", SGD),
        buffers=buffer_names(model),
        on_round=reports.append,
        **strategy_arguments,
    )
    app = app or (client or REMEMBERING).client_app(mods)
    grid = InProcessGrid(app, config.num_nodes + num_spares)
    result = strategy.start(grid, record_of(model), num_rounds=rounds, timeout=timeout)
    return result, reports


def spoil(change: Callable[[Message], Message | None], liars: set[int]) -> Mod:
    """Return a mod that lets nodes with these ids change their replies."""

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        if context.node_id in liars:
            return change(reply)  # type: ignore[return-value]  # None: a node that never replies
        return reply

    return mod


def share_array(content: RecordDict) -> ArrayRecord:
    record = content["share"]
    assert isinstance(record, ArrayRecord)
    return record


def without_address(thing: object) -> str:
    """Return the id of a parametrised test. It is the same in every process, even with functions as parameters."""
    return re.sub(r"<function ([\w.<>]+) at \w+>", r"\1", getattr(thing, "__name__", None) or repr(thing))
