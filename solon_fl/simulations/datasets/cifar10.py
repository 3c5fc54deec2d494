"""CIFAR-10, from pickled batches or from folders of images."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.datasets.dataset import Dataset, damaged, existing_folder
from solon_fl.simulations.datasets.images import NUM_CLASSES, Split, normalised
from solon_fl.simulations.extras import simulation_extra

__all__ = ["cifar10"]

_SIDE = 32  # of a CIFAR-10 image, in pixels


def cifar10(data_dir: Path | None) -> Dataset:
    """Return CIFAR-10 from its five batches and the test batch, or from folders of images."""
    root = existing_folder("cifar10", data_dir, "train/<class>/ and test/<class>/, or cifar-10-batches-py/")
    for folder in (root / "cifar-10-batches-py", root):
        if (folder / "data_batch_1").is_file():
            images, labels = zip(*(_read_batch(folder / f"data_batch_{i}") for i in range(1, 6)), strict=True)
            test = _read_batch(folder / "test_batch")
            return normalised("cifar10", (np.concatenate(images), np.concatenate(labels)), test, folder)
    classes = sorted(folder.name for folder in root.glob("train/*/"))
    train, test = (_read_image_folder(root / split, classes) for split in ("train", "test"))
    return normalised("cifar10", train, test, root)


class _Inert:
    """Stands in for numpy's array and dtype in a pickle. It stores its arguments and runs no code."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayUnpickler(pickle.Unpickler):
    """Reads builtin values and arrays and refuses everything else, so that a pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _encoding: text.encode("latin1")
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return _Inert
        raise pickle.UnpicklingError(f"a request for {module}.{name}")


def _read_batch(path: Path) -> Split:
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
        raise damaged(path, "a CIFAR-10 batch must be a pickle of bytes and labels only", repr(error)) from error


def _read_image_folder(root: Path, classes: list[str]) -> Split:
    files = [path for path in sorted(root.glob("*/*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    found = sorted({path.parent.name for path in files})
    if found != classes or len(classes) != NUM_CLASSES:
        rule = "cifar10 needs data_batch_1, cifar-10-batches-py/data_batch_1, or JPEG or PNG images of the same "
        rule += f"{NUM_CLASSES} classes in train/<class>/ and test/<class>/"
        got = f"found no batches, and images of the classes {found} in {root}"
        raise ConfigurationError(f"{rule}; {got}; set data_dir to another folder.")
    with simulation_extra("folders of images"):
        from PIL import Image
        from rich.console import Console
        from rich.progress import track

    images = np.empty((len(files), 3, _SIDE, _SIDE), dtype=np.uint8)
    progress = track(files, f"Reading {root}", console=Console(stderr=True), transient=True)
    for slot, path in zip(images, progress, strict=True):
        try:
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                if image.size != (_SIDE, _SIDE):
                    raise ValueError(f"size={image.size}")
                slot[:] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for some broken PNGs
            rule = f"a CIFAR-10 image must be a whole JPEG or PNG file of {_SIDE} x {_SIDE} pixels"
            raise damaged(path, rule, repr(error)) from error
    return images, np.array([classes.index(path.parent.name) for path in files])
