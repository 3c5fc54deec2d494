"""User-defined data sets: tensors, or any map-style data set of (input, label) pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from solon_fl.simulations.datasets.dataset import Dataset
from solon_fl.simulations.datasets.images import normalise
from solon_fl.simulations.own import OwnCodeError, theirs

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["HELD_OUT", "dataset_of", "held_out"]

HELD_OUT = 5  # without a test set, one of so many examples is kept for the test
_CLASSIFY = "simulations classify, with cross-entropy as the loss"
_MANY = 2000  # examples: reading so many takes long enough to show progress
_LABELS_SHOWN = 5
_MOST_LABELS = 2**63  # labels are int64
_NOT_EMPTY = "have no empty inputs"
_LEAVE_OUT = "leave such examples out"


def dataset_of(name: str, found: Any, image_size: int | None = None) -> Dataset:
    """Read the user's examples into a data set in memory.

    Parameters
    ----------
    name : str
        Name of the data set, also for messages.
    found
        A `Dataset`, or a map-style data set (with ``len(s)`` and ``s[i]``, such as a ``torch.utils.data.Dataset``) of
        (input, label) pairs, or a tuple of two of them: train and test. See `load_dataset`.
    image_size : int, optional
        Side of the square, in pixels, to which PIL images are scaled and cropped.

    Raises
    ------
    OwnCodeError
        If `found` is anything else, if reading it raises, or if its inputs or labels are not as `load_dataset`
        describes.
    """
    if isinstance(found, Dataset):
        if image_size is not None:
            raise _refused(name, "have PIL images for image_size to scale", "tensors", "leave image_size out")
        dataset = replace(found, name=name)
    else:
        train, test = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        dataset = _read(name, train, test, image_size)
    _check(dataset)
    return dataset


def held_out(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of the examples for training and of those for the test, int64, ascending.

    One in five examples of each class, rounded down, is for the test. They are drawn with a fixed seed, so they are the
    same in every run.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    by_class = [order[labels[order] == label] for label in torch.unique(labels)]
    test = torch.cat([members[: len(members) // HELD_OUT] for members in by_class]).sort().values
    is_train = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, test, False)
    return is_train.nonzero().flatten(), test


def _read(name: str, train: Any, test: Any, image_size: int | None) -> Dataset:
    splits = [_examples(name, train, image_size)]
    if test is not None:
        splits.append(_examples(name, test, image_size))
    inputs, labels = _alike(name, [split[0] for split in splits]), [split[1] for split in splits]
    if test is None:
        chosen = held_out(labels[0])
        if not all(map(len, chosen)):
            got = f"{len(labels[0])} examples and no test set"
            raise _refused(name, f"have {HELD_OUT} examples or more of some class", got, "add some, or a test set")
        inputs, labels = [inputs[0][part] for part in chosen], [labels[0][part] for part in chosen]
    vocabulary_size = 0
    if inputs[0].dtype == torch.uint8:
        inputs = [images.float() for images in inputs]
        normalise(*inputs)
    elif inputs[0].dtype == torch.int64:
        vocabulary_size = 1 + max(int(tokens.max()) for tokens in inputs)
    num_classes = _num_classes(name, train, torch.cat(labels))
    return Dataset(name, inputs[0], labels[0], inputs[1], labels[1], num_classes, vocabulary_size)


def _num_classes(name: str, train: Any, labels: Tensor) -> int:
    """Return the number of classes that a data set declares, or else the number that its labels show."""
    classes = getattr(train, "classes", None)
    if isinstance(classes, Sequence):
        return len(classes)
    found = torch.unique(labels)
    if not torch.equal(found, torch.arange(len(found))):
        shown = ", ".join(map(str, found[:_LABELS_SHOWN].tolist())) + (", ..." if len(found) > _LABELS_SHOWN else "")
        remedy = "number the classes from 0, or return a solon_fl.simulations.Dataset, which declares num_classes"
        raise _refused(name, "have the labels 0 to C - 1, each at least once", f"the labels {shown}", remedy)
    return len(found)


def _alike(name: str, splits: Sequence[Tensor]) -> list[Tensor]:
    """Return the inputs of train and test, or refuse two shapes or types. Grey images adapt to those in colour."""
    if len({_kind(inputs[0]) for inputs in splits}) > 1:
        got = " and ".join(_shape(inputs[0]) for inputs in splits)
        raise _refused(name, "have inputs of one shape and type in train and test", got, "make them alike")
    most = max(inputs.shape[1] if inputs.ndim > 1 else 0 for inputs in splits)
    is_image = splits[0].dtype == torch.uint8
    return [inputs.expand(-1, most, -1, -1) if is_image and inputs.shape[1] == 1 else inputs for inputs in splits]


def _examples(name: str, examples: Any, image_size: int | None) -> tuple[Tensor, Tensor]:
    """Return all inputs and all labels of a map-style data set."""
    if isinstance(examples, Tensor) or not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")):
        remedy = "see docs/how-to/own-model-and-data.md"
        if isinstance(examples, Tensor):
            remedy = "wrap inputs and labels: torch.utils.data.TensorDataset(inputs, labels)"
        wanted = "be a solon_fl Dataset, or one or two data sets with len(s) and s[i]"
        raise _refused(name, wanted, f"{type(examples).__name__}", remedy)
    with theirs("dataset", name):
        count = len(examples)
    if not count:
        raise _refused(name, "have examples", f"an empty {type(examples).__name__}", "add some")
    inputs: list[Tensor] = []
    labels: list[int] = []
    numbers = range(count)
    for number in track(
        numbers, f"Reading {name}", console=Console(stderr=True), transient=True, disable=count < _MANY
    ):
        with theirs("dataset", name):
            example = examples[number]
        if not isinstance(example, tuple | list) or len(example) != 2:
            got = f"{type(example).__name__} at {number}"
            if isinstance(example, Mapping):
                got += f" with {', '.join(map(str, example))}"
            raise _refused(name, "have pairs (input, label) as examples", got, "return (input, label)")
        place = examples.place(number) if hasattr(examples, "place") else f"example {number}"
        labels.append(_label(name, example[1], place))
        inputs.append(_input(name, example[0], place, image_size))
        if _kind(inputs[-1]) != _kind(inputs[0]):
            got = f"{_shape(inputs[-1])} at {place}, after {_shape(inputs[0])}"
            remedy = "set image_size=32, say, to scale and crop them" if _is_image(example[0]) else "make them alike"
            raise _refused(name, "have inputs of one shape and type", got, remedy)
    return _stacked(inputs), torch.tensor(labels)


def _shape(example: Tensor) -> str:
    return f"{tuple(example.shape)} {str(example.dtype).removeprefix('torch.')}"


def _kind(example: Tensor) -> tuple[Any, ...]:
    """Return what must be equal in all inputs. Images of one and of three channels may be mixed."""
    is_image = example.dtype == torch.uint8
    return example.dtype, tuple(example.shape[1:] if is_image and len(example) in (1, 3) else example.shape)


def _stacked(inputs: list[Tensor]) -> Tensor:
    if inputs[0].dtype == torch.uint8 and len({len(image) for image in inputs}) > 1:
        inputs = [image.expand(3, -1, -1) for image in inputs]
    return torch.stack(inputs)


def _is_image(value: Any) -> bool:
    return type(value).__module__.startswith("PIL.")


def _label(name: str, value: Any, place: str) -> int:
    with theirs("dataset", name):
        number = value.item() if isinstance(value, Tensor | np.generic | np.ndarray) else value
    if not isinstance(number, Integral) or number < 0:
        remedy = f"number the classes from 0: {_CLASSIFY}"
        raise _refused(name, "have whole numbers from 0 as labels", f"{value!r} at {place}", remedy)
    if int(number) >= _MOST_LABELS:
        raise _refused(name, "have labels below 2**63", f"{value!r} at {place}", "number the classes from 0")
    return int(number)


def _input(name: str, value: Any, place: str, image_size: int | None) -> Tensor:
    """Return an image as uint8, (C, H, W), tokens as int64, and other numbers as float32."""
    if _is_image(value):
        if value.mode == "F" or value.mode.startswith("I"):
            raise _refused(name, "have images of 8 bits a channel", f"mode={value.mode!r} at {place}", "convert them")
        if 0 in value.size:
            raise _refused(name, _NOT_EMPTY, f"an image of {value.size} pixels at {place}", _LEAVE_OUT)
        with theirs("dataset", name):
            return _pixels(value, image_size)
    if image_size is not None:
        raise _refused(
            name, "have PIL images for image_size to scale", f"{type(value).__name__}", "leave image_size out"
        )
    try:
        tensor = torch.as_tensor(value).detach()
    except Exception as error:
        got = f"{type(value).__name__} at {place}"
        raise _refused(name, "have tensors, arrays or PIL images as inputs", got, "convert them") from error
    if tensor.layout is not torch.strided or tensor.is_meta:
        got = f"{tensor.layout} on {tensor.device} at {place}"
        raise _refused(name, "have dense tensors with data as inputs", got, "convert them")
    if not tensor.numel():
        raise _refused(name, _NOT_EMPTY, f"{_shape(tensor)} at {place}", _LEAVE_OUT)
    if tensor.dtype == torch.uint8 and tensor.ndim in (2, 3):
        return tensor.view(-1, *tensor.shape[-2:])
    if tensor.is_floating_point() and tensor.ndim:
        return tensor.float()
    if tensor.dtype in (torch.int32, torch.int64) and tensor.ndim == 1:
        return tensor.long()
    wanted = "have images (uint8), numbers (floating-point) or texts (token ids, int64, of one dimension) as inputs"
    raise _refused(name, wanted, f"{_shape(tensor)} at {place}", "convert them")


def _pixels(image: "Image", side: int | None) -> Tensor:
    """Return a PIL image as uint8, (C, H, W), with one channel if it is grey. See `load_dataset` for `side`."""
    from PIL import Image, ImageOps

    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if side is not None:
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _check(dataset: Dataset) -> None:
    """Raise OwnCodeError unless a data set is as `Dataset` describes."""
    name = dataset.name
    texts = dataset.vocabulary_size > 0
    for split in ("train", "test"):
        inputs, labels = getattr(dataset, f"{split}_inputs"), getattr(dataset, f"{split}_labels")
        if not isinstance(inputs, Tensor) or inputs.dtype != (torch.int64 if texts else torch.float32):
            got = f"{split}_inputs {getattr(inputs, 'dtype', type(inputs).__name__)}"
            kind = f"{'int64' if texts else 'float32'} tensors as inputs with vocabulary_size={dataset.vocabulary_size}"
            raise _refused(name, f"have {kind}", got, "convert them")
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
            got = f"{split}_labels {getattr(labels, 'dtype', type(labels).__name__)}"
            remedy = f"number the classes from 0: {_CLASSIFY}"
            raise _refused(name, "have int64 labels of shape (N,)", got, remedy)
        if not 0 < len(inputs) == len(labels) or inputs.shape[1:] != dataset.train_inputs.shape[1:]:
            got = f"{split}_inputs {tuple(inputs.shape)} with {len(labels)} labels"
            raise _refused(name, "have inputs of one shape, each with a label", got, "make them alike")
        if not inputs.numel():
            raise _refused(name, _NOT_EMPTY, f"{split}_inputs {tuple(inputs.shape)}", _LEAVE_OUT)
        if int(labels.min()) < 0 or int(labels.max()) >= dataset.num_classes:
            got = f"{split}_labels from {int(labels.min())} to {int(labels.max())}"
            rule = f"have labels from 0 to {dataset.num_classes - 1}, as num_classes={dataset.num_classes}"
            raise _refused(name, rule, got, "number the classes from 0, or raise num_classes")
        if not texts and not bool(inputs.isfinite().all()):
            raise _refused(name, "have finite inputs", f"NaN or infinity in {split}_inputs", "leave them out")
        if texts and not 0 <= int(inputs.min()) <= int(inputs.max()) < dataset.vocabulary_size:
            got = f"{split}_inputs from {int(inputs.min())} to {int(inputs.max())}"
            raise _refused(name, f"have token ids below vocabulary_size={dataset.vocabulary_size}", got, "raise it")
    if dataset.num_classes < 2:
        raise _refused(name, "have two classes or more", f"num_classes={dataset.num_classes}", _CLASSIFY)


def _refused(name: str, rule: str, got: str, remedy: str) -> OwnCodeError:
    return OwnCodeError(f"dataset={name!r} must {rule}; got {got}; {remedy}.")
