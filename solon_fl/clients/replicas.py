"""Replicas of one model on several devices, which take turns on the batches and give the result of a single device."""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["hand_over", "replicas_of"]


def replicas_of(
    model: nn.Module, devices: Sequence[torch.device], build: Callable[[], nn.Module] | None = None
) -> list[nn.Module]:
    """Return the model, moved to the first device, and a copy of it on each other device.

    `build` makes another model with the same state. It is used for models that can't be copied, such as those pruned
    with torch.
    """
    return [model.to(devices[0]), *(_copy_of(model, build).to(device) for device in devices[1:])]


def _copy_of(model: nn.Module, build: Callable[[], nn.Module] | None) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError:
        built = build() if build else model
        if built is model:
            raise
        return built


@torch.no_grad()
def hand_over(source: nn.Module, target: nn.Module) -> None:
    """Copy the source's buffers and frozen weights to the target, including those that were rebound.

    Copies are asynchronous. A buffer that the target lacks, or has in another shape, is rebound there.
    """
    own = dict(_state_without_gradient(target))
    for name, value in _state_without_gradient(source):
        before = own.get(name)
        if before is not None and (before.shape, before.dtype) == (value.shape, value.dtype):
            before.copy_(value)
            continue
        path, _, attribute = name.rpartition(".")
        moved = value.detach().to(next(target.parameters()).device, copy=True)
        is_weight = isinstance(value, nn.Parameter)
        setattr(target.get_submodule(path), attribute, nn.Parameter(moved, requires_grad=False) if is_weight else moved)


def _state_without_gradient(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_buffers()
    yield from ((name, value) for name, value in model.named_parameters() if not value.requires_grad)
