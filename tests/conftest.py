"""Settings for all tests."""

import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

collect_ignore = ["hostile/fuzz.py"]  # a program of its own, and atheris is no dependency of the tests

torch.set_num_threads(1)  # tests run in several processes, and threads that wait for each other cost more

settings.register_profile("solon", deadline=None, max_examples=60, print_blob=True)
settings.load_profile("solon")


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """Give each test Flower's loggers as they were: commands silence them."""
    loggers = [logging.getLogger(name) for name in ("flwr", "flwr.checkpoints")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
