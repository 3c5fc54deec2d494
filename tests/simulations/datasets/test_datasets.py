import gzip
import importlib.resources
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.datasets import DATASETS, Dataset, load_dataset

STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
EMBEDDED = {"fashion-mnist-6k", "synthetic-reviews"}
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion_mnist(folder: Path, *, compressed: bool = False) -> None:
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for stem, shape in zip(STEMS, ((20, 28, 28), (20,), (10, 28, 28), (10,)), strict=True):
        values = rng.integers(0, 256 if len(shape) == 3 else 10, shape).astype(np.uint8)
        content = idx(values)
        path = folder / (stem + ".gz" if compressed else stem)
        path.write_bytes(gzip.compress(content) if compressed else content)


def cifar_rows(seed: int, count: int = 4) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072)).astype(np.uint8)


def python2_batch(rows: npt.NDArray[np.uint8], labels: list[int]) -> bytes:
    """The opcodes of the published CIFAR-10 files. Python 2 wrote them, so their strings are bytes."""

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + text(b"b") + b"\x87R"
    array += b"(" + integer(1) + integer(rows.shape[0]) + integer(rows.shape[1]) + b"\x86" + dtype + b"\x89"
    array += text(rows.tobytes()) + b"tb"
    items = text(b"labels") + b"](" + b"".join(map(integer, labels)) + b"e" + text(b"data") + array
    return b"\x80\x02}(" + items + b"u."


def python3_batch(protocol: int) -> Callable[[npt.NDArray[np.uint8], list[int]], bytes]:
    return lambda rows, labels: pickle.dumps({"data": rows, "labels": labels}, protocol=protocol)


def write_cifar_batches(folder: Path, dump: Callable[[npt.NDArray[np.uint8], list[int]], bytes]) -> None:
    folder.mkdir()
    for number in range(6):
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        (folder / name).write_bytes(dump(cifar_rows(number), [number, 9, 0, 3]))


def write_image_folder(root: Path, suffix: str = ".png", classes: list[str] = CLASSES) -> None:
    for split, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = cifar_rows(10 * label + number, 1).reshape(32, 32, 3)
                Image.fromarray(pixels).save(root / split / name / f"{number}{suffix}")


def assert_sound(data: Dataset, train: int, test: int, input_shape: tuple[int, int, int]) -> None:
    assert data.input_shape == input_shape
    assert data.num_classes == 10
    for images, labels, count in (
        (data.train_inputs, data.train_labels, train),
        (data.test_inputs, data.test_labels, test),
    ):
        assert images.shape == (count, *input_shape)
        assert images.dtype == torch.float32
        assert labels.shape == (count,)
        assert labels.dtype == torch.int64
    deviations, means = torch.std_mean(data.train_inputs.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(means, torch.zeros_like(means), atol=1e-5, rtol=0)
    torch.testing.assert_close(deviations, torch.ones_like(deviations), atol=1e-5, rtol=0)


def test_embedded_set_is_balanced_and_normalised() -> None:
    data = load_dataset("fashion-mnist-6k")
    assert data.name == "fashion-mnist-6k"
    assert_sound(data, 5000, 1000, (1, 28, 28))
    assert data.train_labels.bincount().tolist() == [500] * 10
    assert data.test_labels.bincount().tolist() == [100] * 10


def test_licence_lies_beside_the_embedded_set() -> None:
    licence = importlib.resources.files("solon_fl.simulations.datasets") / "data" / "LICENSE-fashion-mnist.txt"
    text = licence.read_text(encoding="utf-8")
    assert "fashion_mnist_6k.npz" in text
    assert "Copyright © 2017 Zalando SE" in text


def test_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(
        ConfigurationError, match=r"fashion-mnist-6k, fashion-mnist, cifar10, svhn, .*; got dataset='mnist'"
    ):
        load_dataset("mnist")


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_embedded_sets_refuse_a_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=tmp_path.name):
        load_dataset(name, tmp_path)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - EMBEDDED))
def test_other_sets_need_an_existing_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data_dir=None.*set data_dir"):
        load_dataset(name)
    with pytest.raises(ConfigurationError, match=r"no-such-folder.*set data_dir"):
        load_dataset(name, tmp_path / "no-such-folder")
    with pytest.raises(ConfigurationError, match=rf"found n.*{tmp_path.name}.*set data_dir"):
        load_dataset(name, tmp_path)


