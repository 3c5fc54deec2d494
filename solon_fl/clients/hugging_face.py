"""A Hugging Face Trainer as a Solon node: your Trainer in, a Flower ClientApp out."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from flwr.app import Context
from torch import Tensor, nn

from solon_fl.clients.determinism import seeded
from solon_fl.clients.loaders import check_loader, examples_of
from solon_fl.clients.mixin import SolonClientMixin
from solon_fl.clients.server_side import Made, ServerSide
from solon_fl.clients.trained import TrainedOnly
from solon_fl.errors import ConfigurationError
from solon_fl.task import Batch

__all__ = ["TrainerClient"]

CPU = torch.device("cpu")


class TrainerClient(SolonClientMixin):
    """Computes what a `transformers.Trainer` would: its model, its data and its loss, with PEFT's adapters or without.

    Parameters
    ----------
    make_trainer : callable
        Given a Flower Context, returns a Trainer: a server's or a node's, whose run_config and node_config say what you
        want to know. It is called again only if these or the run's seed change: the frozen weights are loaded once a
        process. torch is seeded with the run's seed, so that random weights are the same everywhere.

    Raises
    ------
    ConfigurationError
        In a round, if the Trainer asks for what nodes can't do: float16 with its loss scaling, NEFTune, dynamic RoPE,
        a dataset without a length, a sampler or batches of its own.

    Notes
    -----
    Taken from the Trainer: model, training dataset, collator, per_device_train_batch_size, compute_loss with label
    smoothing or a loss function of yours, bfloat16, gradient checkpointing; and by the server, see `for_server`,
    optimizer, schedule and clipping.
    Not taken: its loop, with callbacks, logging and saving; the number of epochs; gradient_accumulation_steps
    (`SolonConfig.batches_per_group`). Examples come once an epoch, in an order that follows from the run's seed.
    Only what is trained travels, see `TrainedOnly`.
    Each round starts from the model as it was made: a node that missed one computes what the others do. Non-persistent
    buffers, attributes of its modules (flags of checkpointing or of PEFT's adapters, caches) and requires_grad are put
    back. What such attributes refer to is not: lists, the config, registered hooks. Nor are your Trainer's own
    attributes, its dataset and its collator. Let nothing in them follow from what was computed before.
    A batch's loss is the mean over its own tokens, and batches count alike. The Trainer weights batches that it
    accumulates by their tokens: the same where all batches have as many.

    Examples
    --------
    >>> def make_trainer(context):
    ...     return Trainer(model=..., args=TrainingArguments(...), train_dataset=...)
    >>> client = TrainerClient(make_trainer)
    >>> app = client.client_app()
    """

    def __init__(self, make_trainer: Callable[[Context], Any]) -> None:
        self._make_trainer = make_trainer
        self._made_for: tuple[object, ...] | None = None
        self._trainer: Any = None
        self._loader: Any = None
        self._model = TrainedOnly(nn.Identity())
        self._as_made = _AsMade(self._model)

    def build_model(self, context: Context) -> nn.Module:
        """Return the Trainer's model; see `SolonClientMixin.build_model`."""
        made_for = torch.initial_seed(), dict(context.run_config), dict(context.node_config)
        if self._made_for != made_for:
            self._trainer = _checked(self._make_trainer(context))
            self._loader = self._trainer.get_train_dataloader()
            check_loader(self._loader)
            self._model = _model_of(self._trainer)
            self._as_made = _AsMade(self._model.model)
            self._made_for = made_for
        self._as_made.restore()
        return self._model

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        """Return the Trainer's loss of the batch; see `SolonClientMixin.batch_loss`."""
        from accelerate.utils import send_to_device

        trainer = self._trainer
        inputs = examples_of(self._loader, batch, trainer.args.per_device_train_batch_size)
        with trainer.compute_loss_context_manager():
            loss: Tensor = trainer.compute_loss(model.model, send_to_device(inputs, self.device()))
        return loss

    def for_server(self, context: Context, *, num_rounds: int, seed: int = 0) -> ServerSide:
        """Return the model that a run starts from, and the Trainer's optimizer and schedule.

        Parameters
        ----------
        context : Context
            The ServerApp's.
        num_rounds : int
            For the schedule: a round is a step.
        seed : int
            The run's, `SolonConfig.seed`.

        Notes
        -----
        Gradients are clipped to the Trainer's max_grad_norm (1 by default) on the server, where the exact mean is.
        """

        def make() -> Made:
            with seeded(seed, CPU):
                trainer = _checked(self._make_trainer(context))
            model = _model_of(trainer)
            optimizer = trainer.create_optimizer()
            scheduler = trainer.create_scheduler(num_training_steps=num_rounds, optimizer=optimizer)
            return Made(model, optimizer, scheduler, trainer.args.max_grad_norm or 0.0)

        return ServerSide(make)


class _AsMade:
    """What a model keeps outside of its state_dict, as it is when this is made."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [(module, dict(vars(module)), _non_persistent(module)) for module in model.modules()]
        self._requires_grad = [(value, value.requires_grad) for value in model.parameters()]

    def restore(self) -> None:
        """Put it back."""
        for module, attributes, buffers in self._kept:
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
            module._buffers.update({name: value.clone() for name, value in buffers.items()})
        for value, required in self._requires_grad:
            value.requires_grad_(required)


def _non_persistent(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's own buffers that are not in its state_dict."""
    names = module._non_persistent_buffers_set
    return {name: value.clone() for name, value in module._buffers.items() if name in names and value is not None}


def _model_of(trainer: Any) -> TrainedOnly:
    """Return the model with what else Trainer.train would switch on: checkpointing and mixed precision."""
    args, name = trainer.args, "activation_checkpointing"
    if not hasattr(args, name):
        name = "gradient_checkpointing"  # as transformers called it until 5.2x
    if getattr(args, name):
        getattr(trainer.model, f"{name}_enable")(getattr(args, f"{name}_kwargs"))
    return TrainedOnly(trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True))


def _checked(trainer: Any) -> Any:
    if not hasattr(trainer, "compute_loss"):
        raise ConfigurationError(
            f"make_trainer must return a transformers.Trainer; got a {type(trainer).__name__}; return "
            "Trainer(model=..., args=..., train_dataset=...)."
        )
    for name, remedy in (
        ("fp16", "as the factor of its loss scaling follows from what a node has seen; set bf16=True"),
        ("neftune_noise_alpha", "which Trainer.train alone switches on; add the noise in your model"),
    ):
        value = getattr(trainer.args, name, None)
        if value:
            raise ConfigurationError(f"nodes can't compute with {name}={value}, {remedy}, or leave it out.")
    for module in trainer.model.modules():
        types = getattr(module, "rope_type", "")
        if any("dynamic" in str(one) for one in (types.values() if isinstance(types, Mapping) else [types])):
            raise ConfigurationError(
                f"nodes can't compute with rope_type={types!r}, as its frequencies follow from the batches before; set "
                "another in the model's config, such as 'linear' or 'yarn', and 'dynamic' after training."
            )
    return trainer
