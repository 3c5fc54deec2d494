"""The simulated nodes, which classify images or texts under any strategy."""

import math
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn import functional

from solon_fl.baselines import draco_client_app, signum_mod
from solon_fl.clients import Batch, SolonClientMixin, SolonTask, downlink_mod
from solon_fl.clients.determinism import deterministic
from solon_fl.clients.losses import Losses, collected_losses, note_loss
from solon_fl.simulations.attacks import Liars, attack_named, flips_labels, partition_id, seen_labels
from solon_fl.simulations.datasets import Dataset, build_model, load_dataset
from solon_fl.simulations.datasets.splits import dirichlet_parts
from solon_fl.simulations.own import OwnCodeError, is_own, seeded, theirs
from solon_fl.simulations.run.own_strategies import strategy_named
from solon_fl.simulations.run.scenario import Scenario
from solon_fl.strategies import buffer_names
from solon_fl.task import ARRAYS, CONFIG
from solon_fl.wire import to_array

__all__ = ["ImageClient", "load_data", "make_client_app", "measure_batch_seconds", "try_own_model"]

_TRIED_EXAMPLES = 8


def load_data(scenario: Scenario) -> Dataset:
    """Return a scenario's data. The data set that was loaded last is kept in memory."""
    return _load(scenario.dataset, scenario.data_dir, scenario.image_size)


@lru_cache(maxsize=1)
def _load(name: str, data_dir: Path | None, image_size: int | None) -> Dataset:
    return load_dataset(name, data_dir, image_size)


def try_own_model(scenario: Scenario, dataset: Dataset) -> None:
    """Train the user's own network on a few examples now. Later an exception would only count as a failed node.

    Raises
    ------
    OwnCodeError
        If the network raises or returns logits of a wrong shape or type, or if its weights or results differ when it is
        made or computed again.
    """
    name = scenario.model
    if not is_own(name):
        return
    shape, classes = dataset.input_shape, dataset.num_classes
    model, again = (build_model(name, shape, classes, seed=scenario.config.seed) for _ in range(2))
    for (entry, one), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        if not torch.equal(one.nan_to_num(), other.nan_to_num()):
            raise OwnCodeError(
                f"model={name!r} must have the same weights each time it is made with the same seed; got other weights "
                f"in {entry}; draw them from torch, numpy or random, whose states are seeded."
            )
    with seeded(0), theirs("model", name):  # the second time, numpy and random are in another state
        one, other = (_learnt(name, model, again.state_dict(), scenario, dataset) for _ in range(2))
    for what, value in one.items():
        if not torch.equal(value.nan_to_num(), other[what].nan_to_num()):
            raise OwnCodeError(
                f"model={name!r} must compute the same result from the same weights and inputs, as all nodes of a "
                f"group must; got another {what} the second time; keep no state between calls, and draw random numbers "
                "from torch's global state, which is seeded for every batch, not from numpy or random."
            )


def _learnt(
    name: str, model: nn.Module, weights: dict[str, Tensor], scenario: Scenario, dataset: Dataset
) -> dict[str, Tensor]:
    """Return a network's loss and gradients on the first examples, by name, computed as on a node."""
    model.load_state_dict(weights)
    model.zero_grad()
    count, classes = min(_TRIED_EXAMPLES, scenario.batch_size, len(dataset.train_labels)), dataset.num_classes
    with deterministic(0, torch.device("cpu")):
        outputs = model(dataset.train_inputs[:count].clone())
        if not isinstance(outputs, Tensor) or outputs.shape != (count, classes) or not outputs.is_floating_point():
            got = (
                f"shape {tuple(outputs.shape)} {outputs.dtype}"
                if isinstance(outputs, Tensor)
                else type(outputs).__name__
            )
            raise OwnCodeError(
                f"model={name!r} must return one floating-point number for each input and class, here "
                f"({count}, {classes}); got {got}; let it take num_classes. Simulations classify, with "
                "cross-entropy as the loss."
            )
        loss = functional.cross_entropy(outputs, dataset.train_labels[:count])
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = {entry: value.grad.clone() for entry, value in model.named_parameters() if value.grad is not None}
    return {"loss": loss.detach(), **{f"gradient of {entry}": value for entry, value in gradients.items()}}


