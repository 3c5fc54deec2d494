"""An adapter that runs a Hugging Face Trainer on Solon nodes."""

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
    """Computes gradients with a `transformers.Trainer`'s model, data and loss, with or without PEFT adapters.

    Parameters
    ----------
    make_trainer : callable
        Takes a Flower Context, the server's or a node's, and returns a Trainer. The Context's ``run_config`` and
        ``node_config`` hold the settings of the run and the node. It is called again only if these or the run's seed
        change, so frozen weights are loaded once per process. torch is seeded with the run's seed, so that random
        weights are the same everywhere.

    Raises
    ------
    ConfigurationError
        In a round, if the Trainer uses a feature that nodes don't support: float16 with its loss scaling, NEFTune,
        dynamic RoPE, a dataset without a length, or a sampler or batches of its own.

    Notes
    -----
    Nodes use the Trainer's model, training dataset, collator, ``per_device_train_batch_size``, ``compute_loss``
    (with label smoothing or a loss function of yours), bfloat16 and gradient checkpointing. The server uses its
    optimizer, schedule and clipping; see `for_server`.

    Nothing uses the Trainer's loop with its callbacks, logging and saving, its number of epochs, or
    ``gradient_accumulation_steps`` (set `SolonConfig.batches_per_group` instead). Each example comes once an epoch, in
    an order that follows from the run's seed. Only trained weights are sent; see `TrainedOnly`.

    Each round starts from the model as it was made, so that a node that missed a round computes the same as the others.
    Non-persistent buffers, attributes of the model's modules (such as checkpointing flags, flags of PEFT's adapters and
    caches) and ``requires_grad`` are restored. Objects that those attributes refer to are not: lists, the config,
    registered hooks. Neither are attributes of the Trainer, its dataset and its collator. None of these may depend on
    earlier computations.

    A batch's loss is the mean over its own tokens, and all batches have equal weight. The Trainer weights the batches
    that it accumulates by their numbers of tokens. Both are the same if all batches have equally many.

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
        """Return the initial model, and the Trainer's optimizer and schedule.

        Parameters
        ----------
        context : Context
            The ServerApp's context.
        num_rounds : int
            Number of steps of the schedule; a round is one step.
        seed : int
            The run's seed, `SolonConfig.seed`.

        Notes
        -----
        The server, which has the exact mean gradient, clips it to the Trainer's ``max_grad_norm`` (1 by default).
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
    """A snapshot of the state that a model keeps outside its state_dict."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [(module, dict(vars(module)), _non_persistent(module)) for module in model.modules()]
        self._requires_grad = [(value, value.requires_grad) for value in model.parameters()]

    def restore(self) -> None:
        """Restore the snapshot."""
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
    """Return the model with checkpointing and mixed precision switched on as Trainer.train would."""
    args, name = trainer.args, "activation_checkpointing"
    if not hasattr(args, name):
        name = "gradient_checkpointing"  # its name in transformers until 5.2x
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
        ("fp16", "as its loss scaling factor depends on the batches that a node has seen; set bf16=True"),
        ("neftune_noise_alpha", "which only Trainer.train switches on; add the noise in your model"),
    ):
        value = getattr(trainer.args, name, None)
        if value:
            raise ConfigurationError(f"nodes can't compute with {name}={value}, {remedy}, or leave it out.")
    for module in trainer.model.modules():
        types = getattr(module, "rope_type", "")
        if any("dynamic" in str(one) for one in (types.values() if isinstance(types, Mapping) else [types])):
            raise ConfigurationError(
                f"nodes can't compute with rope_type={types!r}, as its frequencies depend on earlier batches; set "
                "another type in the model's config, such as 'linear' or 'yarn', and 'dynamic' after training."
            )
    return trainer
