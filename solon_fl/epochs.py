"""Random orders that take every example once per epoch. Only the needed part of an order is computed."""

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["examples_at", "permuted"]

DOUBLE_ROUNDS = 6  # with 3 or more, all statistical tests of the orders pass
FEW = 64  # up to this size, sort by hash instead: in a small rectangle some orders would be likelier than others
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
Numbers = NDArray[np.uint64]


def examples_at(first: int, count: int, num_examples: int, seed: int) -> NDArray[np.int64]:
    """Return the examples at positions first to first + count - 1 of an endless sequence of epochs.

    Parameters
    ----------
    first, count : int
        The first position, from 0, and the number of positions. Epoch t has the positions t num_examples to
        (t + 1) num_examples - 1.
    num_examples : int
        N, at most 2**62.
    seed : int
        Seed of the run. Together with the epoch's number it determines the epoch's order.

    Notes
    -----
    Guarantee: each epoch is a permutation of range(N).

    Cost: O(count) per epoch touched, however many examples there are.
    """
    parts = []
    while count > 0:
        epoch, start = divmod(first, num_examples)
        length = min(count, num_examples - start)
        places = np.arange(start, start + length, dtype=np.uint64)
        parts.append(permuted(places, num_examples, _keys_of(seed, epoch)))
        first, count = first + length, count - length
    return np.concatenate(parts).astype(np.int64)


def permuted(places: Numbers, size: int, keys: Numbers) -> Numbers:
    """Return the entries at these positions of the permutation of range(size) that the keys determine.

    Parameters
    ----------
    places : (n,) uint64
        Positions, below `size`.
    keys : (2 R,) uint64
        Two keys for each double round.

    Notes
    -----
    The numbers fill a rectangle that is slightly larger than `size`. One round rotates every row by a hash of the row
    and the round's key, and the next round does the same with every column. This is a Feistel network on any rectangle.
    A number that ends outside of range(size) is moved again until it is inside, which keeps the map a permutation
    ("cycle walking").

    References
    ----------
    Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
    """
    if size <= FEW:
        hashes = _hash(np.arange(size, dtype=np.uint64), keys[0])
        return np.argsort(hashes, kind="stable").astype(np.uint64)[places]
    width = 2 * math.isqrt(size // 4)  # an even width: with an odd one, all permutations would be even
    height = -(-size // width)
    found = _moved(places, width, height, keys)
    while (outside := np.flatnonzero(found >= np.uint64(size))).size:
        found[outside] = _moved(found[outside], width, height, keys)
    return found


def _keys_of(seed: int, epoch: int) -> Numbers:
    sequence = np.random.SeedSequence([seed], spawn_key=(epoch,))
    return np.asarray(sequence.generate_state(2 * DOUBLE_ROUNDS, np.uint64), np.uint64)


def _moved(numbers: Numbers, width: int, height: int, keys: Numbers) -> Numbers:
    """Return where the keys move these numbers, which permutes the numbers below width * height."""
    columns, rows = np.uint64(width), np.uint64(height)
    row, column = np.divmod(numbers, columns)
    for row_key, column_key in keys.reshape(-1, 2):
        column = (column + _hash(row, row_key) % columns) % columns
        row = (row + _hash(column, column_key) % rows) % rows
    return row * columns + column


def _hash(numbers: Numbers, key: np.uint64) -> Numbers:
    """Return 64 pseudorandom bits for each number: a keyed finaliser of SplitMix64."""
    mixed = numbers * GOLDEN + key  # modulo 2**64, like everything below
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
