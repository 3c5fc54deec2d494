"""Hands the model, optimizer and scheduler of existing training code to the server."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from solon_fl.clients.trained import TrainedOnly
from solon_fl.errors import ConfigurationError

__all__ = ["Made", "ServerSide"]


@dataclass(frozen=True)
class Made:
    """The objects that training code makes.

    Attributes
    ----------
    model : TrainedOnly
        The model, with the initial weights.
    optimizer : Optimizer
        An optimizer of the model's parameters.
    scheduler : LRScheduler, optional
        A scheduler of that optimizer.
    max_grad_norm : float
        The norm over all parameters to which gradients are clipped before each step; 0 means no clipping.
    """

    model: TrainedOnly
    optimizer: Optimizer
    scheduler: LRScheduler | None = None
    max_grad_norm: float = 0.0


class ServerSide:
    """The arguments that a `SolonStrategy` needs.

    Attributes
    ----------
    model : TrainedOnly
        The model with the initial weights. Start a run from ``ArrayRecord(model.state_dict())``, with
        ``buffer_names(model)`` as the strategy's buffers.
    scheduler : callable or None
        Takes an optimizer that `optimizer` has made, and returns its scheduler.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._unused: Made | None = make()
        self._scheduler_of_latest = self._unused.scheduler
        self.model = self._unused.model
        self.scheduler = self._scheduler if self._unused.scheduler else None

    def optimizer(self, tensors: list[Tensor]) -> Optimizer:
        """Return the optimizer for the server's tensors, with the same parameter groups.

        Parameters
        ----------
        tensors : list of Tensor
            One for each trained entry of the model's state_dict, in its order. A tied parameter has several.
        """
        made = self._unused or self._make()  # usable once, because the optimizer's parameters are replaced
        self._unused = None
        self._scheduler_of_latest = made.scheduler
        tensors_of = _tensors_of(made.model, tensors)
        _take_over(made.optimizer, tensors_of)
        if made.max_grad_norm:
            counted = [copies[0] for copies in tensors_of.values()]  # tied copies once
            _clip_before_steps(made.optimizer, made.max_grad_norm, tensors, counted)
        return made.optimizer

    def _scheduler(self, optimizer: Optimizer) -> LRScheduler:
        made = self._scheduler_of_latest
        assert made is not None
        if made.optimizer is not optimizer:
            raise ConfigurationError(
                "the scheduler belongs to the optimizer that was made with it; got another "
                f"{type(optimizer).__name__}; give SolonStrategy both the optimizer and the scheduler."
            )
        return made


def _tensors_of(model: TrainedOnly, tensors: list[Tensor]) -> dict[Tensor, list[Tensor]]:
    """Return the server's tensors of each parameter; a tied one has several, one for each of its names."""
    trained = [value for value in model.state_dict(keep_vars=True).values() if value.requires_grad]
    found = defaultdict[Tensor, list[Tensor]](list)
    for parameter, tensor in zip(trained, tensors, strict=True):
        found[parameter].append(tensor)
    return found


def _take_over(optimizer: Optimizer, tensors_of: Mapping[Tensor, list[Tensor]]) -> None:
    """Replace an optimizer's parameters with tensors before its first step, dropping frozen parameters."""
    for group in optimizer.param_groups:
        group["params"] = [tensor for parameter in group["params"] for tensor in tensors_of.get(parameter, ())]
    state = {  # some optimizers have state from the start
        tensor: {key: _copied(value) for key, value in values.items()}
        for parameter, values in optimizer.state.items()
        for tensor in tensors_of.get(parameter, ())
    }
    optimizer.state.clear()
    optimizer.state.update(state)


def _copied(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value


def _clip_before_steps(optimizer: Optimizer, max_norm: float, tensors: list[Tensor], counted: list[Tensor]) -> None:
    """Clip the gradients of all tensors before each step; their norm is taken over the counted ones only."""

    def clip(*_: object) -> None:
        norm = torch.nn.utils.get_total_norm([tensor.grad for tensor in counted if tensor.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(tensors, max_norm, norm)

    optimizer.register_step_pre_hook(clip)