class ImageClient(SolonClientMixin):
    """The client of a scenario. It classifies the scenario's images or texts, under any strategy."""

    def __init__(self, scenario: Scenario, dataset: Dataset | None = None) -> None:
        self.scenario = scenario
        self._dataset = dataset
        self._model: nn.Module | None = None
        self._computed_round = 0
        self._computed: dict[object, tuple[Tensor, Losses]] = {}  # results of that round, by what was computed
        self._parts: list[Tensor] = []  # indices of each node's own examples, with dirichlet
        self._momenta: dict[int, tuple[int, Tensor]] = {}  # round and momentum, by the node's number

    def __getstate__(self) -> dict[str, object]:
        # A Ray actor gets the scenario, and loads the data itself.
        fresh = ImageClient(self.scenario)
        return fresh.__dict__

    @property
    def dataset(self) -> Dataset:
        """The data, loaded on first use."""
        if self._dataset is None:
            self._dataset = load_data(self.scenario)
        return self._dataset

    def build_model(self, context: Context) -> nn.Module:
        """See `SolonClientMixin.build_model`. All nodes share one model: the server's weights replace its own."""
        if self._model is None:
            shape, classes = self.dataset.input_shape, self.dataset.num_classes
            self._model = build_model(self.scenario.model, shape, classes, seed=0)
        return self._model

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        """Return the cross-entropy of the batch_size examples drawn for this batch."""
        chosen = self._examples(batch, context)
        device = self.device()
        inputs = self.dataset.train_inputs[chosen].to(device)
        labels = seen_labels(self.dataset.train_labels[chosen], self.dataset.num_classes, context)
        return functional.cross_entropy(model(inputs), labels.to(device))

    def _examples(self, batch: Batch, context: Context) -> Tensor:
        """Return the indices of a batch's training examples, drawn from all or from the node's own part."""
        alpha, config = self.scenario.dirichlet, self.scenario.config
        if alpha is None:
            return batch.sample(len(self.dataset.train_labels), self.scenario.batch_size)
        if not self._parts:
            self._parts = dirichlet_parts(self.dataset.train_labels, config.num_nodes, alpha, config.seed)
        part = self._parts[partition_id(context) % config.num_nodes]
        return part[torch.randint(len(part), (self.scenario.batch_size,), generator=batch.generator(), device="cpu")]

    def mean_gradient(
        self,
        arrays: ArrayRecord,
        batches: Sequence[Batch],
        buffers: Sequence[str],
        context: Context,
        *,
        multiple: int = 1,
    ) -> Tensor:
        """See `SolonClientMixin.mean_gradient`. It is computed once for all nodes if the scenario has compute_once."""
        compute = partial(super().mean_gradient, arrays, batches, buffers, context, multiple=multiple)
        return self._once(context, batches[0].round, (multiple, *(batch.number for batch in batches)), compute)

    def update(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        """See `SolonClientMixin.update`. It is computed once per group if the scenario has compute_once."""
        return self._once(context, task.round, task.group, partial(super().update, arrays, task, context, config))

    def train_alone(self, message: Message, context: Context) -> Message:
        """Reply with the plain gradient of one batch, for strategies without groups.

        A node takes the batch with its own number, so that honest runs of all strategies see the same data.
        """
        arrays = message.content.array_records[ARRAYS]
        server_round = int(str(message.content.config_records[CONFIG]["server-round"]))
        config, number = self.scenario.config, partition_id(context)
        batch = Batch(config.seed, server_round, number, (server_round - 1) * config.num_nodes + number)
        buffers = buffer_names(self.build_model(context))
        gradient = self.mean_gradient(arrays, [batch], buffers, context)
        if self.scenario.nodes_have_momentum:
            gradient = self._with_momentum(gradient, number, server_round, _where(buffers, arrays, buffers.frozen))
        content = RecordDict(
            {
                ARRAYS: _split(gradient, arrays, buffers.frozen),
                "metrics": MetricRecord({"num-examples": self.scenario.batch_size}),
            }
        )
        return Message(content, reply_to=message)

    def _with_momentum(self, gradient: Tensor, number: int, server_round: int, is_buffer: Tensor) -> Tensor:
        """Return momentum * (the node's momentum of the round before) + gradient; for buffers, the gradient alone.

        The server's SGD would do the same with the mean of the gradients, so the learning rate has the same meaning.
        Further calls in the same round return the same result. An attacker that knows all nodes makes such calls.
        """
        latest, momentum = self._momenta.get(number, (0, torch.zeros_like(gradient)))
        if latest != server_round:
            momentum = (self.scenario.momentum * momentum).masked_fill_(is_buffer, 0).add_(gradient)
            self._momenta[number] = server_round, momentum
        return momentum

    def _once(self, context: Context, server_round: int, what: object, compute: Callable[[], Tensor]) -> Tensor:
        """Return the result of `compute`, from memory if it was computed before in this round."""
        if not self.scenario.compute_once:
            return compute()
        if self._computed_round != server_round:
            self._computed.clear()
            self._computed_round = server_round
        key = (what, flips_labels(context))  # honest nodes never get a result of flipped labels
        if key not in self._computed:
            with collected_losses() as losses:
                self._computed[key] = compute(), losses
        vector, losses = self._computed[key]
        note_loss(losses)
        return vector


def make_client_app(client: ImageClient, liars: Liars | None = None) -> ClientApp:
    """Return the ClientApp of a scenario's nodes, both honest ones and liars; see `Scenario.mods` for `liars`."""
    scenario = client.scenario
    attack = scenario.mods(liars)
    kind = strategy_named(scenario.strategy).client
    if kind == "solon":
        return client.client_app(attack)
    if kind == "draco":
        return draco_client_app(client, attack)
    app = ClientApp()
    if kind == "signum":
        model = client.build_model(_nobody())
        signs = signum_mod(scenario.momentum, buffer_names(model))
        # Liars falsify the gradient before its signs are taken. A mod that spoils replies spoils the signs.
        spoils_replies = scenario.attack is not None and attack_named(scenario.attack).spoils_replies
        attack = [*attack, signs] if spoils_replies else [signs, *attack]
    app.train(mods=[downlink_mod, *attack])(client.train_alone)
    return app


def measure_batch_seconds(scenario: Scenario) -> float:
    """Return how many seconds one node takes for the gradient of one batch on this machine (median of 5)."""
    dataset = load_data(scenario)
    try_own_model(scenario, dataset)
    client = ImageClient(replace(scenario, compute_once=False), dataset)
    context = _nobody()
    model = client.build_model(context)
    arrays = ArrayRecord({name: to_array(value) for name, value in model.state_dict().items()})
    seconds = []
    for number in range(6):
        started = time.monotonic()
        client.mean_gradient(arrays, [Batch(0, 0, number)], buffer_names(model), context)
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds[1:])  # the first one is a warm-up


def _nobody() -> Context:
    """Return a context of no particular node."""
    return Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})


def _split(vector: Tensor, arrays: ArrayRecord, frozen: Collection[str]) -> ArrayRecord:
    """Return a vector as an ArrayRecord with the names and shapes of the model's coded entries."""
    coded = _coded(arrays, frozen)
    parts = torch.split(vector, [math.prod(array.shape) for array in coded.values()])
    return ArrayRecord(
        {name: to_array(part.view(tuple(coded[name].shape))) for name, part in zip(coded, parts, strict=True)}
    )


def _where(names: Collection[str], arrays: ArrayRecord, frozen: Collection[str]) -> Tensor:
    """Return a mask, (d,) bool, of the entries of these names in the vector of the model's coded entries."""
    coded = _coded(arrays, frozen).items()
    return torch.cat([torch.full((math.prod(array.shape),), name in names) for name, array in coded])


def _coded(arrays: ArrayRecord, frozen: Collection[str]) -> dict[str, Array]:
    """Return the entries of a model that nodes send: floating-point ones that are not frozen."""
    return {name: array for name, array in arrays.items() if array.dtype.startswith("float") and name not in frozen}
