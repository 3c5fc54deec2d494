"""The networks that simulations train: five for images, from a linear layer to ResNet-18, and one for texts."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solon_fl.checks import check_one_of
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.own import OWN, OwnCodeError, call_own, is_own, load_own, seeded

__all__ = ["MODELS", "build_model", "check_model_name"]

_Shape = tuple[int, ...]  # channels, height, width; or vocabulary size, length


def build_model(name: str, input_shape: _Shape, num_classes: int, seed: int) -> nn.Module:
    """Return a network on the CPU, in training mode, whose initial weights depend only on the arguments.

    Parameters
    ----------
    name : str
        A name in `MODELS`, or an import path.

        For images: ``logistic`` is one linear layer. ``mlp`` has two hidden layers of 700: many parameters for little
        computation. ``cnn`` has two convolutions and a linear layer, and is quick on a CPU. ``resnet18`` is ResNet-18
        for 32 x 32 pixels, with batch normalisation. ``vgg13`` has VGG's ten 3 x 3 convolutions, each with batch
        normalisation, five poolings and one linear layer.

        For texts: ``textcnn`` has an embedding of 64, 50 filters for each window of 3, 4 and 5 words, a maximum over
        the text for each filter, and a linear layer, without dropout.

        An import path ``module:name`` leads to a class or function that returns a new ``nn.Module``. It is called with
        those of `input_shape` and `num_classes` that its signature names. The random states of torch's CPU, numpy and
        Python are seeded while it runs.
    input_shape : tuple of int
        Channels, height and width of an image (pixels), or vocabulary size and length of a text (tokens), each at least
        1. Your own network may take other shapes. See `Dataset.input_shape`.
    num_classes : int
        Length of an output row, at least 1.
    seed : int
        Seed of the initial weights, from 0 to ``2**63 - 1``. The global random states are left unchanged.

    Returns
    -------
    nn.Module
        It takes images, float32, (N, C, H, W), or token ids, int64, (N, L), and returns logits, float32,
        (N, num_classes).

    Raises
    ------
    ConfigurationError
        If the name is neither in `MODELS` nor an import path, the network is not for this kind of input, a text is
        shorter than textcnn's widest window, a number is out of range, or your own code raises or returns no module.

    Notes
    -----
    Parameters for 10 classes:

    ============  ===========  ===========
    network       1 x 28 x 28  3 x 32 x 32
    ============  ===========  ===========
    ``logistic``        7,850       30,730
    ``mlp``         1,047,210    2,648,810
    ``cnn``            20,746       26,346
    ``resnet18``   11,172,810   11,173,962
    ``vgg13``       9,411,914    9,413,066
    ============  ===========  ===========

    For 2 classes, ``textcnn`` has 38,852 parameters and 64 more for each token id: 102,852 for a vocabulary of 1,000.

    ``resnet18`` and ``vgg13`` also keep running means and variances. These are buffers, not parameters. They depend on
    the batches that a copy of the network has seen, so copies with the same parameters may differ in them.

    Examples
    --------
    >>> model = build_model("cnn", (1, 28, 28), num_classes=10, seed=0)
    >>> model(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 10])

    References
    ----------
    ``resnet18``: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016, table 1,
    with the first layers of section 4.2 (a 3 x 3 convolution of stride 1, no pooling). Unlike section 4.2, shortcuts
    that change the shape are 1 x 1 convolutions, as in section 4.1, option B.

    ``vgg13``: K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR
    2015, table 1, column B. Unlike the paper, it has batch normalisation, and one linear layer instead of three with
    dropout.

    ``textcnn``: Y. Kim, "Convolutional neural networks for sentence classification", EMNLP 2014, CNN-rand. Unlike the
    paper, it has 50 filters per window instead of 100, embeddings of 64 values instead of 300, no dropout and no limit
    on the norm.
    """
    check_model_name(name)
    if not 0 <= seed < 2**63:
        raise ConfigurationError(f"seed must be from 0 to 2**63 - 1; got seed={seed}; choose another.")
    if is_own(name):
        with seeded(seed):
            return _own_model(name, input_shape, num_classes)
    if len(input_shape) not in (2, 3) or min(*input_shape, num_classes) < 1:
        raise ConfigurationError(
            "input_shape must be (channels, height, width) or (vocabulary size, length), all of these and num_classes "
            f"at least 1; got input_shape={input_shape}, num_classes={num_classes}; raise the one that is lower, or "
            f"give {OWN} as model."
        )
    kinds = ("texts", _TEXT_MODELS), ("images", _IMAGE_MODELS)
    (given, fitting), (needed, _) = kinds if len(input_shape) == 2 else kinds[::-1]
    if name not in fitting:
        raise ConfigurationError(
            f"model={name!r} needs {needed}; the data set gives {given}, input_shape={input_shape}; "
            f"choose {' or '.join(fitting)}."
        )
    with seeded(seed):
        return MODELS[name](input_shape, num_classes)


def check_model_name(name: str) -> None:
    """Raise ConfigurationError unless the name is in `MODELS` or an import path that can be imported."""
    if is_own(name):
        load_own("model", name)
    else:
        check_one_of("model", name, MODELS, OWN)


def _own_model(name: str, input_shape: _Shape, num_classes: int) -> nn.Module:
    make = load_own("model", name)
    if isinstance(make, nn.Module) or not callable(make):
        raise OwnCodeError(
            f"model={name!r} must be a class or a function that makes a network; got {type(make).__name__}; let a "
            "function return a new one, so that the seed fixes its weights."
        )
    made = call_own("model", name, make, {"input_shape": input_shape, "num_classes": num_classes})
    if not isinstance(made, nn.Module):
        raise OwnCodeError(
            f"model={name!r} must return a torch.nn.Module; got {type(made).__name__}; return the network."
        )
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in made.parameters()):
        raise OwnCodeError(
            f"model={name!r} must return a network whose lazy layers have their shapes; got one with lazy layers left; "
            "call it once, for example on torch.zeros(1, *input_shape), before you return it."
        )
    return made


def _logistic(input_shape: _Shape, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))


def _mlp(input_shape: _Shape, num_classes: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(input_shape)
    for _ in range(2):
        layers += [nn.Linear(width, 700), nn.ReLU()]
        width = 700
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def _cnn(input_shape: _Shape, num_classes: int) -> nn.Module:
    channels, height, width = input_shape
    # Measured on fashion-mnist-6k: strides instead of pooling halve a step's time without a loss of accuracy. At
    # learning rates of 0.02 to 0.1 the loss falls steadily with tanh, whereas with ReLU it first exceeds its start.
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


def _vgg13(input_shape: _Shape, num_classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for out_channels in (64, 128, 256, 512, 512):
        for in_channels in (channels, out_channels):
            layers += [*_normalised_convolution(in_channels, out_channels, kernel_size=3, stride=1), nn.ReLU()]
        # Rounding up: 28 pixels become 14, 7, 4 and 2. Rounding down would leave 1 for the last pooling.
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
        channels = out_channels
    layers[-1] = nn.AdaptiveMaxPool2d(1)  # as before for 32 pixels, of which 2 are left; fits any other size
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, num_classes))


def _textcnn(input_shape: _Shape, num_classes: int) -> nn.Module:
    vocabulary_size, length = input_shape
    if length < max(_WINDOWS):
        rule = f"textcnn needs texts of at least {max(_WINDOWS)} tokens"
        raise ConfigurationError(f"{rule}; got input_shape={input_shape}; fill the texts up with id 0.")
    return _TextCnn(vocabulary_size, num_classes)


_IMAGE_MODELS: dict[str, Callable[[_Shape, int], nn.Module]] = {
    "logistic": _logistic,
    "mlp": _mlp,
    "cnn": _cnn,
    "resnet18": _resnet18,
    "vgg13": _vgg13,
}
_TEXT_MODELS: dict[str, Callable[[_Shape, int], nn.Module]] = {"textcnn": _textcnn}
MODELS: dict[str, Callable[[_Shape, int], nn.Module]] = {**_IMAGE_MODELS, **_TEXT_MODELS}
"""The built-in networks: name and builder. A builder uses the global random state, whereas `build_model` does not."""

_WINDOWS = (3, 4, 5)  # words


def _normalised_convolution(channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Sequential:
    padding = kernel_size // 2
    # No bias: the normalisation would subtract it.
    convolution = nn.Conv2d(channels, out_channels, kernel_size, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class _ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, added to the input, or to a 1 x 1 convolution of it if the shape changes."""

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


class _TextCnn(nn.Module):
    """Convolutions with several windows over the words' embeddings, and each filter's maximum over the text."""

    def __init__(self, vocabulary_size: int, num_classes: int, width: int = 64, filters: int = 50) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        # As in Kim's paper. Measured on movie-reviews, 5 epochs: 70 to 73 %. PyTorch's wider normal law: at most 64 %.
        nn.init.uniform_(self.embedding.weight, -0.25, 0.25)
        self.windows = nn.ModuleList(nn.Conv1d(width, filters, window) for window in _WINDOWS)
        self.output = nn.Linear(filters * len(_WINDOWS), num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.embedding(tokens).transpose(1, 2)
        features = [F.relu(convolution(embedded)).amax(dim=2) for convolution in self.windows]
        logits: Tensor = self.output(torch.cat(features, dim=1))
        return logits
