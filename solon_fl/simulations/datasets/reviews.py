"""Short texts with label 1 if they are favourable: snippets of film reviews, and texts made by code."""

import gzip
import math
import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.datasets.dataset import Dataset, damaged, existing_folder

__all__ = ["movie_reviews", "synthetic_reviews"]

_UNKNOWN = 1  # the id of every word that is not in the vocabulary; 0 fills up the ends of texts
_MAX_WORDS = 5000
_LENGTH = 40  # of a snippet, in words
_WORD = re.compile(r"\w+(?:'\w+)*")
_TEST_EVERY = 10

_SYNTHETIC_VOCABULARY = 1000
_SYNTHETIC_LENGTH = 30
_NEGATIONS = (1, 4)  # of the synthetic ids: common, and neither in a pair that leans
_LEAN = 0.74  # measured: textcnn reaches 88 to 90 %, and one weight a word, which sees no order, 80 %

_Snippet = tuple[str, int]  # text, label


def movie_reviews(data_dir: Path | None) -> Dataset:
    """Return snippets of film reviews from the user's files, as ids of the training part's commonest words."""
    snippets = _read_ratings(data_dir) if data_dir is not None and data_dir.is_file() else _read_polarity(data_dir)
    if len(snippets) < _TEST_EVERY:
        rule = f"movie-reviews needs at least {_TEST_EVERY} snippets, so that it has a test part"
        raise damaged(data_dir, rule, f"snippets={len(snippets)}")
    order = np.random.default_rng(0).permutation(len(snippets))  # the files may be class by class
    is_test = np.arange(len(snippets)) % _TEST_EVERY == 0
    words = [_WORD.findall(snippets[row][0].lower()) for row in order]
    labels = torch.tensor([snippets[row][1] for row in order])

    counts = Counter(word for text, held_out in zip(words, is_test, strict=True) if not held_out for word in text)
    commonest = sorted(counts, key=lambda word: (-counts[word], word))[:_MAX_WORDS]
    ids = {word: number for number, word in enumerate(commonest, start=_UNKNOWN + 1)}
    inputs = torch.zeros(len(words), _LENGTH, dtype=torch.int64)
    for row, text in zip(inputs, words, strict=True):
        kept = [ids.get(word, _UNKNOWN) for word in text[:_LENGTH]]
        row[: len(kept)] = torch.tensor(kept, dtype=torch.int64)
    train, test = torch.from_numpy(~is_test), torch.from_numpy(is_test)
    vocabulary_size = _UNKNOWN + 1 + len(ids)
    return Dataset("movie-reviews", inputs[train], labels[train], inputs[test], labels[test], 2, vocabulary_size)


def synthetic_reviews(data_dir: Path | None) -> Dataset:
    """Return texts of random words in two classes; their ids stand for no words.

    Notes
    -----
    Words follow Zipf's law: the n-th commonest is drawn with probability proportional to 1/n. Two words are negations.
    Every second pair (2n, 2n + 1) leans: where one of the two is drawn, a favourable text has the odd one with
    probability `_LEAN` and an unfavourable text the even one. After a negation it is the other way round.
    """
    if data_dir is not None:
        rule = f"synthetic-reviews is made in code and reads no folder; got data_dir={data_dir}"
        raise ConfigurationError(f"{rule}; leave data_dir out, or choose movie-reviews for real texts.")
    rng = np.random.default_rng(0)
    train, test = _made_up(rng, 5000), _made_up(rng, 1000)
    return Dataset("synthetic-reviews", *train, *test, 2, _SYNTHETIC_VOCABULARY)


def _made_up(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return as many texts of one class as of the other, shuffled: ids (count, length) and labels (count,)."""
    labels = rng.permutation(np.arange(count) % 2)
    frequencies = 1 / np.arange(1, _SYNTHETIC_VOCABULARY)
    frequencies /= frequencies.sum()
    ids = rng.choice(np.arange(1, _SYNTHETIC_VOCABULARY), size=(count, _SYNTHETIC_LENGTH), p=frequencies)
    leans = ids // 2 % 2 == 1  # 2, 3, 6, 7, 10, 11 ...
    is_negated = np.zeros(ids.shape, dtype=bool)
    is_negated[:, 1:] = np.isin(ids[:, :-1], _NEGATIONS)
    agrees = rng.random(ids.shape) < _LEAN
    is_favourable = (labels[:, None] == 1) ^ ~agrees ^ is_negated
    ids[leans] = ids[leans] // 2 * 2 + is_favourable[leans]
    return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(labels.astype(np.int64))


def _read_ratings(path: Path) -> list[_Snippet]:
    """Return the snippets of a file that are rated above 0 (label 1) or below (0); a line is id, mean rating, text."""
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        lines = content.decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise damaged(path, "a file of ratings must be UTF-8 text, gzipped or not", repr(error)) from error
    snippets = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            _, rating, text = line.split("\t", 2)
            value = float(rating)
            if not math.isfinite(value):
                raise ValueError(f"rating={value}")
        except ValueError as error:
            rule = "a line of ratings must be an id, the mean rating and the text, between tabs"
            raise damaged(path, rule, f"line {number}={line[:80]!r}") from error
        if value != 0:
            snippets.append((text, int(value > 0)))
    return snippets


def _read_polarity(data_dir: Path | None) -> list[_Snippet]:
    """Return the snippets of rt-polarity.neg (label 0) and rt-polarity.pos (1), one a line."""
    contents = "rt-polarity.pos and rt-polarity.neg (or name a file of ratings)"
    folder = existing_folder("movie-reviews", data_dir, contents)
    snippets = []
    for label, name in enumerate(("rt-polarity.neg", "rt-polarity.pos")):
        if not (folder / name).is_file():
            rule = f"movie-reviews needs rt-polarity.pos and rt-polarity.neg; found no {name} in {folder}"
            raise ConfigurationError(f"{rule}; put it there, or set data_dir to another folder or file.")
        # Not splitlines: Latin-1 has characters that it would take for ends of lines.
        lines = (folder / name).read_text(encoding="latin-1").split("\n")
        snippets += [(line, label) for line in lines if line.strip()]
    return snippets
