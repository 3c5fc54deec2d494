"""The simulated nodes: image classification with any strategy."""

import math
from collections.abc import Callable
from functools import partial

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn import functional

from solon_fl.clients import Batch, SolonClientMixin, SolonTask
from solon_fl.simulations.attacks import flips_labels, seen_labels
from solon_fl.simulations.datasets import Dataset, load_dataset
from solon_fl.simulations.models import build_model
from solon_fl.simulations.scenario import Scenario
from solon_fl.strategies import buffer_names
from solon_fl.task import ARRAYS, CONFIG
from solon_fl.wire import to_array

__all__ = ["ImageClient", "make_client_app"]


class ImageClient(SolonClientMixin):
    """Classifies the images of a scenario; serves Solon's strategy and the others."""

    def __init__(self, scenario: Scenario, dataset: Dataset | None = None) -> None:
        self.scenario = scenario
        self._dataset = dataset
        self._computed_round = 0
        self._computed: dict[tuple[int, bool], Tensor] = {}  # of that round, by group or node

    def __getstate__(self) -> dict[str, object]:
        # A Ray actor gets the description and loads the data itself.
        return {"scenario": self.scenario, "_dataset": None, "_computed_round": 0, "_computed": {}}

    @property
    def dataset(self) -> Dataset:
        """The data, loaded when first needed."""
        if self._dataset is None:
            self._dataset = load_dataset(self.scenario.dataset, self.scenario.data_dir)
        return self._dataset

    def build_model(self, context: Context) -> nn.Module:
        """See `SolonClientMixin.build_model`."""
        return build_model(self.scenario.model, self.dataset.input_shape, self.dataset.num_classes, seed=0)

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        """Return the cross-entropy of batch_size images drawn for this batch."""
        chosen = batch.sample(len(self.dataset.train_labels), self.scenario.batch_size)
        images = self.dataset.train_images[chosen].to(self.device())
        labels = seen_labels(self.dataset.train_labels[chosen], self.dataset.num_classes, context)
        return functional.cross_entropy(model(images), labels.to(self.device()))

    def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        """See `SolonClientMixin.gradient`; computed once per group if the scenario says so."""
        return self._once(context, task.round, task.group, partial(super().gradient, arrays, task, context, config))

    def update(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        """See `SolonClientMixin.update`; computed once per group if the scenario says so."""
        return self._once(context, task.round, task.group, partial(super().update, arrays, task, context, config))

    def train_alone(self, message: Message, context: Context) -> Message:
        """Answer with the plain gradient of one batch: the node's part in strategies without groups.

        Node number n takes the batch that is number n % r in Solon's group n // r: so that honest runs of all
        strategies see the same data.
        """
        arrays = message.content.array_records[ARRAYS]
        number = int(context.node_config["partition-id"])
        config = self.scenario.config
        group, index = divmod(number, config.group_size)
        server_round = int(str(message.content.config_records[CONFIG]["server-round"]))
        batch = Batch(config.seed, server_round, group, index)

        def compute() -> Tensor:
            return self.mean_gradient(arrays, [batch], buffer_names(self.build_model(context)), context)

        gradient = self._once(context, server_round, number, compute)
        content = RecordDict(
            {
                ARRAYS: _split(gradient, arrays),
                "metrics": MetricRecord({"num-examples": self.scenario.batch_size}),
            }
        )
        return Message(content, reply_to=message)

    def _once(self, context: Context, server_round: int, who: int, compute: Callable[[], Tensor]) -> Tensor:
        """Return what `compute` gives, from memory if it was computed in this round already."""
        if not self.scenario.compute_once:
            return compute()
        if self._computed_round != server_round:
            self._computed.clear()
            self._computed_round = server_round
        key = (who, flips_labels(context))  # honest nodes never get what was computed on flipped labels
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]


def make_client_app(client: ImageClient) -> ClientApp:
    """Return the ClientApp of a scenario's nodes, the liars among them included."""
    mods = client.scenario.mods()
    if client.scenario.strategy == "solon":
        return client.client_app(mods)
    app = ClientApp()
    app.train(mods=mods)(client.train_alone)
    return app


def _split(vector: Tensor, arrays: ArrayRecord) -> ArrayRecord:
    """Return a vector as an ArrayRecord with the names and shapes of the floating-point entries of another."""
    parts: dict[str, Array] = {}
    start = 0
    for name, array in arrays.items():
        if array.dtype.startswith("float"):
            size = math.prod(array.shape)
            parts[name] = to_array(vector[start : start + size].view(tuple(array.shape)))
            start += size
    return ArrayRecord(parts)
