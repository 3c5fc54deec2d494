"""Sections: which columns of the shares belong to which tensor, and which tensors are measured together."""

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
    """Return the length of a tensor in the coded vector: a multiple of k, so that no two tensors share a column."""
    return -(-size // compression) * compression


def spread(vector: Tensor, sizes: Sequence[int], compression: int) -> Tensor:
    """Return the coded form of a vector of tensors of these sizes, (sum(sizes),): each tensor padded with zeros.

    This is the vector itself if it is padded already or needs no padding, else a copy.
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

    A column of X mixes k neighbouring entries, all of one tensor. Each class of tensors has its own residual, tolerance
    and error bound. So a model's running statistics, which may be of any size, can't hide a lie in its gradient.

    Attributes
    ----------
    stops : tuple of C int
        The column after each tensor's last one. The first tensor starts at column 0.
    classes : tuple of C int
        The number of each tensor's class.
    names : tuple of K str
        The names of the classes.

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
        """Return the sections of tensors, given as pairs of size (entries, before padding) and class name.

        Empty tensors are left out.
        """
        filled = [(size, label) for size, label in tensors if size > 0]
        if not filled:
            raise ConfigurationError("the model must have entries to train; got only empty tensors.")
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
        """Return the tensors between two columns: their numbers, and their columns counted from `start`."""
        found = []
        number, first = bisect_right(self.stops, start), start
        while first < stop:
            last = min(self.stops[number], stop)
            found.append((number, slice(first - start, last - start)))
            number, first = number + 1, last
        return found

    def blocks(self, width: int, chosen: Sequence[int] | None = None) -> list[tuple[int, slice]]:
        """Return all columns (of the chosen tensors), in order, in blocks within one tensor and of at most `width`."""
        limits = list(pairwise((0, *self.stops)))
        numbers = range(len(limits)) if chosen is None else chosen
        return [
            (number, slice(start, min(start + width, limits[number][1])))
            for number in numbers
            for start in range(*limits[number], width)
        ]

    def by_class(self, squares: FloatArray) -> FloatArray:
        """Sum squared norms, (C, ...), over the tensors of each class; return (K, ...)."""
        if len(self.names) == 1:
            return np.asarray(squares.sum(axis=0, keepdims=True))
        return np.stack([squares[members].sum(axis=0) for members in self._members])

    @cached_property
    def _members(self) -> list[IntArray]:
        return [np.flatnonzero(np.array(self.classes) == number) for number in range(len(self.names))]

    def norms_by_class(self, norms: FloatArray) -> FloatArray:
        """Combine the norms of the tensors, (C, ...), into those of the classes, (K, ...)."""
        return np.asarray(np.sqrt(self.by_class(norms**2)))
