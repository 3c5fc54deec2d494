"""The server's steps are those of the optimizer that training code has made."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from solon_fl import ConfigurationError
from solon_fl.clients import TrainedOnly
from solon_fl.clients.server_side import Made, ServerSide
from tests.support import initial_model


class Tied(nn.Module):
    """Has one weight under two names, a bias, and a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.fixed = nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.fixed.requires_grad_(False)


def made_with(kind: Callable[..., torch.optim.Optimizer], max_grad_norm: float = 0.0) -> Made:
    model = TrainedOnly(initial_model(Tied))
    tied: Any = model.model
    groups = [{"params": [tied.one.weight, tied.fixed.weight], "lr": 0.5}, {"params": [tied.one.bias]}]
    optimizer = kind(groups, lr=0.1)
    return Made(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1), max_grad_norm)


@pytest.mark.parametrize("kind", [torch.optim.SGD, partial(torch.optim.Adagrad, initial_accumulator_value=0.3)])
def test_the_server_steps_as_the_optimizer_would(kind: Callable[..., torch.optim.Optimizer]) -> None:
    """Parameter groups, clipping that counts tied weights once, and Adagrad's initial state."""
    side = ServerSide(lambda: made_with(kind, max_grad_norm=0.5))
    for _ in range(2):  # a second run with the same object starts anew
        state = side.model.state_dict(keep_vars=True)
        tensors = [value.detach().clone() for value in state.values() if value.requires_grad]
        optimizer = side.optimizer(tensors)
        assert side.scheduler is not None
        schedule = side.scheduler(optimizer)
        assert all(any(one is other for other in tensors) for one in optimizer.state)
        plain = made_with(kind)
        one: Any = plain.model.model.one
        for _ in range(2):
            one.weight.grad, one.bias.grad = torch.full((3, 3), 2.0), torch.ones(3)
            torch.nn.utils.clip_grad_norm_([one.weight, one.bias], 0.5)
            plain.optimizer.step()
            for tensor in tensors:
                tensor.grad = torch.full_like(tensor, 2.0 if tensor.dim() == 2 else 1.0)
            optimizer.step()
        expected = [one.weight, one.bias, one.weight]
        for tensor, value in zip(tensors, expected, strict=True):
            torch.testing.assert_close(tensor, value.detach())
        schedule.step()
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.01])


def test_a_scheduler_of_another_optimizer_is_refused() -> None:
    side = ServerSide(lambda: made_with(torch.optim.SGD))
    assert side.scheduler is not None
    with pytest.raises(ConfigurationError, match="got another SGD"):
        side.scheduler(torch.optim.SGD([torch.zeros(1)], lr=0.1))
