"""Draws the batches of a DataLoader by their numbers rather than in the loader's order, as nodes of a group must."""

from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from solon_fl.errors import ConfigurationError
from solon_fl.task import Batch

__all__ = ["check_loader", "examples_of"]


def check_loader(loader: Any) -> None:
    """Raise ConfigurationError if batches can't be drawn by their numbers from a DataLoader's dataset."""
    if not isinstance(loader, DataLoader):
        raise ConfigurationError(
            f"the training data must be one torch DataLoader; got a {type(loader).__name__}; return "
            "DataLoader(dataset, batch_size=32)."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigurationError(
            "the training dataset must have a length and numbered examples, so that all nodes of a group draw the "
            f"same ones; got an IterableDataset, {type(loader.dataset).__name__}; use a map-style dataset."
        )
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler:
        got = "batch_size=None" if batches is None else f"the batch_sampler {type(batches).__name__}"
        raise ConfigurationError(
            "nodes form batches themselves, from examples in an order that the run's seed determines; got a loader "
            f"with {got}; return DataLoader(dataset, batch_size=32), or override batch_loss."
        )
    if not isinstance(batches.sampler, RandomSampler | SequentialSampler):
        raise ConfigurationError(
            "nodes take each example once an epoch, in an order that the run's seed determines; got a loader with a "
            f"{type(batches.sampler).__name__}, which may choose differently; leave it out (shuffle=True), or override "
            "batch_loss."
        )


def examples_of(loader: "DataLoader[Any]", batch: Batch, batch_size: int) -> Any:
    """Return this batch's examples, collated by the loader's collate_fn; each example comes once an epoch."""
    chosen = batch.sample_epoch(len(loader.dataset), batch_size).tolist()  # type: ignore[arg-type]  # map-style
    return loader.collate_fn(Subset(loader.dataset, chosen).__getitems__(list(range(batch_size))))
