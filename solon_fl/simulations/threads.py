"""Limits the threads of torch and of numpy's linear algebra, which are independent of each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.extras import simulation_extra

__all__ = ["check_threads", "limited_threads", "usable_cores"]


def check_threads(threads: int) -> None:
    """Raise ConfigurationError if this is too many threads for the machine, or too few."""
    cores = usable_cores()
    if not 1 <= threads <= 4 * cores:
        has = f"{cores} core{'s' if cores > 1 else ''}"
        raise ConfigurationError(
            f"threads must be from 1 to {4 * cores} on this machine, which has {has}; got threads={threads}."
        )


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """Let torch and numpy compute with this many threads each, and restore their settings afterwards.

    Without this, strategies that aggregate with numpy (Flower's own) would use all cores while those that aggregate
    with torch use one. On a busy machine they would wait for threads that get no core.
    """
    with simulation_extra("limits of threads"):
        from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(limits=number):
            yield
    finally:
        torch.set_num_threads(before)
