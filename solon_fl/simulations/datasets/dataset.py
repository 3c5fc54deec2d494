"""The `Dataset` that every reader returns, and the errors that readers share."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from solon_fl.errors import ConfigurationError

__all__ = ["Dataset", "damaged", "existing_folder"]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Training and test examples in memory, images or texts, with their labels.

    Attributes
    ----------
    name : str
        The key in `DATASETS`.
    train_inputs, test_inputs : Tensor
        Images are float32 of shape (N, C, H, W). They are shifted and scaled so that each channel has mean 0 and
        standard deviation 1 over the training images.
        Texts are token ids, int64, of shape (N, L), from 0 to ``vocabulary_size - 1``. Id 0 pads the end of a text.
        The examples are in the order of the files, perhaps class by class: shuffle before you split.
    train_labels, test_labels : Tensor, int64, shape (N,)
        From 0 to ``num_classes - 1``.
    num_classes : int
        Number of classes.
    vocabulary_size : int
        Number of token ids, id 0 included. 0 for images.
    """

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    num_classes: int
    vocabulary_size: int = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of an input: (channels, height, width) of images, (vocabulary size, length in tokens) of texts."""
        shape = tuple(self.train_inputs.shape[1:])
        return (self.vocabulary_size, *shape) if self.vocabulary_size else shape


def existing_folder(name: str, data_dir: Path | None, contents: str) -> Path:
    """Return the folder that the user named, or raise ConfigurationError if there is no such folder."""
    if data_dir is None or not data_dir.is_dir():
        rule = f"{name} is read from an existing folder; got data_dir={data_dir}"
        raise ConfigurationError(f"{rule}; set data_dir to the folder that holds {contents}.")
    return data_dir


def damaged(source: object, rule: str, got: str) -> ConfigurationError:
    """Return the error for a file that breaks a rule."""
    return ConfigurationError(f"{rule}; got {got} in {source}; download it again.")
