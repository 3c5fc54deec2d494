"""Settings for all tests."""

import logging
import os
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

SLOW = 1.0  # seconds of CPU time; tests that take more must be marked slow
SHARING = ("tests/deployment/test_federation.py",)  # the tests in each of these files share a costly set-up

collect_ignore = ["hostile/fuzz.py"]  # a separate program, which needs atheris

torch.set_num_threads(1)  # tests run in several processes, and threads that wait for each other cost more
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the same for numpy, which these processes import after this

settings.register_profile("solon", deadline=None, max_examples=25, print_blob=True)
settings.load_profile("solon")


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Distributes single tests to processes, but keeps the tests of each file in `SHARING` together."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return file if file in SHARING else nodeid


@pytest.hookimpl(optionalhook=True)  # only with xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Record tests that are slow but not marked, by CPU time, because other programs may use the same cores."""
    started = time.process_time()
    yield
    seconds = time.process_time() - started
    if seconds > SLOW and item.get_closest_marker("slow") is None:
        item.user_properties.append(("not marked slow", seconds))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    slow = {
        report.nodeid: seconds
        for report in terminalreporter.getreports("passed")
        for name, seconds in report.user_properties
        if name == "not marked slow"
    }
    if slow:
        terminalreporter.section(f"more than {SLOW:g} s of CPU time, and not marked slow")
        for nodeid, seconds in sorted(slow.items(), key=lambda entry: -entry[1]):
            terminalreporter.line(f"{seconds:.1f} s {nodeid}")


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """Restore the levels of Flower's loggers after each test, because commands silence them."""
    loggers = [logging.getLogger(name) for name in ("flwr", "flwr.checkpoints")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
