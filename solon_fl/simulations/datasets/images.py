"""Fashion-MNIST, and what all image sets have in common: ten classes and normalised channels."""

import gzip
import math
import zlib
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.datasets.dataset import Dataset, damaged, existing_folder

__all__ = ["NUM_CLASSES", "Split", "fashion_mnist", "fashion_mnist_6k", "normalise", "normalised"]

NUM_CLASSES = 10  # of every built-in image set
Split = tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]  # raw images (N, C, H, W), labels (N,)


def fashion_mnist_6k(data_dir: Path | None) -> Dataset:
    """Return the set that is part of the package. It reads no folder."""
    if data_dir is not None:
        rule = f"fashion-mnist-6k is part of the package and reads no folder; got data_dir={data_dir}"
        raise ConfigurationError(f"{rule}; leave data_dir out, or choose fashion-mnist for the full set.")
    file = resources.files("solon_fl.simulations.datasets") / "data" / "fashion_mnist_6k.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        train = arrays["train_images"][:, None], arrays["train_labels"]
        test = arrays["test_images"][:, None], arrays["test_labels"]
    return normalised("fashion-mnist-6k", train, test, file)


def fashion_mnist(data_dir: Path | None) -> Dataset:
    """Return Fashion-MNIST from its four idx files."""
    root = existing_folder("fashion-mnist", data_dir, "the four idx files, such as train-images-idx3-ubyte.gz")
    folders = (root, root / "FashionMNIST" / "raw", root / "fashion-mnist")

    def read(stem: str, dimensions: int) -> npt.NDArray[np.uint8]:
        for path in (folder / (stem + suffix) for folder in folders for suffix in ("", ".gz")):
            if path.is_file():
                return _read_idx(path, dimensions)
        rule = f"fashion-mnist needs {stem} or {stem}.gz; found neither in {', '.join(map(str, folders))}"
        raise ConfigurationError(f"{rule}; put it in one of them, or set data_dir to another folder.")

    train = read("train-images-idx3-ubyte", 3)[:, None], read("train-labels-idx1-ubyte", 1)
    test = read("t10k-images-idx3-ubyte", 3)[:, None], read("t10k-labels-idx1-ubyte", 1)
    return normalised("fashion-mnist", train, test, root)


def normalised(name: str, train: Split, test: Split, source: object) -> Dataset:
    """Return raw images as a data set with normalised channels, or refuse files that do not belong together."""
    for images, labels in (train, test):
        if not 0 < len(images) == len(labels) or images.shape[1:] != train[0].shape[1:]:
            got = f"images of shape {images.shape} with labels={len(labels)}"
            raise damaged(source, f"{name} needs images of one shape, each with a label", got)
        if labels.min() < 0 or labels.max() >= NUM_CLASSES:
            got = f"labels from {labels.min()} to {labels.max()}"
            raise damaged(source, f"{name}'s labels must be from 0 to {NUM_CLASSES - 1}", got)
    train_images, test_images = (torch.tensor(images, dtype=torch.float32) for images, _ in (train, test))
    normalise(train_images, test_images)
    train_labels, test_labels = (torch.tensor(labels, dtype=torch.int64) for _, labels in (train, test))
    return Dataset(name, train_images, train_labels, test_images, test_labels, NUM_CLASSES)


def normalise(train_images: Tensor, test_images: Tensor) -> None:
    """Shift and scale images, float32, (N, C, H, W): each channel of `train_images` gets mean 0 and deviation 1."""
    deviations, means = torch.std_mean(train_images, dim=(0, 2, 3), correction=0, keepdim=True)
    deviations[deviations == 0] = 1  # a constant channel becomes zeros, not NaN
    for tensor in (train_images, test_images):
        tensor.sub_(means).div_(deviations)


def _read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, "an idx file must be readable to its end", repr(error)) from error
    magic = bytes([0, 0, 8, dimensions])  # 8: unsigned bytes
    if content[:4] != magic:
        got = f"magic=0x{content[:4].hex()}"
        raise damaged(path, f"an idx file of {dimensions}-dimensional bytes must begin with 0x{magic.hex()}", got)
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    length = start + math.prod(shape)
    if len(content) != length:
        raise damaged(path, f"an idx file of shape {shape} must have {length} bytes", f"bytes={len(content)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
