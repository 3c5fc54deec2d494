"""How many threads compute: torch's, and those of numpy's linear algebra, which know nothing of each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.extras import simulation_extra

__all__ = ["check_threads", "limited_threads", "usable_cores"]


def check_threads(threads: int) -> None:
    """Raise ConfigurationError if this machine can't have so many threads."""
    cores = usable_cores()
    if not 1 <= threads <= 4 * cores:
        has = f"{cores} core{'s' if cores > 1 else ''}"
        raise ConfigurationError(
            f"threads must be from 1 to {4 * cores} on this machine, which has {has}; got threads={threads}."
        )


def usable_cores() -> int:
    """Return how many of this machine's cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """Let torch and numpy compute with so many threads each, and restore what was before.

    Else strategies that aggregate with numpy (Flower's own) would have all cores where those that do with torch have
    one, or, where cores are busy, wait for threads that do not get one.
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
