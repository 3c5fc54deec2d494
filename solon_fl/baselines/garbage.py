"""Garbage collections that cost a strategy no more than its own objects do."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quick_collections"]


@contextmanager
def quick_collections() -> Iterator[None]:
    """Let garbage collections pass over all objects that exist already; nothing changes if some are frozen before.

    Flower's Bulyan has Python collect garbage once for every node. Each time that visits all objects of the process,
    those of torch and Flower too, which takes longer than aggregating small models.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
