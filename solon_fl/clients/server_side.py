"""What the server takes from training code: the model, and the optimizer and scheduler that were written for it."""

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
    """What training code makes.

    Attributes
    ----------
    model : TrainedOnly
        With the initial weights.
    optimizer : Optimizer
        Of the model's parameters.
    scheduler : LRScheduler, optional
        Of that optimizer.
    max_grad_norm : float
        To which gradients are clipped before each step, over all parameters; 0 for as they are.
    """

    model: TrainedOnly
    optimizer: Optimizer
    scheduler: LRScheduler | None = None
    max_grad_norm: float = 0.0


class ServerSide:
    """What a `SolonStrategy` is given.

    Attributes
    ----------
    model : TrainedOnly
        With the initial weights: ``ArrayRecord(model.state_dict())`` and ``buffer_names(model)`` are what a run starts
        from.
    scheduler : callable or None
        Makes the scheduler of an optimizer that `optimizer` has made.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._unused: Made | None = make()
        self._scheduler_of_latest = self._unused.scheduler
        self.model = self._unused.model
        self.scheduler = self._scheduler if self._unused.scheduler else None

    def optimizer(self, tensors: list[Tensor]) -> Optimizer:
        """Return the optimizer, in the same groups of parameters, of the server's tensors.

        Parameters
        ----------
        tensors : list of Tensor
            One for each trained entry of the model's state_dict, in its order; a tied one has several.
        """
        made = self._unused or self._make()  # its parameters are replaced, so that it serves once
        self._unused = None
        self._scheduler_of_latest = made.scheduler
        tensors_of = _tensors_of(made.model, tensors)
        _take_over(made.optimizer, tensors_of)
        if made.max_grad_norm:
            counted = [copies[0] for copies in tensors_of.values()]  # a tied one once
            _clip_before_steps(made.optimizer, made.max_grad_norm, tensors, counted)
        return made.optimizer

    def _scheduler(self, optimizer: Optimizer) -> LRScheduler:
        made = self._scheduler_of_latest
        assert made is not None
        if made.optimizer is not optimizer:
            raise ConfigurationError(
                "the scheduler belongs to the optimizer that was made beside it; got another "
                f"{type(optimizer).__name__}; give SolonStrategy both, the optimizer and the scheduler."
            )
        return made


def _tensors_of(model: TrainedOnly, tensors: list[Tensor]) -> dict[Tensor, list[Tensor]]:
    """Return the server's tensors of each parameter: a tied one has several, as it has several names."""
    trained = [value for value in model.state_dict(keep_vars=True).values() if value.requires_grad]
    found = defaultdict[Tensor, list[Tensor]](list)
    for parameter, tensor in zip(trained, tensors, strict=True):
        found[parameter].append(tensor)
    return found


def _take_over(optimizer: Optimizer, tensors_of: Mapping[Tensor, list[Tensor]]) -> None:
    """Put tensors in the place of an optimizer's parameters, before its first step; frozen ones have none."""
    for group in optimizer.param_groups:
        group["params"] = [tensor for parameter in group["params"] for tensor in tensors_of.get(parameter, ())]
    state = {  # some optimizers have one from the start
        tensor: {key: _copied(value) for key, value in values.items()}
        for parameter, values in optimizer.state.items()
        for tensor in tensors_of.get(parameter, ())
    }
    optimizer.state.clear()
    optimizer.state.update(state)


def _copied(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value


def _clip_before_steps(optimizer: Optimizer, max_norm: float, tensors: list[Tensor], counted: list[Tensor]) -> None:
    """Clip the gradients of all tensors to a norm, which is that of the counted ones."""

    def clip(*_: object) -> None:
        norm = torch.nn.utils.get_total_norm([tensor.grad for tensor in counted if tensor.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(tensors, max_norm, norm)

    optimizer.register_step_pre_hook(clip)
