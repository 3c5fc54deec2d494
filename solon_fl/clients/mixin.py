"""A mixin that makes a Flower ClientApp from a model and the loss of one batch."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import Tensor, nn

from solon_fl.clients.app import MixinApp
from solon_fl.clients.determinism import deterministic, seeded, strictly_deterministic
from solon_fl.clients.failures import explained
from solon_fl.clients.gradient import GradientVector, change_of, flatten, load_model
from solon_fl.clients.losses import collected_losses, note_loss, note_unreached
from solon_fl.clients.replicas import replicas_of
from solon_fl.clients.share import answer_silo_queries, share_reply, without_state
from solon_fl.clients.static import StaticEntries
from solon_fl.errors import ConfigurationError
from solon_fl.task import ARRAYS, CONFIG, RUN_SEED, UNREACHED, Batch, SolonTask
from solon_fl.wire import BufferNames, trusted_tensor

__all__ = ["SolonClientMixin"]

METRICS = "metrics"  # the record's usual name in Flower
logger = logging.getLogger("flwr")
_computing: ContextVar[torch.device | None] = ContextVar("computing", default=None)  # this thread's device
_warned_of: set[tuple[str, ...]] = set()  # a process warns once of the same parameters


class SolonClientMixin:
    """Turns a class with a model and a loss into a Solon node.

    Define `build_model` and `batch_loss`. All other methods may be overridden; define `evaluate` to evaluate on the
    nodes (``SolonStrategy(..., client_evaluation=True)``). A batch must depend only on its `Batch`, so that all nodes
    of a group compute the same gradient; never take it from a running data loader or a global random state. No state is
    kept between rounds.

    Attributes
    ----------
    keeps_state : bool
        Whether training gets the node's own ``context.state``, which persists between rounds. By default, the state is
        empty in every round, and thus the same on all nodes. An honest node whose result depends on earlier rounds
        counts as Byzantine from the first round that it misses, or from its first restart.

    Notes
    -----
    BatchNorm and other state without a gradient: batches are computed in training mode, one after another. The change
    of the statistics is encoded together with the gradient and protected like it. Tell the server which entries these
    are: ``SolonStrategy(..., buffers=buffer_names(model))``.

    Several devices: each has a copy of the model (``copy.deepcopy``). Buffers and frozen weights are copied to the next
    device before each batch, so that they reflect all batches so far. Other attributes of the model are not copied.

    Unused parameters: a parameter that no batch's loss depends on has no gradient on the server, as in plain torch, so
    no step moves it. At least s + 1 nodes of each group must report it. Each node logs such parameters once.

    Frozen, integer and boolean entries are not sent. A loss that changes one raises an error that names it. The server
    counts ``num_batches_tracked``, so that a BatchNorm with ``momentum=None`` that is used once a batch averages as in
    plain torch.

    The mean loss of the task's batches is sent beside the share, for `RoundReport.training_loss`; nothing protects it.
    If you override `gradient` or `update`, it is sent only if you call `mean_gradient` or this class's `update`.

    Examples
    --------
    >>> class Regression(SolonClientMixin):
    ...     def build_model(self, context):
    ...         return nn.Linear(3, 1)
    ...     def batch_loss(self, model, batch, context):
    ...         inputs = torch.randn(8, 3, generator=batch.generator())
    ...         return (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
    >>> app = Regression().client_app()
    """

    keeps_state: bool = False

    def build_model(self, context: Context) -> nn.Module:
        """Return the model. Its weights don't matter, because the server's are loaded into it.

        torch is seeded with the run's seed, so that random constants outside the state_dict are the same on all nodes.
        To get the same ones on the server, call ``torch.manual_seed(config.seed)`` before building the model.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build_model(context)")

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        """Return the mean loss of one batch, a scalar with a gradient.

        `model` is in training mode on `device()`; move the batch to that device. torch is seeded for this batch. The
        loss must not change trained weights, because no gradient can express that.
        """
        raise NotImplementedError(f"{type(self).__name__} must define batch_loss(model, batch, context)")

    def device(self) -> torch.device:
        """Return the device of the current batch, or the first of `devices()` outside of `batch_loss`."""
        return _computing.get() or self._devices()[0]

    def devices(self) -> Sequence[torch.device]:
        """Return the devices to compute on: all CUDA devices that the process may use, otherwise the CPU.

        The group's batches are spread over the devices. Their gradients are added on the first one, in the order of the
        batches, so a node's reply has the same bits for any number of devices of the same kind. Local steps (mode
        "update") and evaluation use the first device.
        """
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]

    def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        """Return the group's gradient of this round, (d,), on any device: the mean over the task's batches.

        Override this method to compute the gradient in another way, with entries in the order of the model's
        state_dict. The vector returned here is longer, because each tensor is already padded for the code; this saves a
        copy when it is encoded.
        """
        return self.mean_gradient(arrays, task.batches, task.buffers, context, multiple=task.make_code().multiple)

    def mean_gradient(
        self,
        arrays: ArrayRecord,
        batches: Sequence[Batch],
        buffers: Sequence[str],
        context: Context,
        *,
        multiple: int = 1,
    ) -> Tensor:
        """Return the mean gradient of these batches, (d,), with the buffers' changes at their places.

        Frozen entries are left out if `buffers` says which they are. Each tensor is padded with zeros to a multiple of
        `multiple` entries.
        """
        frozen = BufferNames.of(buffers).frozen
        devices = self._devices()[: len(batches)]
        load = partial(self._load, arrays, buffers, context, batches[0].seed)
        replicas = replicas_of(load(), devices, load)
        last = replicas[(len(batches) - 1) % len(replicas)]
        gradient = GradientVector(replicas, multiple, arrays, frozen)
        with StaticEntries(last, len(batches), frozen), gradient:
            for batch, model, device in zip(batches, cycle(replicas), cycle(devices), strict=False):
                with deterministic(batch.torch_seed, device), _computing_on(device):
                    loss = _checked(self.batch_loss(model, batch, context))
                    gradient.backward(loss)
                    note_loss(loss)
        note_unreached(gradient.unreached)
        _warn_of_unreached(gradient.unreached)
        gradient.scale_gradients(1 / len(batches))
        return gradient.vector

    def local_optimizer(self, model: nn.Module, config: dict[str, object]) -> torch.optim.Optimizer:
        """Return the optimizer of the local steps (mode "update"); by default, SGD with the train config's "lr"."""
        rate = config.get("lr")
        if not isinstance(rate, (int, float)):
            raise ConfigurationError(
                f"local steps need a learning rate; got lr={rate!r}; pass train_config=ConfigRecord({{'lr': 0.1}}) "
                "to start, or override local_optimizer."
            )
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)

    def update(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        """Return the model's change, (d,), after one local step per batch of the task (mode "update")."""
        model, device = self._load(arrays, task.buffers, context, task.seed), self._devices()[0]
        frozen = task.frozen
        before = flatten(model.state_dict(), frozen).clone()
        optimizer = self.local_optimizer(model, config)
        with StaticEntries(model, len(task.batches), frozen):
            for batch in task.batches:
                with deterministic(batch.torch_seed, device):
                    optimizer.zero_grad()
                    loss = _checked(self.batch_loss(model, batch, context))
                    loss.backward()  # type: ignore[no-untyped-call]  # torch's
                    optimizer.step()
                    note_loss(loss)
        return change_of(flatten(model.state_dict(), frozen), before)

    def evaluate(self, model: nn.Module, context: Context) -> dict[str, float]:
        """Return metrics of the model on this node's data, as numbers by name.

        Called if the strategy has ``client_evaluation=True``. The model has the server's weights and is in evaluation
        mode on `device()`. The server takes the median of each metric over the nodes.
        """
        raise NotImplementedError(f"{type(self).__name__} must define evaluate(model, context)")

    def train(self, message: Message, context: Context) -> Message:
        """Answer a training message with this node's share and the mean loss of its batches."""
        task = SolonTask.from_message(message)
        arrays = message.content.array_records[ARRAYS]
        config: dict[str, object] = dict(message.content.config_records.get(CONFIG, {}))
        compute = self.gradient if task.mode == "gradient" else self.update
        context = context if self.keeps_state else without_state(context)
        with (
            torch.inference_mode(False),  # the program may be in any mode
            torch.enable_grad(),
            strictly_deterministic(task.needs_equal_bits),
            explained(),
            collected_losses() as losses,
        ):
            vector = compute(arrays, task, context, config)
            loss, beside = losses.mean(), dict[str, MetricRecord | ConfigRecord]()
            if loss is not None:
                beside[METRICS] = MetricRecord({"loss": loss})
            if losses.unreached:
                beside[UNREACHED] = ConfigRecord({"names": list(losses.unreached)})
            return share_reply(message, task, vector, beside)

    def client_app(self, mods: list[Mod] | None = None) -> ClientApp:
        """Return a Flower ClientApp for this object, with training, evaluation and the query for its silo.

        To evaluate, override `evaluate`. Functions that you add need names: ``@app.evaluate("mine")``.

        Parameters
        ----------
        mods : list of Flower mods, optional
            Mods that wrap training.
        """
        app = MixinApp()
        answer_silo_queries(app)

        def evaluate(message: Message, context: Context) -> Message:
            config = message.content.config_records.get(CONFIG, ConfigRecord())
            model = self._build(context, int(str(config.get(RUN_SEED, 0))))
            arrays = message.content.array_records[ARRAYS]
            model.load_state_dict({name: trusted_tensor(array) for name, array in arrays.items()})
            metrics = self.evaluate(model.to(self._devices()[0]).eval(), context)
            numbers = {name: _plain_number(value) for name, value in dict(metrics).items()}
            return Message(RecordDict({METRICS: MetricRecord(numbers)}), reply_to=message)

        app.serve(self.train, evaluate, mods)
        return app

    def _build(self, context: Context, seed: int) -> nn.Module:
        with seeded(seed, self._devices()[0]):
            return self.build_model(context)

    def _load(self, arrays: ArrayRecord, buffers: Sequence[str], context: Context, seed: int) -> nn.Module:
        model = self._build(context, seed)
        load_model(model, arrays, buffers, self._devices()[0])
        return model.train()

    def _devices(self) -> list[torch.device]:
        devices = list(self.devices())
        if not devices:
            raise ConfigurationError("devices() must return at least one device; got []; return [torch.device('cpu')].")
        return devices


@contextmanager
def _computing_on(device: torch.device) -> Iterator[None]:
    token = _computing.set(device)
    try:
        yield
    finally:
        _computing.reset(token)


def _checked(loss: object) -> Tensor:
    if not isinstance(loss, Tensor):
        got = repr(loss)[:80]
    elif loss.numel() == 1 and loss.requires_grad:
        return loss
    else:
        got = f"a tensor of shape={tuple(loss.shape)}, requires_grad={loss.requires_grad}"
    raise ConfigurationError(
        f"batch_loss must return the batch's mean loss, one number with a gradient; got {got}; return it as a tensor, "
        "such as cross_entropy(model(inputs), labels), without detaching it."
    )


def _plain_number(value: Any) -> Any:
    """Convert a NumPy or torch number to a Python number, which Flower requires; return anything else as it is."""
    return value.item() if isinstance(value, (np.number, Tensor)) else value


def _warn_of_unreached(names: tuple[str, ...]) -> None:
    if names and names not in _warned_of:
        _warned_of.add(names)
        logger.warning(
            "No batch's loss depends on %d parameters in this round (%s), so no step moves them.",
            len(names),
            ", ".join(names[:10]) + (", ..." if len(names) > 10 else ""),
        )
