import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.datasets import Dataset, load_dataset
from solon_fl.simulations.datasets.reviews import _NEGATIONS


def snippets(count: int) -> list[str]:
    """Each snippet has a unique word, `wordN`, and words that all share."""
    return [f"It's a FILM, word{number}! a" for number in range(count)]


def write_ratings(path: Path, *, compressed: bool = False, end: str = "\n") -> None:
    lines = [f"{number}\t{(-1) ** number * 1.5}\t{text}" for number, text in enumerate(snippets(40))]
    lines.insert(7, "99\t0.0\tneither good nor bad")
    content = (end.join(lines) + end).encode()
    path.write_bytes(gzip.compress(content) if compressed else content)


def write_polarity(folder: Path) -> None:
    texts = snippets(40)
    # 0x85 is an ellipsis on Windows, and the end of a line for str.splitlines.
    (folder / "rt-polarity.neg").write_bytes(
        b"\n".join(f"{text} \x85 caf\xe9".encode("latin-1") for text in texts[1::2])
    )
    (folder / "rt-polarity.pos").write_bytes(b"\n".join(text.encode() for text in texts[::2]) + b"\n")


def assert_sound_texts(data: Dataset, train: int, test: int) -> None:
    assert data.num_classes == 2
    assert data.input_shape == (data.vocabulary_size, data.train_inputs.shape[1])
    for tokens, labels, count in (
        (data.train_inputs, data.train_labels, train),
        (data.test_inputs, data.test_labels, test),
    ):
        assert len(tokens) == len(labels) == count
        assert tokens.dtype == labels.dtype == torch.int64
        assert 0 <= int(tokens.min()) <= int(tokens.max()) < data.vocabulary_size
        assert set(labels.tolist()) == {0, 1}


def assert_same(first: Dataset, second: Dataset) -> None:
    assert first.vocabulary_size == second.vocabulary_size
    assert torch.equal(first.train_inputs, second.train_inputs)
    assert torch.equal(first.train_labels, second.train_labels)
    assert torch.equal(first.test_inputs, second.test_inputs)
    assert torch.equal(first.test_labels, second.test_labels)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("compressed", [False, True])
def test_ratings_are_read(compressed: bool, end: str, tmp_path: Path) -> None:
    path = tmp_path / "ratings"
    write_ratings(path, compressed=compressed, end=end)
    data = load_dataset("movie-reviews", path)
    assert_sound_texts(data, 36, 4)
    # Padding, the unknown word, it's, a, film, and one word of each training text.
    assert data.input_shape == (2 + 3 + 36, 40)
    # The commonest first, ties in alphabetical order: a, film, it's.
    assert data.train_inputs[:, :5].tolist() == [[4, 2, 3, own, 2] for own in data.train_inputs[:, 3].tolist()]
    assert sorted(data.train_inputs[:, 3].tolist()) == list(range(5, 41))
    assert data.test_inputs[:, :5].tolist() == [[4, 2, 3, 1, 2]] * 4  # their own word was never seen in training
    assert not data.train_inputs[:, 5:].any()
    assert int(torch.cat([data.train_labels, data.test_labels]).sum()) == 20


