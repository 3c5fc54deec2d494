"""An adapter that runs a LightningModule and a DataLoader on Solon nodes."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from flwr.app import Context
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from solon_fl.clients.determinism import seeded
from solon_fl.clients.loaders import check_loader, examples_of
from solon_fl.clients.mixin import SolonClientMixin
from solon_fl.clients.server_side import Made, ServerSide
from solon_fl.clients.trained import TrainedOnly
from solon_fl.errors import ConfigurationError
from solon_fl.task import Batch

__all__ = ["LightningClient"]

CPU = torch.device("cpu")


class LightningClient(SolonClientMixin):
    """Computes gradients with a LightningModule's ``training_step`` on batches of a DataLoader.

    Works with both Lightning packages, ``lightning`` and ``pytorch_lightning``.

    Parameters
    ----------
    make_module : callable
        Takes a Flower Context, the server's or a node's, and returns the LightningModule. The Context's ``run_config``
        and ``node_config`` hold the settings of the run and the node. It is called in every round, so that no state
        remains from the previous one, with torch seeded with the run's seed.
    make_loader : callable
        Takes a Context and returns the DataLoader of the training data, for example
        ``make_datamodule().train_dataloader()`` after ``setup``. It is called again only if the Context's configs
        change.

    Raises
    ------
    ConfigurationError
        In a round, if the module uses manual optimization, or if the loader has no length, no batch_size, or a sampler
        or batches of its own.

    Notes
    -----
    Nodes call the module's ``training_step``, which returns the loss or a dict with "loss", and the hooks
    ``on_before_batch_transfer``, ``transfer_batch_to_device`` and ``on_after_batch_transfer``. The server calls
    ``configure_optimizers``; see `for_server`. Of the loader, ``dataset``, ``batch_size`` and ``collate_fn`` are used.

    There is no Lightning Trainer, so its other hooks, callbacks, loggers, precision and clipping have no effect, and
    ``self.trainer`` is not set. ``self.log`` does nothing; `RoundReport.training_loss` is the mean loss.

    Each example comes once an epoch, in an order that follows from the run's seed. ``batch_idx`` counts the batches of
    the run. Only trained weights are sent; see `TrainedOnly`.

    Examples
    --------
    >>> client = LightningClient(
    ...     make_module=lambda context: MyModule(),
    ...     make_loader=lambda context: DataLoader(my_dataset, batch_size=32),
    ... )
    >>> app = client.client_app()
    """

    def __init__(self, make_module: Callable[[Context], Any], make_loader: Callable[[Context], Any]) -> None:
        self._make_module = make_module
        self._make_loader = make_loader
        self._loader: Any = None
        self._loader_for: tuple[object, ...] | None = None

    def build_model(self, context: Context) -> nn.Module:
        """Return the module; see `SolonClientMixin.build_model`."""
        return TrainedOnly(_checked(self._make_module(context)))

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        """Return the loss of the module's ``training_step``; see `SolonClientMixin.batch_loss`."""
        module: Any = model.model
        device, loader = self.device(), self._loader_of(context)
        module.to(device)  # moves nothing, but sets module.device
        examples = module.on_before_batch_transfer(examples_of(loader, batch, loader.batch_size), 0)
        examples = module.on_after_batch_transfer(module.transfer_batch_to_device(examples, device, 0), 0)
        wants_number = len(signature(module.training_step).parameters) > 1
        result = module.training_step(examples, *([batch.place] if wants_number else []))
        loss: Tensor = result["loss"] if isinstance(result, Mapping) else result
        return loss

    def for_server(self, context: Context, *, seed: int = 0) -> ServerSide:
        """Return the initial module, with the optimizer and scheduler from its ``configure_optimizers``.

        Parameters
        ----------
        context : Context
            The ServerApp's context.
        seed : int
            The run's seed, `SolonConfig.seed`.

        Raises
        ------
        ConfigurationError
            If ``configure_optimizers`` does not return exactly one optimizer, or if it returns several schedulers or
            one that does not step after every optimizer step.
        """

        def make() -> Made:
            with seeded(seed, CPU):
                model = TrainedOnly(_checked(self._make_module(context)))
            return Made(model, *_configured(model.model))

        return ServerSide(make)

    def _loader_of(self, context: Context) -> Any:
        loader_for = dict(context.run_config), dict(context.node_config)
        if self._loader_for != loader_for:
            self._loader = self._make_loader(context)
            check_loader(self._loader)
            self._loader_for = loader_for
        return self._loader


def _unlogged(*_: object, **__: object) -> None:
    """Replace a module's `log` and `log_dict`, which need a Trainer."""


def _checked(module: Any) -> Any:
    if not hasattr(module, "training_step"):
        raise ConfigurationError(
            f"make_module must return a LightningModule; got a {type(module).__name__}, which has no training_step."
        )
    if not module.automatic_optimization:
        raise ConfigurationError(
            "the server makes the steps, so the module must use automatic optimization; got "
            "automatic_optimization=False; return the loss from training_step, and let configure_optimizers return one "
            "optimizer."
        )
    module.log = module.log_dict = _unlogged
    return module


def _configured(module: Any) -> tuple[Optimizer, LRScheduler | None]:
    """Return the one optimizer from configure_optimizers, and its scheduler if there is one."""
    made = module.configure_optimizers()
    if isinstance(made, Mapping):
        optimizers, schedulers = [made.get("optimizer")], [made["lr_scheduler"]] if "lr_scheduler" in made else []
    elif isinstance(made, tuple | list) and len(made) == 2 and all(isinstance(part, tuple | list) for part in made):
        optimizers, schedulers = list(made[0]), list(made[1])
    else:
        optimizers, schedulers = list(made) if isinstance(made, tuple | list) else [made], []
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer) or len(schedulers) > 1:
        raise ConfigurationError(
            "configure_optimizers must return one optimizer and at most one scheduler, as the server makes one step a "
            f"round; got {[type(one).__name__ for one in optimizers]} and {len(schedulers)} schedulers; put all "
            "parameters into groups of a single optimizer."
        )
    return optimizers[0], _scheduler_of(schedulers[0]) if schedulers else None


def _scheduler_of(configured: Any) -> LRScheduler:
    """Return the scheduler of a Lightning lr_scheduler config, which must step with the optimizer."""
    settings = configured if isinstance(configured, Mapping) else {"scheduler": configured}
    interval, frequency = settings.get("interval", "epoch"), settings.get("frequency", 1)
    if (interval, frequency) != ("step", 1):
        raise ConfigurationError(
            "a scheduler must be stepped after every optimizer step, as the server knows no epochs; got "
            f"interval={interval!r}, frequency={frequency}; return {{'scheduler': ..., 'interval': 'step'}}, and count "
            "in steps."
        )
    scheduler: LRScheduler = settings["scheduler"]
    return scheduler