@pytest.mark.parametrize("layout", [".", "FashionMNIST/raw", "fashion-mnist"])
@pytest.mark.parametrize("compressed", [False, True])
def test_fashion_mnist_is_read_from_each_layout(layout: str, compressed: bool, tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / layout, compressed=compressed)
    data = load_dataset("fashion-mnist", tmp_path)
    assert_sound(data, 20, 10, (1, 28, 28))
    # The normalised images are an increasing linear function of the stored ones.
    stored = np.random.default_rng(1).integers(0, 256, (20, 28, 28)).astype(np.float64)
    expected = torch.from_numpy((stored - stored.mean()) / stored.std())[:, None].float()
    torch.testing.assert_close(data.train_inputs, expected, atol=1e-5, rtol=1e-5)


def test_a_missing_idx_file_is_named_with_its_folders(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    (tmp_path / STEMS[3]).unlink()
    with pytest.raises(ConfigurationError, match=rf"t10k-labels-idx1-ubyte.gz; found neither in .*{tmp_path.name}"):
        load_dataset("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda content: content[:-3], "15696 bytes; got bytes=15693"),
        (lambda content: content + b"\0", "15696 bytes; got bytes=15697"),
        (lambda content: content[:9], "bytes=9"),
        (lambda content: b"", "magic=0x "),
        (lambda content: b"\0\0\x0d\x03" + content[4:], "magic=0x00000d03"),
        (lambda content: b"\0\0\x08\x01" + content[4:], "magic=0x00000801"),
    ],
)
def test_a_damaged_idx_file_is_refused(damage: Callable[[bytes], bytes], match: str, tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    path = tmp_path / STEMS[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigurationError, match=match) as caught:
        load_dataset("fashion-mnist", tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda content: content[:-20], "EOFError"),
        (lambda content: b"plain text", "BadGzipFile"),
        (lambda content: content[:40] + b"\xff" * 40 + content[80:], "CRC check failed"),
        (lambda content: content[:10] + b"\xff" * 40, "error.*invalid block type"),
    ],
)
def test_a_damaged_gzip_file_is_refused(damage: Callable[[bytes], bytes], match: str, tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, compressed=True)
    path = tmp_path / f"{STEMS[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigurationError, match=match):
        load_dataset("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    ("stem", "array", "match"),
    [
        (STEMS[1], np.zeros(19, np.uint8), r"\(20, 1, 28, 28\) with labels=19"),
        (STEMS[3], np.full(10, 10, np.uint8), "labels from 10 to 10"),
        (STEMS[2], np.zeros((10, 27, 28), np.uint8), r"\(10, 1, 27, 28\)"),
        (STEMS[0], np.zeros((0, 28, 28), np.uint8), r"\(0, 1, 28, 28\)"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    stem: str, array: npt.NDArray[np.uint8], match: str, tmp_path: Path
) -> None:
    write_fashion_mnist(tmp_path)
    (tmp_path / stem).write_bytes(idx(array))
    with pytest.raises(ConfigurationError, match=match):
        load_dataset("fashion-mnist", tmp_path)


def test_a_constant_channel_becomes_zeros(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    (tmp_path / STEMS[0]).write_bytes(idx(np.full((20, 28, 28), 7, np.uint8)))
    assert not load_dataset("fashion-mnist", tmp_path).train_inputs.any()


@pytest.mark.parametrize("dump", [python2_batch, python3_batch(2), python3_batch(4)], ids=["py2", "py3-2", "py3-4"])
@pytest.mark.parametrize("inside", [False, True])
def test_cifar10_is_read_from_batches(
    dump: Callable[[npt.NDArray[np.uint8], list[int]], bytes], inside: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar_batches(folder, dump)
    data = load_dataset("cifar10", folder if inside else tmp_path)
    assert_sound(data, 20, 4, (3, 32, 32))
    assert data.train_labels.tolist() == [value for number in range(5) for value in (number, 9, 0, 3)]
    assert data.test_labels.tolist() == [5, 9, 0, 3]
    stored = np.concatenate([cifar_rows(number) for number in range(5)]).reshape(-1, 3, 32, 32).astype(np.float64)
    expected = (stored - stored.mean((0, 2, 3), keepdims=True)) / stored.std((0, 2, 3), keepdims=True)
    torch.testing.assert_close(data.train_inputs, torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-5)


class Malicious:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced


@pytest.mark.parametrize("function", [os.mkdir, eval, np.load, getattr], ids=lambda function: function.__name__)
def test_a_pickle_that_runs_code_is_refused(function: Callable[..., Any], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    write_cifar_batches(tmp_path / "batches", python3_batch(2))
    content = pickle.dumps({"data": Malicious(function, str(trace)), "labels": [0]}, protocol=2)
    (tmp_path / "batches" / "data_batch_3").write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"a request for \w+\.{function.__name__}.*data_batch_3"):
        load_dataset("cifar10", tmp_path / "batches")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "EOFError"),
        (python2_batch(cifar_rows(0), [0, 1, 2, 3])[:-100], "truncated"),
        (pickle.dumps({"labels": [0]}), "KeyError"),
        (pickle.dumps({"data": cifar_rows(0).astype(np.float32), "labels": [0]}, protocol=2), "dtype=f4"),
        (pickle.dumps({"data": cifar_rows(0)[:, :5], "labels": [0]}, protocol=2), "cannot reshape"),
    ],
)
def test_a_damaged_batch_is_refused(content: bytes, match: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar_batches(folder, python2_batch)
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"{match}.*test_batch"):
        load_dataset("cifar10", tmp_path)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar_batches(folder, python2_batch)
    (folder / "data_batch_4").unlink()
    with pytest.raises(ConfigurationError, match=r"FileNotFoundError.*data_batch_4"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPG"])
def test_cifar10_is_read_from_an_image_folder(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image_folder(tmp_path, suffix)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    data = load_dataset("cifar10", tmp_path)
    assert_sound(data, 20, 10, (3, 32, 32))
    assert data.train_labels.tolist() == np.repeat(np.arange(10), 2).tolist()
    assert data.test_labels.tolist() == list(range(10))
    assert not capsys.readouterr().out  # progress goes to stderr, as a report may be piped
    if suffix == ".png":  # PNG is lossless
        stored = np.concatenate([cifar_rows(10 * label + number, 1) for label in range(10) for number in (0, 1)])
        pixels = stored.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).astype(np.float64)
        expected = (pixels - pixels.mean((0, 2, 3), keepdims=True)) / pixels.std((0, 2, 3), keepdims=True)
        torch.testing.assert_close(data.train_inputs, torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-5)


def test_grey_images_become_three_channels(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    Image.new("L", (32, 32), 9).save(tmp_path / "test" / "cat" / "0.png")
    assert load_dataset("cifar10", tmp_path).input_shape == (3, 32, 32)


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    Image.new("RGB", (32, 31)).save(tmp_path / "test" / "cat" / "0.png")
    with pytest.raises(ConfigurationError, match=r"size=\(32, 31\).*0.png"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("cut", [0, 8, 40, 200])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_image_is_refused(cut: int, suffix: str, tmp_path: Path) -> None:
    write_image_folder(tmp_path, suffix)
    path = tmp_path / "train" / "dog" / f"1{suffix}"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigurationError, match=f"whole JPEG or PNG.*dog.1{suffix}"):
        load_dataset("cifar10", tmp_path)


def test_image_folders_must_have_the_same_ten_classes(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "nine", classes=CLASSES[:9])
    with pytest.raises(ConfigurationError, match=r"same 10 classes.*'ship'\]"):
        load_dataset("cifar10", tmp_path / "nine")
    write_image_folder(tmp_path / "renamed")
    (tmp_path / "renamed" / "test" / "cat").rename(tmp_path / "renamed" / "test" / "lynx")
    with pytest.raises(ConfigurationError, match=r"'lynx'.*test"):
        load_dataset("cifar10", tmp_path / "renamed")


def svhn_arrays(count: int) -> dict[str, npt.NDArray[np.uint8]]:
    pixels = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count)).astype(np.uint8)
    return {"X": pixels, "y": (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]}


def write_svhn(folder: Path, *, compressed: bool = False, **changed: Any) -> None:
    savemat(folder / "train_32x32.mat", svhn_arrays(20), do_compression=compressed)
    savemat(folder / "test_32x32.mat", {**svhn_arrays(11), **changed}, do_compression=compressed)


@pytest.mark.parametrize("compressed", [False, True])
def test_svhn_is_read_with_ten_as_the_digit_zero(compressed: bool, tmp_path: Path) -> None:
    write_svhn(tmp_path, compressed=compressed)
    data = load_dataset("svhn", tmp_path)
    assert_sound(data, 20, 11, (3, 32, 32))
    assert data.train_labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    stored = svhn_arrays(20)["X"].astype(np.float64)
    expected = (stored - stored.mean((0, 1, 3), keepdims=True)) / stored.std((0, 1, 3), keepdims=True)
    torch.testing.assert_close(
        data.train_inputs, torch.from_numpy(expected.transpose(3, 2, 0, 1)).float(), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"X": np.zeros((32, 32, 3, 11))}, "a matrix of class 0x06"),
        ({"X": np.zeros((32, 31, 3, 11), np.uint8)}, r"X of shape \(32, 31, 3, 11\)"),
        ({"X": {"field": 3}}, "a matrix of class 0x02"),
        ({"y": np.ones((10, 1), np.uint8)}, r"of shape \(11, 1\); got y of shape \(10, 1\)"),
        ({"y": np.zeros((11, 1), np.uint8)}, r"values \[0\]"),
        ({"y": np.full((11, 1), 11, np.uint8)}, r"values \[11\]"),
        ({"y": np.full((11, 1), np.nan)}, "a matrix of class 0x06"),
        ({"y": "12345678901"}, "a matrix of class 0x04"),
    ],
)
def test_svhn_with_other_arrays_is_refused(changed: dict[str, Any], match: str, tmp_path: Path) -> None:
    write_svhn(tmp_path, **changed)
    with pytest.raises(ConfigurationError, match=rf"{match}.*test_32x32.mat"):
        load_dataset("svhn", tmp_path)