def test_a_rating_above_zero_is_label_1(tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    path.write_text("".join(f"{n}\t{0.1 if n % 4 else -3}\t{'good' if n % 4 else 'bad'}\n" for n in range(40)))
    data = load_dataset("movie-reviews", path)
    assert data.vocabulary_size == 4
    assert torch.equal(data.train_labels == 1, data.train_inputs[:, 0] == 2)  # good: the commoner of the two
    assert torch.equal(data.test_labels == 1, data.test_inputs[:, 0] == 2)


def test_polarity_files_are_read(tmp_path: Path) -> None:
    write_polarity(tmp_path)
    data = load_dataset("movie-reviews", tmp_path)
    assert_sound_texts(data, 36, 4)
    has_cafe = (data.train_inputs[:, :7] != 0).sum(dim=1) == 6  # written in the unfavourable ones only
    assert torch.equal(data.train_labels == 0, has_cafe)


def test_long_texts_are_cut_and_rare_words_unknown(tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    path.write_text("".join(f"{n}\t1\t{' '.join(f'w{n}x{k}' for k in range(150))}\n" for n in range(40)))
    data = load_dataset("movie-reviews", path)
    assert data.input_shape == (5002, 40)
    assert data.train_inputs.min() == 1
    assert data.train_inputs.max() <= 5001
    assert data.test_inputs.eq(1).all()  # no two texts share a word


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    write_ratings(tmp_path / "ratings.txt")
    write_ratings(tmp_path / "ratings.txt.gz", compressed=True)
    assert_same(*(load_dataset("movie-reviews", tmp_path / name) for name in ("ratings.txt", "ratings.txt.gz")))
    assert_same(*(load_dataset("synthetic-reviews") for _ in range(2)))


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b"1\t2.0 no second tab\n", r"line 41='1\\t2.0 no second tab'"),
        (b"1\tgood\ttext\n", r"line 41='1\\tgood\\ttext'"),
        (b"1\tnan\ttext\n", "line 41"),
        (b"1\tinf\ttext\n", "line 41"),
        (b"1\t1.0\t\xff\n", "UnicodeDecodeError"),
        (b"\0" * 100, "line 41"),
    ],
)
def test_a_line_that_is_no_rating_is_refused(line: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    path.write_bytes("".join(f"{n}\t1\t{text}\n" for n, text in enumerate(snippets(40))).encode() + line)
    with pytest.raises(ConfigurationError, match=rf"{match}.*ratings.txt"):
        load_dataset("movie-reviews", path)


@pytest.mark.parametrize(
    ("cut", "match"), [(slice(0, 2), "EOFError"), (slice(0, -9), "EOFError|error"), (slice(0, 60), "EOFError|error")]
)
def test_a_truncated_gzip_file_of_ratings_is_refused(cut: slice, match: str, tmp_path: Path) -> None:
    path = tmp_path / "ratings.gz"
    write_ratings(path, compressed=True)
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(ConfigurationError, match=rf"({match}).*ratings.gz"):
        load_dataset("movie-reviews", path)


@pytest.mark.parametrize("count", [0, 9])
def test_too_few_snippets_are_refused(count: int, tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    path.write_text("".join(f"{n}\t1\ttext\n" for n in range(count)))
    with pytest.raises(ConfigurationError, match=f"at least 10 snippets.*snippets={count} in .*ratings.txt"):
        load_dataset("movie-reviews", path)


def test_a_missing_polarity_file_is_named(tmp_path: Path) -> None:
    write_polarity(tmp_path)
    (tmp_path / "rt-polarity.pos").unlink()
    with pytest.raises(ConfigurationError, match=rf"found no rt-polarity.pos in .*{tmp_path.name}"):
        load_dataset("movie-reviews", tmp_path)


def test_made_up_texts_are_balanced_and_lean_to_their_class() -> None:
    data = load_dataset("synthetic-reviews")
    assert_sound_texts(data, 5000, 1000)
    assert data.input_shape == (1000, 30)
    assert data.train_labels.bincount().tolist() == [2500, 2500]
    assert data.test_labels.bincount().tolist() == [500, 500]
    # The rule that generated them, with and without negations: word order matters.
    tokens, labels = data.test_inputs.numpy(), data.test_labels.numpy()
    leans = (tokens // 2 % 2) * (tokens % 2 * 2 - 1)
    negated = np.zeros(tokens.shape, dtype=bool)
    negated[:, 1:] = np.isin(tokens[:, :-1], _NEGATIONS)
    with_order, without = ((score.sum(1) > 0) == labels for score in (np.where(negated, -leans, leans), leans))
    assert with_order.mean() > 0.93
    assert without.mean() < with_order.mean() - 0.05
