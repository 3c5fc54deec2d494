"""Data in the user's folders: a folder of images for each class, or a data set saved by Hugging Face's `datasets`."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solon_fl.checks import closest
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.extras import simulation_extra

__all__ = ["read_folder", "similar_folder"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
IMAGE_COLUMNS = ("image", "img", "pixels", "picture", "x")
LABEL_COLUMNS = ("label", "labels", "target", "y", "fine_label")
TESTS = ("test", "validation", "valid", "val")


def read_folder(path: Path) -> tuple[Any, Any]:
    """Return the map-style data sets of a folder: one for training, and one for the test or None.

    Raises
    ------
    ConfigurationError
        If the folder has neither images nor data saved by `datasets`. The message says what was found.
    """
    if any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
        return _saved_by_datasets(path)
    if not path.is_dir():
        meant = similar_folder(path)
        remedy = "check the path." if meant is None else f"did you mean {meant}?"
        raise ConfigurationError(f"dataset must be an existing folder; got dataset={str(path)!r}; {remedy}")
    folders = {folder.name: folder for folder in _folders_in(path)}
    tests = [name for name in TESTS if name in folders]
    if "train" in folders and tests:
        train = ImageFiles(folders["train"])
        return train, ImageFiles(folders[tests[0]], train.classes)
    if "train" in folders:
        raise ConfigurationError(
            f"a folder with train/ must have test/ beside it; got {sorted(folders)} in {path}; add it, or name "
            f"{path / 'train'}, a part of which is then kept for the test."
        )
    return ImageFiles(path), None


def similar_folder(path: Path) -> Path | None:
    """Return the folder with the most similar name beside a missing file or folder, or None."""
    try:
        names = [] if path.exists() else [folder.name for folder in _folders_in(path.parent)]
    except OSError:
        return None
    guess = closest(path.name, names)
    return None if guess is None else path.parent / guess


def _folders_in(path: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones."""
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


class ImageFiles:
    """The images of a folder that has one folder for each class, sorted by name.

    Parameters
    ----------
    root : Path
        The folder.
    classes : sequence of str, optional
        The names that class folders may have. Default: those that exist.

    Raises
    ------
    ConfigurationError
        If there are fewer than two class folders, a folder that is not one of `classes`, or one without images.
    """

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        found = [folder.name for folder in _folders_in(root)]
        if len(found) < 2 and classes is None:
            raise ConfigurationError(
                f"a folder of images must hold a folder for each class, two or more; got {found or 'none'} in {root}; "
                "put the images of each class into a folder with its name."
            )
        self.classes = list(found if classes is None else classes)
        if odd := [name for name in found if name not in self.classes]:
            raise ConfigurationError(
                f"a test set must have the classes of the training set, {', '.join(self.classes)}; got {odd} in "
                f"{root}; rename or remove it."
            )
        self._files: list[Path] = []
        for name in found:
            files = [path for path in sorted((root / name).rglob("*")) if path.suffix.lower() in SUFFIXES]
            if not files:
                raise ConfigurationError(
                    f"every class must have images ({', '.join(SUFFIXES)}); got none in {root / name}; add some, or "
                    "remove the folder."
                )
            self._files += files
        self._root = root

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        with simulation_extra("folders of images"):
            from PIL import Image
        path = self._files[number]
        try:
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return image, self.classes.index(path.relative_to(self._root).parts[0])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: broken PNGs
            raise ConfigurationError(
                f"an image must be a whole file of {', '.join(FORMATS)}; got {error!r} in {path}; replace or remove it."
            ) from error

    def place(self, number: int) -> str:
        """Return the file of an example."""
        return str(self._files[number])


class Columns:
    """Two columns of a table of `datasets`: inputs, such as images, and labels."""

    def __init__(self, table: Any, path: Path) -> None:
        features = table.features
        images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
        labels = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
        self._input = _chosen(images, IMAGE_COLUMNS, features)
        self._label = _chosen(labels, LABEL_COLUMNS, features)
        if self._input is None or self._label is None:
            missing = "inputs" if self._input is None else "labels"
            shown = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
            raise ConfigurationError(
                f"a saved data set must have one column of images, or one called {IMAGE_COLUMNS[0]}, and one of class "
                f"labels, or one called {LABEL_COLUMNS[0]}; got no clear one of {missing} in {path}, whose columns are "
                f"{shown}; call rename_column, or give your own function that returns pairs, as module:name."
            )
        self._table = table
        names = getattr(features[self._label], "names", None)
        if names:
            self.classes = list(names)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        row = self._table[number]
        return row[self._input], row[self._label]


def _chosen(fitting: Sequence[str], usual: Sequence[str], columns: Sequence[str]) -> str | None:
    """Return the one column that fits. If several or none fit, return one with a usual name."""
    if len(fitting) == 1:
        return fitting[0]
    return next((name for name in usual if name in (fitting or columns)), None)


def _saved_by_datasets(path: Path) -> tuple[Columns, Columns | None]:
    try:
        load_from_disk = importlib.import_module("datasets").load_from_disk
    except ImportError as error:
        raise ConfigurationError(
            f"{path} was saved by Hugging Face's datasets, which can't be imported ({error}); pip install datasets."
        ) from error
    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # a damaged file can raise nearly anything
        raise ConfigurationError(
            f"{path} must be what save_to_disk of datasets wrote; got {type(error).__name__}: {error}; save it again."
        ) from error
    if hasattr(loaded, "features"):
        return Columns(loaded, path), None
    tests = [name for name in TESTS if name in loaded]
    if "train" not in loaded:
        raise ConfigurationError(
            f"a saved data set must have a split called train; got {', '.join(loaded)} in {path}; name one's folder."
        )
    return Columns(loaded["train"], path), Columns(loaded[tests[0]], path) if tests else None
