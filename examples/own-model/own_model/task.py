"""Your existing code: a model, data, training and testing. Nothing in this file uses Solon."""

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from solon_fl.simulations.datasets import Dataset, load_dataset


class Net(nn.Module):
    """A network with one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(28 * 28, 100)
        self.output = nn.Linear(100, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images, (N, 1, 28, 28)."""
        logits: Tensor = self.output(self.hidden(images.flatten(1)).relu())
        return logits


@cache
def load_data() -> Dataset:
    """Return the images; each process reads them once."""
    return load_dataset("fashion-mnist-6k")


def train(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], rate: float) -> None:
    """Make one step of SGD for each batch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    for images, labels in batches:
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()


@torch.inference_mode()
def test(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy, from 0 to 1."""
    right = net(images).argmax(1) == labels
    return float(right.float().mean())
