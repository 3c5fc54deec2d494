"""The user's factories of optimizers and schedulers: checks them, and calls them."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from solon_fl.errors import ConfigurationError

__all__ = [
    "OptimizerFactory",
    "SchedulerFactory",
    "check_factories",
    "made_by",
    "make_optimizer",
    "make_scheduler",
    "name_of",
    "share_of_an_update",
]

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], LRScheduler]


def check_factories(optimizer: object, scheduler: object) -> None:
    """Raise ConfigurationError for objects that are not factories, and for optimizers that can't work on a server.

    The product of a plain function is only known once it is called: see `make_optimizer`.
    """
    if isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer):
        raise ConfigurationError(
            f"optimizer must be callable and make an optimizer from a list of parameters; got a {name_of(optimizer)}; "
            "give a class with its settings, such as functools.partial(torch.optim.SGD, lr=0.1)."
        )
    _check_kind(made_by(optimizer)[0])
    if scheduler is not None and not (callable(scheduler) and not isinstance(scheduler, LRScheduler)):
        raise ConfigurationError(
            f"scheduler must be callable and make a scheduler from an optimizer; got a {name_of(scheduler)}; give a "
            "class with its settings, such as functools.partial(torch.optim.lr_scheduler.StepLR, step_size=30)."
        )


def made_by(factory: object) -> tuple[object, dict[str, Any]]:
    """Return the class that a factory instantiates and its settings, if the factory is a class or a partial."""
    return getattr(factory, "func", factory), dict(getattr(factory, "keywords", {}))


def share_of_an_update(kind: object, settings: Mapping[str, Any]) -> float:
    """Return the fraction of a repeated change that an SGD adds in the long run; 1 if that is not known."""
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.SGD)):
        return 1.0
    usual = {name: argument.default for name, argument in signature(kind).parameters.items()}
    rate, momentum, dampening = (float({**usual, **settings}.get(name, 0)) for name in ("lr", "momentum", "dampening"))
    if not 0 < momentum < 1:
        return rate
    return rate * (1 - dampening) / (1 - momentum)


def name_of(thing: object) -> str:
    """Return the name of an object's class."""
    return type(thing).__name__


def _steps(scheduler: object, optimizer: object) -> bool:
    """Return whether an object looks like a scheduler of that optimizer."""
    return hasattr(scheduler, "step") and getattr(scheduler, "optimizer", optimizer) is optimizer


def _check_kind(kind: object) -> None:
    """Refuse optimizers that need more than one gradient per step."""
    for unfit, lack in (
        (torch.optim.LBFGS, "evaluates the loss several times per step, which the nodes can't do"),
        (torch.optim.SparseAdam, "takes only sparse gradients, and those of the nodes are dense"),
    ):
        if isinstance(kind, type) and issubclass(kind, unfit):
            raise ConfigurationError(
                f"optimizer must step with one dense gradient; got {kind.__name__}, which {lack}; "
                "use another, such as SGD or Adam."
            )


def make_optimizer(factory: OptimizerFactory, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return the factory's optimizer of the parameters; ConfigurationError if it returns anything else."""
    try:
        made = factory(parameters)
    except ValueError as error:
        raise ConfigurationError(
            f"optimizer must make an optimizer from the model's parameters, plain tensors; it failed: {error}; "
            "do not select parameters by requires_grad, which none has here: frozen ones are left out already."
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigurationError(f"optimizer must make a torch.optim.Optimizer; got a {name_of(made)} from it.")
    _check_kind(type(made))
    given = {id(parameter) for parameter in parameters}
    if any(id(tensor) not in given for group in made.param_groups for tensor in group["params"]):
        raise ConfigurationError(
            "optimizer must make an optimizer of the tensors that it is given; got one of other tensors, which would "
            "not change the server's model; write lambda tensors: SGD(tensors, lr=0.1), not SGD(model.parameters())."
        )
    return made


def make_scheduler(factory: SchedulerFactory, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Return the factory's scheduler of the optimizer; ConfigurationError if it returns anything else."""
    made = factory(optimizer)
    if not _steps(made, optimizer):
        raise ConfigurationError(
            "scheduler must make a scheduler of the optimizer that it is given; got a "
            f"{name_of(made)}, or one of another optimizer; write, for example, lambda optimizer: "
            "StepLR(optimizer, 30), and combine several with SequentialLR."
        )
    if isinstance(made, ReduceLROnPlateau):
        raise ConfigurationError(
            "the scheduler must set the rate by the number of steps; got ReduceLROnPlateau, which needs a metric; "
            "use another scheduler of torch.optim.lr_scheduler."
        )
    return made
