"""Collects the losses of a node's batches, to report their mean and the parameters that no loss depends on."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

__all__ = ["Losses", "collected_losses", "note_loss", "note_unreached"]


class Losses:
    """Adds up losses on the device where they were computed; only `mean` waits for a GPU.

    Attributes
    ----------
    unreached : tuple of str
        Parameters that none of the losses depends on.
    """

    def __init__(self) -> None:
        self.unreached: tuple[str, ...] = ()
        self._total: Tensor | None = None
        self._count = 0

    def add(self, loss: Tensor) -> None:
        """Add the loss of one batch, a scalar."""
        self._include(loss.detach().float().reshape(()), 1)

    def include(self, others: "Losses") -> None:
        """Add the losses that `others` has collected, and take over its `unreached`."""
        self.unreached = others.unreached
        if others._total is not None:
            self._include(others._total, others._count)

    def mean(self) -> float | None:
        """Return the mean loss of a batch, or None if there is none or it is not finite."""
        mean = math.nan if self._total is None else self._total.item() / self._count
        return mean if math.isfinite(mean) else None

    def _include(self, total: Tensor, count: int) -> None:
        self._total = total.clone() if self._total is None else self._total + total.to(self._total.device)
        self._count += count


_collecting: ContextVar[Losses | None] = ContextVar("collecting", default=None)  # in this thread


@contextmanager
def collected_losses() -> Iterator[Losses]:
    """Collect the losses that this thread passes to `note_loss` inside."""
    losses = Losses()
    token = _collecting.set(losses)
    try:
        yield losses
    finally:
        _collecting.reset(token)


def note_loss(loss: Tensor | Losses) -> None:
    """Add the loss of a batch, or of several, to the innermost `collected_losses`; do nothing outside of one."""
    losses = _collecting.get()
    if losses is None:
        return
    if isinstance(loss, Losses):
        losses.include(loss)
    else:
        losses.add(loss)


def note_unreached(names: tuple[str, ...]) -> None:
    """Record which parameters no loss depends on in the innermost `collected_losses`; do nothing outside of one."""
    losses = _collecting.get()
    if losses is not None:
        losses.unreached = names
