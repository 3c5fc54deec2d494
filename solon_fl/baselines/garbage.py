"""Garbage collections that visit only objects that a strategy has made itself."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quick_collections"]


@contextmanager
def quick_collections() -> Iterator[None]:
    """Make garbage collections inside skip all objects that already exist.

    Flower's Bulyan collects garbage once for every node. Each collection visits all objects of the process, including
    those of torch and Flower, and takes longer than aggregating small models. This does nothing if some objects are
    frozen already.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
