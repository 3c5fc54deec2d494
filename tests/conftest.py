"""Settings for all tests."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

SHARING = ("tests/deployment/test_federation.py",)  # the tests of each of these files share what is costly to set up

torch.set_num_threads(1)  # tests run in several processes, and threads that wait for each other cost more

settings.register_profile("solon", deadline=None, max_examples=60, print_blob=True)
settings.load_profile("solon")


class Scheduling(LoadScopeScheduling):
    """Each process gets one test after the other, and of the files that share something all tests."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return file if file in SHARING else nodeid


@pytest.hookimpl(optionalhook=True)  # only with xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """Give each test Flower's loggers as they were: commands silence them."""
    loggers = [logging.getLogger(name) for name in ("flwr", "flwr.checkpoints")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
