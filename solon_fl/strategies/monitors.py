"""Monitors: callables that are told how a run stands after every round and can't disturb it."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.app import MetricRecord

from solon_fl.errors import ConfigurationError
from solon_fl.strategies.ledger import NodeRecord
from solon_fl.strategies.reports import RoundReport

__all__ = ["Monitor", "Monitors", "RunStatus"]

logger = logging.getLogger("flwr")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """The state of a run after a round, once its model has been evaluated.

    The mappings belong to the run and change with it: copy what you keep.

    Attributes
    ----------
    report : RoundReport
        The round's report.
    num_rounds : int or None
        How many rounds the run will have; None under Flower's own ``start``.
    ended : bool
        Whether this was the last round. Always False under Flower's own ``start``.
    training : mapping
        `RoundReport.to_metrics` of all rounds so far, by round, including those before a checkpoint. Under Flower's own
        ``start``, only this round's.
    evaluation, node_evaluation : mapping
        The results of ``evaluate_fn`` and the medians of the nodes' evaluations, by round. Round 0 has the
        ``evaluate_fn`` result of the untrained model. The nodes' evaluations are not protected. Empty under Flower's
        own ``start``.
    ledger : mapping
        The `NodeRecord` of each node, by its identity. Empty for strategies without a ledger.
    settings : mapping
        The strategy's settings, by name. Empty for strategies without any.
    """

    report: RoundReport
    num_rounds: int | None
    ended: bool
    training: Mapping[int, MetricRecord]
    evaluation: Mapping[int, MetricRecord] = field(default_factory=dict)
    node_evaluation: Mapping[int, MetricRecord] = field(default_factory=dict)
    ledger: Mapping[str, NodeRecord] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


Monitor = Callable[[RunStatus], object]


class Monitors:
    """All monitors of a strategy.

    Parameters
    ----------
    monitors : callable, or iterable of callables
        Each is called with a `RunStatus` after every round; its result is ignored. If a monitor has a method
        ``broke_off``, it is called with the reason as a string when the run ends with an exception.

    Raises
    ------
    ConfigurationError
        If something else is given.
    """

    def __init__(self, monitors: Monitor | Iterable[Monitor]) -> None:
        self._monitors: tuple[Monitor, ...] = (monitors,) if callable(monitors) else tuple(monitors)
        self._failing: set[int] = set()  # numbers of the monitors whose failure has been logged
        for monitor in self._monitors:
            if not callable(monitor):
                raise ConfigurationError(
                    f"monitors must be a callable or several; got {monitor!r}; give monitors=LiveReport('run.html')."
                )

    def __bool__(self) -> bool:
        return bool(self._monitors)

    def tell(self, status: RunStatus) -> None:
        """Call all monitors. A failing one is logged once, until it works again, and affects nothing else."""
        for number, monitor in enumerate(self._monitors):
            try:
                monitor(status)
            except (Exception, SystemExit) as error:
                if number not in self._failing:
                    logger.warning(
                        "Monitor %s failed in round %d; the run goes on, and the monitor is tried again: %s",
                        *(_name(monitor), status.report.round, _in_words(error)),
                    )
                self._failing.add(number)
            else:
                self._failing.discard(number)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Call ``broke_off`` of the monitors that have it if the run in this context ends with an exception."""
        try:
            yield
        except BaseException as error:
            self._broke_off("interrupted" if isinstance(error, KeyboardInterrupt) else _in_words(error))
            raise

    def _broke_off(self, why: str) -> None:
        for monitor in self._monitors:
            if callable(told := getattr(monitor, "broke_off", None)):
                try:
                    told(why)
                except (Exception, SystemExit) as error:
                    logger.warning(
                        "Monitor %s failed after the run had ended early: %s", _name(monitor), _in_words(error)
                    )


def _name(monitor: Monitor) -> str:
    return str(getattr(monitor, "__name__", type(monitor).__name__))


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
