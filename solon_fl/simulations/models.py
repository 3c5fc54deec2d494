"""The networks that the simulations train: a linear one, a small convolutional one, and ResNet-18."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solon_fl.errors import ConfigurationError

__all__ = ["MODELS", "build_model"]

_Shape = tuple[int, int, int]  # channels, height, width


def build_model(name: str, input_shape: _Shape, num_classes: int, seed: int) -> nn.Module:
    """A network on the CPU, in training mode, whose initial weights depend on nothing but the arguments.

    Parameters
    ----------
    name : str
        ``logistic``: one linear layer. ``cnn``: two convolutions and a linear layer, quick on a CPU.
        ``resnet18``: ResNet-18 as made for 32 x 32 pixels, with batch normalisation.
    input_shape : tuple of int
        One image's channels, height and width, each at least 1 (pixels).
    num_classes : int
        The length of an output row, at least 1.
    seed : int
        Of the initial weights, from 0 to 2**63 - 1. The global random state is left as it was.

    Returns
    -------
    nn.Module
        Takes images, float32, (N, C, H, W); returns logits, float32, (N, num_classes).

    Raises
    ------
    ConfigurationError
        If the name is not in `MODELS`, or a number is out of its range.

    Notes
    -----
    Parameters for 10 classes, with inputs of 1 x 28 x 28 and of 3 x 32 x 32: ``logistic`` 7,850 and 30,730;
    ``cnn`` 20,746 and 26,346; ``resnet18`` 11,172,810 and 11,173,962.

    ``resnet18`` also keeps running means and variances, which are buffers, not parameters: they follow the batches
    that a copy of the network has seen, so that copies with the same parameters may differ in them.

    Examples
    --------
    >>> model = build_model("cnn", (1, 28, 28), num_classes=10, seed=0)
    >>> model(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 10])

    References
    ----------
    ``resnet18``: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016, table 1,
    with the first layers of section 4.2 (a 3 x 3 convolution of stride 1, no pooling). Differs from section 4.2: the
    shortcuts that change the shape are 1 x 1 convolutions, as in section 4.1, option B.
    """
    if name not in MODELS:
        raise ConfigurationError(f"model must be one of {', '.join(MODELS)}; got model={name!r}; choose one.")
    if len(input_shape) != 3 or min(*input_shape, num_classes) < 1:
        raise ConfigurationError(
            "channels, height, width and num_classes must be at least 1; got "
            f"input_shape={input_shape}, num_classes={num_classes}; raise the one that is lower."
        )
    if not 0 <= seed < 2**63:
        raise ConfigurationError(f"seed must be from 0 to 2**63 - 1; got seed={seed}; choose another.")
    # devices=[] and the CPU's own generator: torch.manual_seed would also reseed every accelerator.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return MODELS[name](input_shape, num_classes)


def _logistic(input_shape: _Shape, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))


def _cnn(input_shape: _Shape, num_classes: int) -> nn.Module:
    channels, height, width = input_shape
    # Measured on fashion-mnist-6k: strides in place of pooling halve a step's time at no loss of accuracy, and with
    # tanh the loss falls steadily at learning rates of 0.02 to 0.1, where ReLU's first overshoots its start.
    return nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=5, stride=2, padding=2),
        nn.Tanh(),
        nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        # Each stride of 2 halves the side, rounding up.
        nn.Linear(32 * math.ceil(height / 4) * math.ceil(width / 4), num_classes),
    )


def _resnet18(input_shape: _Shape, num_classes: int) -> nn.Module:
    layers: list[nn.Module] = [*_normalised_convolution(input_shape[0], 64, kernel_size=3, stride=1), nn.ReLU()]
    channels = 64
    for out_channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_ResidualBlock(channels, out_channels, stride), _ResidualBlock(out_channels, out_channels, 1)]
        channels = out_channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


MODELS: dict[str, Callable[[_Shape, int], nn.Module]] = {
    "logistic": _logistic,
    "cnn": _cnn,
    "resnet18": _resnet18,
}
"""The networks' names, each with its builder; a builder draws on the global random state, `build_model` does not."""


def _normalised_convolution(channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Sequential:
    padding = kernel_size // 2
    # No bias: the normalisation would subtract it.
    convolution = nn.Conv2d(channels, out_channels, kernel_size, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class _ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, added to the input, or to a 1 x 1 convolution of it where the shape changes."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = _normalised_convolution(channels, out_channels, kernel_size=3, stride=stride)
        self.second = _normalised_convolution(out_channels, out_channels, kernel_size=3, stride=1)
        is_same_shape = stride == 1 and channels == out_channels
        self.shortcut: nn.Module = (
            nn.Identity() if is_same_shape else _normalised_convolution(channels, out_channels, 1, stride)
        )

    def forward(self, images: Tensor) -> Tensor:
        residual: Tensor = self.second(F.relu(self.first(images)))
        return F.relu(residual + self.shortcut(images))
