"""Digests of shares, which turn a lie into an erasure where honest nodes compute the same bits."""

import hashlib
from collections import Counter
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from .code import Code

__all__ = ["DIGEST_SIZE", "elect", "share_digest", "share_digests"]

DIGEST_SIZE = 32  # bytes; finding two shares with the same digest takes about 2^128 attempts


def share_digest(share: Tensor, key: bytes) -> bytes:
    """Return the keyed BLAKE2b digest, 32 bytes, of a share's bits, (m,) float32 or float64.

    Parameters
    ----------
    key : bytes, at most 64
        The key of the run, round and group. It makes digests of another round worthless.
    """
    bits = np.ascontiguousarray(share.detach().cpu().numpy()).view(np.uint8)
    return hashlib.blake2b(bits.data, digest_size=DIGEST_SIZE, key=key).digest()


def share_digests(code: Code, gradient: Tensor, key: bytes) -> bytes:
    """Return the concatenated digests of all r shares of a gradient, (d,): 32 r bytes.

    Cost: r d multiply-adds, and hashing 4 r d / k bytes. Only one share is in memory at a time.
    """
    return b"".join(share_digest(code.encode(gradient, slot), key) for slot in range(code.group_size))


def elect(lists: Iterable[bytes], votes: int) -> bytes | None:
    """Return the list of digests that at least `votes` nodes sent, or None.

    With s + 1 votes, at least one voter is honest, so all digests are those of the true shares.
    """
    (best, most), *_ = Counter(lists).most_common(1) or [(b"", 0)]
    return best if most >= votes else None
