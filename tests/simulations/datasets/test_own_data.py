"""User-defined data: folders of images, saved data sets, tensors, and code that makes them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from solon_fl.errors import ConfigurationError
from solon_fl.simulations import Dataset, load_dataset
from solon_fl.simulations.datasets.examples import dataset_of, held_out
from tests.simulations.own import Write, write

__all__ = ["write"]

INPUTS, LABELS = torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2


def draw(path: Path, shade: int, *, mode: str = "L", size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade if mode == "L" else (shade, 0, 0)).save(path)


def photos(root: Path, classes: Sequence[str] = ("cat", "dog"), each: int = 5) -> Path:
    for number, name in enumerate(classes):
        for image in range(each):
            draw(root / name / f"{image}.png", 20 * image + number)
    return root


def test_a_folder_of_class_folders_is_split_and_normalised(tmp_path: Path) -> None:
    data = load_dataset(str(photos(tmp_path)))
    assert data.input_shape == (1, 4, 4)
    assert data.num_classes == 2
    assert data.test_labels.tolist() == [0, 1]
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4
    assert abs(float(data.train_inputs.mean())) < 1e-6
    assert float(data.train_inputs.std(correction=0)) == pytest.approx(1)
    again = load_dataset(str(tmp_path))
    assert torch.equal(data.test_inputs, again.test_inputs)


def test_a_folder_may_have_its_own_test_set_and_grey_images_among_coloured_ones(tmp_path: Path) -> None:
    photos(tmp_path / "train")
    photos(tmp_path / "test", ["dog"], each=1)
    draw(tmp_path / "train/cat/red.jpg", 200, mode="RGB")
    data = load_dataset(str(tmp_path))
    assert data.input_shape == (3, 4, 4)
    assert len(data.train_labels) == 11
    assert data.test_labels.tolist() == [1]


def test_images_are_scaled_by_the_shorter_side_and_cropped_in_the_middle(tmp_path: Path) -> None:
    photos(tmp_path)
    for name in "abcde":
        image = np.zeros((8, 40), dtype=np.uint8)
        image[:, 16:24] = 255  # the middle square
        Image.fromarray(image).save(tmp_path / "dog" / f"{name}.png")
    with pytest.raises(ConfigurationError, match=r"one shape and type; got \(1, 8, 40\) uint8 at .*dog/a.png, after"):
        load_dataset(str(tmp_path))
    data = load_dataset(str(tmp_path), image_size=2)
    assert data.input_shape == (1, 2, 2)
    white = data.train_inputs.max()
    assert (
        int((data.train_inputs == white).flatten(1).all(1).sum())
        + int((data.test_inputs == white).flatten(1).all(1).sum())
        == 5
    )


def test_one_in_five_of_each_class_is_held_out() -> None:
    train, test = held_out(torch.tensor([0] * 11 + [1] * 4 + [2] * 5))
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(20))
    assert [int(n) for n in test // 5] != [0, 0, 3]  # not simply the first or the last of a class
    assert [0 if n < 11 else 1 if n < 15 else 2 for n in test.tolist()] == [0, 0, 2]


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda root: (root / "cat").mkdir(), r"a folder for each class, two or more; got \['cat'\] in "),
    "no images": (
        lambda root: (photos(root) / "fox").mkdir(),
        r"every class must have images \(.png, .* got none in .*fox",
    ),
    "truncated": (
        lambda root: (photos(root) / "dog/9.png").write_bytes((root / "dog/0.png").read_bytes()[:-20]),
        r"must be a whole file of PNG.* in .*dog/9.png; replace or remove it",
    ),
    "no test": (lambda root: photos(root / "train"), "with train/ must have test/ beside it; got"),
    "other classes": (
        lambda root: (photos(root / "train"), photos(root / "test", ["cow"])),
        r"must have the classes of the training set, cat, dog; got \['cow'\]",
    ),
    "16 bits": (lambda root: draw16(photos(root)), r"images of 8 bits a channel; got mode='I;16' at .*dog/9.png"),
    "few": (lambda root: photos(root, each=4), "must have 5 examples or more of some class; got 8 examples"),
}


def draw16(root: Path) -> None:
    Image.new("I;16", (4, 4)).save(root / "dog/9.png")


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_is_no_data_set_is_refused(case: str, tmp_path: Path) -> None:
    make, message = BROKEN[case]
    make(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        load_dataset(str(tmp_path))


def test_a_folder_that_is_not_there_is_told_from_a_misspelt_name() -> None:
    with pytest.raises(ConfigurationError, match="must be an existing folder; got dataset='nosuch/folder'"):
        load_dataset("nosuch/folder")
    with pytest.raises(ConfigurationError, match="a folder, or module:name of your own; got dataset='cifar'; did you"):
        load_dataset("cifar")
    with pytest.raises(ConfigurationError, match="is for folders of images and data of your own; got image_size=8"):
        load_dataset("fashion-mnist-6k", image_size=8)


@pytest.mark.slow
def test_what_datasets_saved_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    columns = {"img": [Image.new("L", (3, 3), n) for n in range(10)], "label": [n % 2 for n in range(10)]}
    table = datasets.Dataset.from_dict(columns, features=features)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table, test=table.select(range(3))).save_to_disk(tmp_path / "two")
    one, two = (load_dataset(str(tmp_path / name)) for name in ("one", "two"))
    assert [(len(data.train_labels), len(data.test_labels)) for data in (one, two)] == [(8, 2), (10, 3)]
    assert two.test_labels.tolist() == [0, 1, 0]
    table.rename_column("img", "photo").rename_column("label", "kind").cast_column(
        "kind", datasets.Value("int64")
    ).save_to_disk(tmp_path / "odd")
    with pytest.raises(ConfigurationError, match=r"no clear one of labels in .*, whose columns are photo \(Image\), k"):
        load_dataset(str(tmp_path / "odd"))


def test_pairs_are_taken_as_they_are_and_words_are_counted() -> None:
    test = TensorDataset(INPUTS[:3], LABELS[:3])
    numbers = dataset_of("mine", (TensorDataset(INPUTS, LABELS), test))
    assert torch.equal(numbers.train_inputs, INPUTS)
    assert torch.equal(numbers.test_labels, LABELS[:3])
    assert numbers.name == "mine"
    texts = dataset_of("mine", [(torch.tensor([n, 1, 0]), n % 2) for n in range(10)])
    assert texts.input_shape == (10, 3)
    images = dataset_of("mine", [(np.full((2, 2), 9 * n, dtype=np.uint8), n % 2) for n in range(10)])
    assert images.input_shape == (1, 2, 2)


def of(inputs: Any, labels: Any) -> list[tuple[Any, Any]]:
    return list(zip(inputs, labels, strict=True))


REFUSED = {
    "nothing": (None, "two data sets with len.* got NoneType"),
    "tensors": (
        (INPUTS, LABELS),
        r"got Tensor; wrap .*: torch.utils.data.TensorDataset\(inputs, labels\)",
    ),
    "empty": ([], "must have examples; got an empty list"),
    "dicts": ([{"image": 1, "label": 2}], r"pairs \(input, label\) as examples; got dict at 0 with image, label"),
    "floats": (
        of(INPUTS, LABELS.float()),
        r"got tensor\(0.\) at example 0; .* classify, with cross-entropy",
    ),
    "negative": (of(INPUTS, LABELS - 1), r"whole numbers from 0 as labels; got tensor\(-1\) at example 0"),
    "gaps": (of(INPUTS, 2 * LABELS), "must have the labels 0 to C - 1, each at least once; got the labels 0, 2"),
    "ragged": (of([INPUTS[0], INPUTS[0][0]], [0, 1]), r"of one shape and type; got \(3,\) float32 at example 1, after"),
    "words": (of(["a"], [0]), "tensors, arrays or PIL images as inputs; got str at example 0"),
    "matrix of whole numbers": (of([torch.ones(2, 2, dtype=torch.int64)], [0]), r"got \(2, 2\) int64 at example 0"),
    "nan": (of(INPUTS * float("nan"), LABELS), "finite inputs; got NaN or infinity in train_inputs"),
    "one class": (of(INPUTS, 0 * LABELS), "two classes or more; got num_classes=1"),
    "out of range": (Dataset("", INPUTS, LABELS, INPUTS, LABELS + 1, 2), "from 0 to 1, .* got test_labels from 1 to 2"),
    "halves": (Dataset("", INPUTS.half(), LABELS, INPUTS, LABELS, 2), "got train_inputs torch.float16"),
    "too few labels": (Dataset("", INPUTS, LABELS[:9], INPUTS, LABELS, 2), r"\(20, 2, 3\) with 9 labels"),
    "words beyond": (
        Dataset("", LABELS[:, None], LABELS, LABELS[:, None], LABELS, 2, 1),
        "size=1; got train_",
    ),
    "label beyond int64": (of(INPUTS, [10**30] * 20), "labels below 2.*; got 10{30} at example 0; number the classes"),
    "no tokens": (of(LABELS.new_zeros(20, 0), LABELS), r"no empty inputs; got \(0,\) int64 at example 0; leave"),
    "no pixels": (of(torch.zeros(20, 3, 0, 0, dtype=torch.uint8), LABELS), r"got \(3, 0, 0\) uint8 at example 0"),
    "no side": (of([Image.new("L", (0, 5))], [0]), r"got an image of \(0, 5\) pixels at example 0"),
    "no features": (Dataset("", INPUTS[:, :0], LABELS, INPUTS[:, :0], LABELS, 2), r"got train_inputs \(20, 0, 3\)"),
    "sparse": (of([INPUTS[0].to_sparse()], [0]), "dense tensors .*; got torch.sparse_coo on cpu at example 0"),
    "test of other shape": (
        (of(INPUTS, LABELS), of(INPUTS[:, :1], LABELS)),
        r"and test; got \(2, 3\) float32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_data_set_is_refused(case: str) -> None:
    found, message = REFUSED[case]
    with pytest.raises(ConfigurationError, match=message) as raised:
        dataset_of("mine", found)
    assert str(raised.value).startswith("dataset='mine' must ")


def test_code_makes_data_with_seeded_random_states(write: Write) -> None:
    name = write(
        "import torch\n"
        "def load(data_dir):\n"
        "    return [(torch.rand(2), i % 2) for i in range(int(data_dir.name))]\n"
        "def alone():\n    return load(__import__('pathlib').Path('10'))\n"
        "class Raising(list):\n"
        "    def __init__(self):\n        super().__init__([0] * 9)\n"
        "    def __getitem__(self, i):\n        raise KeyError('lost')\n"
    )
    one, two = (load_dataset(f"{name}:load", Path("10")) for _ in range(2))
    assert torch.equal(one.train_inputs, two.train_inputs)
    assert torch.equal(one.train_inputs, load_dataset(f"{name}:alone").train_inputs)
    with pytest.raises(ConfigurationError, match="takes no data_dir; got data_dir='10'"):
        load_dataset(f"{name}:alone", Path("10"))
    with pytest.raises(ConfigurationError, match=rf"got KeyError: 'lost', in {name}.py, line 10, __getitem__"):
        load_dataset(f"{name}:Raising")
