"""Image data sets for the simulations: one embedded in the package, the others read from the user's folders."""

import gzip
import math
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from solon_fl.errors import ConfigurationError

__all__ = ["DATASETS", "Dataset", "load_dataset"]

_NUM_CLASSES = 10  # of Fashion-MNIST and of CIFAR-10
_SIDE = 32  # of a CIFAR-10 image, in pixels
_Split = tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]  # stored images (N, C, H, W), labels (N,)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Training and test images in memory, normalised, with their labels.

    Attributes
    ----------
    name : str
        The key in `DATASETS`.
    train_images, test_images : Tensor, float32, shape (N, C, H, W)
        Shifted and scaled so that each channel has mean 0 and standard deviation 1 over the training images.
        In the order of the files, which may be class by class: shuffle before cutting.
    train_labels, test_labels : Tensor, int64, shape (N,)
        From 0 to ``num_classes - 1``.
    num_classes : int
        How many classes there are.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """One image's shape: channels, height, width (pixels)."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width


def load_dataset(name: str, data_dir: Path | None = None) -> Dataset:
    """A data set by name, read into memory; nothing is downloaded.

    Parameters
    ----------
    name : str
        ``fashion-mnist-6k``: 5,000 training and 1,000 test images of Fashion-MNIST, embedded in the package.
        ``fashion-mnist``: all 70,000. ``cifar10``: CIFAR-10, in colour.
    data_dir : Path, optional
        The folder to read; required by all but ``fashion-mnist-6k``, which reads none.
        For ``fashion-mnist``, its four idx files, gzipped or not, lie in this folder, in ``FashionMNIST/raw/`` in it
        (as torchvision leaves them) or in ``fashion-mnist/`` in it (Debian's ``/usr/share/datasets``).
        For ``cifar10``, this folder holds ``train/<class>/`` and ``test/<class>/`` with JPEG or PNG images, or
        holds or is torchvision's ``cifar-10-batches-py/``.

    Returns
    -------
    Dataset
        Images of one shape, each with the label of a class.

    Raises
    ------
    ConfigurationError
        If the name is not in `DATASETS`, if `data_dir` is missing or is given to the embedded set, if a file is not
        found there, or if one is truncated, malformed, or a pickle that asks for more than arrays.

    Notes
    -----
    Cost: 4 bytes for each value are kept (CIFAR-10: 737 MB), and 1 more for each while reading.

    Examples
    --------
    >>> data = load_dataset("fashion-mnist-6k")
    >>> data.input_shape, len(data.train_labels), len(data.test_labels)
    ((1, 28, 28), 5000, 1000)
    """
    if name not in DATASETS:
        raise ConfigurationError(f"dataset must be one of {', '.join(DATASETS)}; got dataset={name!r}; choose one.")
    return DATASETS[name](data_dir)


def _fashion_mnist_6k(data_dir: Path | None) -> Dataset:
    if data_dir is not None:
        rule = f"fashion-mnist-6k is embedded and reads no folder; got data_dir={data_dir}"
        raise ConfigurationError(f"{rule}; leave --data-dir out, or choose fashion-mnist for the full set.")
    file = resources.files("solon_fl.simulations") / "data" / "fashion_mnist_6k.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        train = arrays["train_images"][:, None], arrays["train_labels"]
        test = arrays["test_images"][:, None], arrays["test_labels"]
    return _normalised("fashion-mnist-6k", train, test, file)


def _fashion_mnist(data_dir: Path | None) -> Dataset:
    root = _existing_folder("fashion-mnist", data_dir, "the four idx files, such as train-images-idx3-ubyte.gz")
    folders = (root, root / "FashionMNIST" / "raw", root / "fashion-mnist")

    def read(stem: str, dimensions: int) -> npt.NDArray[np.uint8]:
        for path in (folder / (stem + suffix) for folder in folders for suffix in ("", ".gz")):
            if path.is_file():
                return _read_idx(path, dimensions)
        rule = f"fashion-mnist needs {stem} or {stem}.gz; found neither in {', '.join(map(str, folders))}"
        raise ConfigurationError(f"{rule}; put it in one of them, or name another folder with --data-dir.")

    train = read("train-images-idx3-ubyte", 3)[:, None], read("train-labels-idx1-ubyte", 1)
    test = read("t10k-images-idx3-ubyte", 3)[:, None], read("t10k-labels-idx1-ubyte", 1)
    return _normalised("fashion-mnist", train, test, root)


def _cifar10(data_dir: Path | None) -> Dataset:
    root = _existing_folder("cifar10", data_dir, "train/<class>/ and test/<class>/, or cifar-10-batches-py/")
    for folder in (root / "cifar-10-batches-py", root):
        if (folder / "data_batch_1").is_file():
            images, labels = zip(*(_read_batch(folder / f"data_batch_{i}") for i in range(1, 6)), strict=True)
            test = _read_batch(folder / "test_batch")
            return _normalised("cifar10", (np.concatenate(images), np.concatenate(labels)), test, folder)
    classes = sorted(folder.name for folder in root.glob("train/*/"))
    train, test = (_read_image_folder(root / split, classes) for split in ("train", "test"))
    return _normalised("cifar10", train, test, root)


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "fashion-mnist-6k": _fashion_mnist_6k,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
}
"""The data sets' names, each with the function that reads it from a folder (``None``: no folder was given)."""


def _existing_folder(name: str, data_dir: Path | None, contents: str) -> Path:
    if data_dir is None or not data_dir.is_dir():
        rule = f"{name} is read from an existing folder of yours; got data_dir={data_dir}"
        raise ConfigurationError(f"{rule}; name the folder that holds {contents} with --data-dir.")
    return data_dir


def _damaged(source: object, rule: str, got: str) -> ConfigurationError:
    return ConfigurationError(f"{rule}; got {got} in {source}; fetch it again.")


def _normalised(name: str, train: _Split, test: _Split, source: object) -> Dataset:
    for images, labels in (train, test):
        if not 0 < len(images) == len(labels) or images.shape[1:] != train[0].shape[1:]:
            got = f"images of shape {images.shape} with labels={len(labels)}"
            raise _damaged(source, f"{name} needs images of one shape, each with a label", got)
        if labels.min() < 0 or labels.max() >= _NUM_CLASSES:
            got = f"labels from {labels.min()} to {labels.max()}"
            raise _damaged(source, f"{name}'s labels must be from 0 to {_NUM_CLASSES - 1}", got)
    train_images, test_images = (torch.tensor(images, dtype=torch.float32) for images, _ in (train, test))
    deviations, means = torch.std_mean(train_images, dim=(0, 2, 3), correction=0, keepdim=True)
    deviations[deviations == 0] = 1  # a constant channel becomes zeros, not NaN
    for tensor in (train_images, test_images):
        tensor.sub_(means).div_(deviations)
    train_labels, test_labels = (torch.tensor(labels, dtype=torch.int64) for _, labels in (train, test))
    return Dataset(name, train_images, train_labels, test_images, test_labels, _NUM_CLASSES)


def _read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, "an idx file must be readable to its end", repr(error)) from error
    magic = bytes([0, 0, 8, dimensions])  # 8: unsigned bytes
    if content[:4] != magic:
        got = f"magic=0x{content[:4].hex()}"
        raise _damaged(path, f"an idx file of {dimensions}-dimensional bytes must begin with 0x{magic.hex()}", got)
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    length = start + math.prod(shape)
    if len(content) != length:
        raise _damaged(path, f"an idx file of shape {shape} must have {length} bytes", f"bytes={len(content)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


class _Inert:
    """Stands for numpy's array and dtype in a pickle: keeps what it is given, and runs none of it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayUnpickler(pickle.Unpickler):
    """Reads builtin values and arrays; anything else is refused, so that a pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _encoding: text.encode("latin1")
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return _Inert
        raise pickle.UnpicklingError(f"a request for {module}.{name}")


def _read_batch(path: Path) -> _Split:
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="latin1").load()
        _, shape, dtype, is_fortran, content = batch["data"].state
        if dtype.arguments[0] != "u1" or is_fortran:
            raise ValueError(f"dtype={dtype.arguments[0]}, is_fortran={is_fortran}")
        content = content.encode("latin1") if isinstance(content, str) else content  # str: from Python 2
        images = np.frombuffer(content, np.uint8).reshape(shape).reshape(-1, 3, _SIDE, _SIDE)
        return images, np.array(batch["labels"], dtype=np.int64)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise _damaged(path, "a CIFAR-10 batch must be a pickle of bytes and labels only", repr(error)) from error


def _read_image_folder(root: Path, classes: list[str]) -> _Split:
    files = [path for path in sorted(root.glob("*/*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    found = sorted({path.parent.name for path in files})
    if found != classes or len(classes) != _NUM_CLASSES:
        rule = "cifar10 needs data_batch_1, cifar-10-batches-py/data_batch_1, or JPEG or PNG images of the same "
        rule += f"{_NUM_CLASSES} classes in train/<class>/ and test/<class>/"
        got = f"found no batches, and images of the classes {found} in {root}"
        raise ConfigurationError(f"{rule}; {got}; name another folder with --data-dir.")
    images = np.empty((len(files), 3, _SIDE, _SIDE), dtype=np.uint8)
    progress = track(files, f"Reading {root}", console=Console(stderr=True), transient=True)
    for slot, path in zip(images, progress, strict=True):
        try:
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                if image.size != (_SIDE, _SIDE):
                    raise ValueError(f"size={image.size}")
                slot[:] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: Pillow's, for some broken PNG files
            rule = f"a CIFAR-10 image must be a whole JPEG or PNG file of {_SIDE} x {_SIDE} pixels"
            raise _damaged(path, rule, repr(error)) from error
    return images, np.array([classes.index(path.parent.name) for path in files])
