"""Which columns of the shares belong to which tensor of the model, and which tensors are measured together."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
from torch import Tensor

from solon_fl.errors import ConfigurationError

from ._types import FloatArray, IntArray

__all__ = ["Sections", "padded", "spread"]


def padded(size: int, compression: int) -> int:
    """Return the entries that a tensor takes in the coded vector: a multiple of k, so that none shares a column."""
    return -(-size // compression) * compression


def spread(vector: Tensor, sizes: Sequence[int], compression: int) -> Tensor:
    """Return a vector of tensors of these sizes, (sum(sizes),), as it is coded: each padded with zeros.

    The vector itself if it is so already, or needs no padding; else a copy.
    """
    lengths = [padded(size, compression) for size in sizes]
    if vector.numel() == sum(lengths):
        return vector
    coded = vector.new_zeros(sum(lengths))
    start = first = 0
    for size, length in zip(sizes, lengths, strict=True):
        coded[start : start + size] = vector[first : first + size]
        start, first = start + length, first + size
    return coded


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The tensors of a coded vector, and their classes.

    A column of X mixes k neighbouring entries, all of one tensor. Each class of tensors has a residual, a tolerance and
    an error bound of its own: a model's running statistics, which may be of any size, hide no lie in its gradient.

    Attributes
    ----------
    stops : tuple of C int
        The column behind each tensor's last one; the first tensor starts at column 0.
    classes : tuple of C int
        Number of each tensor's class.
    names : tuple of K str
        Of the classes.

    Examples
    --------
    >>> sections = Sections.of([(5, "parameters"), (2, "buffers")], compression=3)
    >>> sections.stops, sections.classes, sections.names
    ((2, 3), (0, 1), ('parameters', 'buffers'))
    """

    stops: tuple[int, ...]
    classes: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, tensors: Iterable[tuple[int, str]], *, compression: int) -> "Sections":
        """Return the sections of tensors of these sizes (entries, before they are padded) and classes.

        Tensors without entries are left out.
        """
        filled = [(size, label) for size, label in tensors if size > 0]
        if not filled:
            raise ConfigurationError("the model must have entries to train; got none but empty tensors.")
        sizes, labels = zip(*filled, strict=True)
        names = tuple(dict.fromkeys(labels))
        return cls(
            stops=tuple(accumulate(padded(size, compression) // compression for size in sizes)),
            classes=tuple(names.index(label) for label in labels),
            names=names,
        )

    @classmethod
    def whole(cls, num_columns: int) -> "Sections":
        """Return one section for all columns."""
        return cls(stops=(num_columns,), classes=(0,), names=("parameters",))

    @property
    def num_columns(self) -> int:
        """m, the length of a share."""
        return self.stops[-1]

    @cached_property
    def widths(self) -> FloatArray:
        """Columns of each tensor, (C,) float64."""
        return np.diff(self.stops, prepend=0).astype(np.float64)

    def pieces(self, start: int, stop: int) -> list[tuple[int, slice]]:
        """Return what tensors there are between two columns: their numbers and, counted from `start`, their columns."""
        found = []
        number, first = bisect_right(self.stops, start), start
        while first < stop:
            last = min(self.stops[number], stop)
            found.append((number, slice(first - start, last - start)))
            number, first = number + 1, last
        return found

    def blocks(self, width: int, chosen: Sequence[int] | None = None) -> list[tuple[int, slice]]:
        """Return all columns (of the tensors chosen) in blocks of one tensor and at most that width, in order."""
        limits = list(pairwise((0, *self.stops)))
        numbers = range(len(limits)) if chosen is None else chosen
        return [
            (number, slice(start, min(start + width, limits[number][1])))
            for number in numbers
            for start in range(*limits[number], width)
        ]

    def by_class(self, squares: FloatArray) -> FloatArray:
        """Return the sums over the tensors of each class, (K, ...), of squares of norms, (C, ...)."""
        if len(self.names) == 1:
            return np.asarray(squares.sum(axis=0, keepdims=True))
        return np.stack([squares[members].sum(axis=0) for members in self._members])

    @cached_property
    def _members(self) -> list[IntArray]:
        return [np.flatnonzero(np.array(self.classes) == number) for number in range(len(self.names))]

    def norms_by_class(self, norms: FloatArray) -> FloatArray:
        """Return the norms over the tensors of each class, (K, ...), of those of each tensor, (C, ...)."""
        return np.asarray(np.sqrt(self.by_class(norms**2)))