def test_svhn_without_images_is_refused(tmp_path: Path) -> None:
    write_svhn(tmp_path, X=np.zeros((32, 32, 3, 0), np.uint8), y=np.zeros((0, 1), np.uint8))
    with pytest.raises(ConfigurationError, match=r"images of shape \(0, 3, 32, 32\)"):
        load_dataset("svhn", tmp_path)


@pytest.mark.parametrize("content", [b"", b"plain text", b"\x89HDF" + b"\0" * 200, b"MATLAB 5.0" + b"\xff" * 200])
def test_a_file_that_is_not_svhn_is_refused(content: bytes, tmp_path: Path) -> None:
    write_svhn(tmp_path)
    (tmp_path / "train_32x32.mat").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"MATLAB file with X and y, .*; got .*train_32x32.mat"):
        load_dataset("svhn", tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kept", [0.0001, 0.01, 0.5, 0.9])
def test_a_truncated_svhn_file_is_refused(compressed: bool, kept: float, tmp_path: Path) -> None:
    write_svhn(tmp_path, compressed=compressed)
    path = tmp_path / "train_32x32.mat"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ConfigurationError, match=r"; got .*train_32x32.mat"):
        load_dataset("svhn", tmp_path)


def test_a_missing_svhn_file_is_named(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(ConfigurationError, match=rf"found no test_32x32.mat in .*{tmp_path.name}"):
        load_dataset("svhn", tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
def test_svhn_with_any_changed_bytes_is_read_or_refused(compressed: bool, tmp_path: Path) -> None:
    write_svhn(tmp_path, compressed=compressed)
    path = tmp_path / "train_32x32.mat"
    content = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        changed = content.copy()
        places = np.concatenate([rng.integers(120, 200, 2), len(content) - rng.integers(1, 80, 2)])
        changed[places] = rng.integers(0, 256, 4)
        path.write_bytes(changed.tobytes())
        try:
            load_dataset("svhn", tmp_path)
        except ConfigurationError:
            refused += 1
    assert refused > 50


def test_svhn_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solon_fl.simulations.datasets.svhn._MAX_BYTES", 1000)
    write_svhn(tmp_path, compressed=True)
    with pytest.raises(ConfigurationError, match="longer than 1000 bytes"):
        load_dataset("svhn", tmp_path)
