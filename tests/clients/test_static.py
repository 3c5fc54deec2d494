"""Integer and boolean entries of a model: counted as in plain torch, or an error that names the one that changed."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from solon_fl import SolonConfig
from solon_fl.clients import Batch, SolonTask, solon_mod
from solon_fl.errors import GroupFailedError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.strategies import SolonStrategy, buffer_names
from solon_fl.wire import to_array, trusted_tensor
from tests.support import Regression, initial_model, record_of, small_config, train

STRANGER = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
RATE = 0.01


def normalised(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5, **options), nn.Linear(5, 1))


def in_plain_torch(make: Callable[[], nn.Module], config: SolonConfig, rounds: int) -> dict[str, Tensor]:
    """The same training of one group in one process: one step per round, or per batch in mode "update"."""
    client, model = Regression(make), initial_model(make).train().to(Regression().devices()[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for server_round in range(1, rounds + 1):
        optimizer.zero_grad()
        for number in range(config.batches_per_group):
            loss = client.batch_loss(model, Batch(config.seed, server_round, number), STRANGER)
            if config.mode == "update":
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's
                optimizer.step()
            else:
                (loss / config.batches_per_group).backward()  # type: ignore[no-untyped-call]  # torch's
        if config.mode == "gradient":
            optimizer.step()
    return model.cpu().state_dict()


def trained(make: Callable[[], nn.Module], config: SolonConfig, rounds: int, app: ClientApp | None = None) -> Any:
    """The model trained with Solon while two nodes lie."""
    lies = [attack_mod(Reverse(), {1, 4})]
    optimizer = partial(torch.optim.SGD, lr=RATE if config.mode == "gradient" else 1.0)
    strategy = SolonStrategy(config, optimizer, buffers=buffer_names(make()))
    grid = InProcessGrid(app or Regression(make).client_app(lies), config.num_nodes)
    rate = ConfigRecord({"lr": RATE})
    result = strategy.start(grid, record_of(initial_model(make)), num_rounds=rounds, timeout=5, train_config=rate)
    return {name: trusted_tensor(array) for name, array in result.arrays.items()}


@pytest.mark.parametrize("momentum", [None, 0.1])
@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_batches_are_counted_and_averaged_over_as_in_plain_torch(
    mode: Literal["gradient", "update"], momentum: float | None
) -> None:
    make, config = normalised(momentum=momentum), small_config(num_nodes=7, mode=mode, batches_per_group=3)
    expected = in_plain_torch(make, config, 4)
    found = trained(make, config, 4)
    assert int(found["1.num_batches_tracked"]) == int(expected["1.num_batches_tracked"]) == 12
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_with_several_groups_each_counts_the_batches_of_one() -> None:
    model = initial_model(normalised(momentum=None))
    result, _ = train(
        small_config(batches_per_group=3), client=Regression(normalised(momentum=None)), model=model, rounds=2
    )
    assert int(result.arrays["1.num_batches_tracked"].numpy()) == 6


def test_a_round_without_a_step_counts_nothing() -> None:
    strategy = SolonStrategy(
        small_config(num_nodes=7), partial(torch.optim.SGD, lr=RATE), buffers=buffer_names(normalised()())
    )
    model = record_of(initial_model(normalised()))
    for server_round in (1, 2):
        grid = InProcessGrid(Regression(normalised()).client_app(), 7)
        messages = list(strategy.configure_train(server_round, model, ConfigRecord(), grid))
        replies = grid.send_and_receive(messages) if server_round == 1 else []
        arrays, _ = strategy.aggregate_train(server_round, replies)
        model = arrays or model
    assert int(model["1.num_batches_tracked"].numpy()) == small_config().batches_per_group


class Used(nn.Module):
    """A normalisation that is used twice a batch."""

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.normalise, self.last = nn.BatchNorm1d(7, momentum=momentum), nn.Linear(7, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.last(self.normalise(self.normalise(inputs)))
        return result


class Counting(nn.Module):
    """A model that counts its uses and sets a flag when it was used, by rebinding or in place."""

    def __init__(self, name: str, value: Tensor, in_place: bool) -> None:
        super().__init__()
        self.inner, self.name, self.in_place = nn.Linear(7, 1), name, in_place
        self.register_buffer(name, value)

    def forward(self, inputs: Tensor) -> Tensor:
        value = self.get_buffer(self.name)
        changed = ~value if value.dtype == torch.bool else value + 1
        if self.in_place:
            value.copy_(changed)
        else:
            setattr(self, self.name, changed)
        result: Tensor = self.inner(inputs)
        return result


FLAG = partial(torch.zeros, (), dtype=torch.bool)
COUNT = partial(torch.zeros, (3,), dtype=torch.int64)
OWN_COUNT = partial(torch.zeros, (), dtype=torch.int64)  # of a layer that is not torch's


@pytest.mark.parametrize("mode", ["gradient", "update"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Counting("step", COUNT(), True), "changed 'step'; keep it in a float buffer"),
        (lambda: Counting("step", COUNT(), False), "changed 'step'; keep it in a float buffer"),
        (lambda: Counting("initialised", FLAG(), True), "changed 'initialised'; keep it in a float buffer"),
        (
            lambda: Used(None),
            "'normalise.num_batches_tracked' did not grow by num_batches=3; give the layer a momentum",
        ),
    ],
)
def test_what_the_server_cannot_follow_is_named_in_the_first_round(
    make: Callable[[], nn.Module], message: str, mode: Literal["gradient", "update"]
) -> None:
    with pytest.raises(GroupFailedError, match=message):
        trained(make, small_config(num_nodes=7, mode=mode, batches_per_group=3), 1)


class Replaced(Counting):
    """A model whose counter changes its shape."""

    def forward(self, inputs: Tensor) -> Tensor:
        setattr(self, self.name, self.get_buffer(self.name).repeat(2))
        result: Tensor = self.inner(inputs)
        return result


def averaging_instance_norm() -> nn.Module:
    layer = nn.InstanceNorm1d(1, track_running_stats=True)
    layer.momentum = None
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: Used(0.1),  # a counter that nothing reads
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 7)),
            averaging_instance_norm(),
            nn.Flatten(1),
            nn.Linear(7, 1),
        ),
        lambda: Counting("num_batches_tracked", OWN_COUNT(), True),
    ],
)
def test_counts_that_the_server_follows_or_nobody_reads_are_no_errors(make: Callable[[], nn.Module]) -> None:
    trained(make, small_config(num_nodes=7), 2)


def test_a_counter_of_another_shape_is_named() -> None:
    with pytest.raises(GroupFailedError, match="changed 'step'"):
        trained(lambda: Replaced("step", COUNT(), False), small_config(num_nodes=7), 1)


def integers_app(change: Callable[[Tensor], Tensor], returns: Literal["vector", "model"]) -> ClientApp:
    """An app whose train function returns integers beside a float entry."""
    app = ClientApp()

    @app.train(mods=[solon_mod(returns=returns)])
    def train_function(message: Message, context: Context) -> Message:
        SolonTask.from_message(message)
        arrays = message.content.array_records["arrays"]
        returned = {name: trusted_tensor(array) for name, array in arrays.items()}
        integers = {name: change(value) for name, value in returned.items() if name != "w"}
        if returns == "vector":
            returned["w"] = torch.zeros(4)
        record = ArrayRecord({name: to_array(value) for name, value in {**returned, **integers}.items()})
        return Message(RecordDict({"arrays": record}), reply_to=message)

    return app


def start_integers(change: Callable[[Tensor], Tensor], returns: Literal["vector", "model"], name: str) -> Any:
    arrays = ArrayRecord({"w": to_array(torch.ones(4)), name: to_array(torch.arange(3))})
    config = small_config(mode="update", num_nodes=7)
    strategy = SolonStrategy(config, partial(torch.optim.SGD, lr=1.0))
    grid = InProcessGrid(integers_app(change, returns), 7)
    return strategy.start(grid, arrays, num_rounds=2, timeout=5).arrays[name].numpy().tolist()


@pytest.mark.parametrize("returns", ["vector", "model"])
def test_a_train_function_that_returns_changed_integers_is_told_which(returns: Literal["vector", "model"]) -> None:
    with pytest.raises(GroupFailedError, match="it changed 'places'"):
        start_integers(lambda value: value + 1, returns, "places")


@pytest.mark.parametrize(
    ("returns", "change"),
    [("vector", lambda value: value), ("vector", torch.zeros_like), ("model", lambda value: value)],
)
def test_a_train_function_may_return_integers_as_they_were(
    returns: Literal["vector", "model"], change: Callable[[Tensor], Tensor]
) -> None:
    assert start_integers(change, returns, "places") == [0, 1, 2]


def test_a_train_function_may_return_its_counts_of_batches() -> None:
    batches = small_config().batches_per_group
    assert start_integers(lambda value: value + 1, "model", "bn.num_batches_tracked") == [
        2 * batches + i for i in range(3)
    ]


def test_zeros_are_no_unchanged_model() -> None:
    with pytest.raises(GroupFailedError, match="it changed 'places'"):
        start_integers(torch.zeros_like, "model", "places")
