"""Who watches a run: told after every round how it stands, and unable to disturb it."""

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
    """How a run stands after a round, when its model has been evaluated.

    The mappings are those of the run, and change with it: copy what you keep.

    Attributes
    ----------
    report : RoundReport
        What happened in the round.
    num_rounds : int or None
        How many there are to be; None under Flower's own `start`.
    ended : bool
        Whether this was the last one. Always False under Flower's own `start`.
    training : mapping
        `RoundReport.to_metrics` of all rounds so far, by round; those before a checkpoint, too. Under Flower's own
        `start` of this round only.
    evaluation, node_evaluation : mapping
        What `evaluate_fn` returned, and the medians of the nodes' evaluations, by round; evaluate_fn's of the untrained
        model is round 0's. Nothing protects the nodes'. Empty under Flower's own `start`.
    ledger : mapping
        What is known of each node, by its identity; empty for strategies that keep none.
    settings : mapping
        Of the strategy, by name; empty for strategies that have none.
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
        Each is called with a `RunStatus` after every round; what it returns means nothing. If it has a method
        `broke_off`, that is called with the reason, a text, when the run ends by an exception.

    Raises
    ------
    ConfigurationError
        If something else is given.
    """

    def __init__(self, monitors: Monitor | Iterable[Monitor]) -> None:
        self._monitors: tuple[Monitor, ...] = (monitors,) if callable(monitors) else tuple(monitors)
        self._failing: set[int] = set()  # of which it has been logged
        for monitor in self._monitors:
            if not callable(monitor):
                raise ConfigurationError(
                    f"monitors must be callables, or one; got {monitor!r}; give monitors=LiveReport('run.html')."
                )

    def __bool__(self) -> bool:
        return bool(self._monitors)

    def tell(self, status: RunStatus) -> None:
        """Call all of them. One that raises is logged, once until it works again, and disturbs nothing else."""
        for number, monitor in enumerate(self._monitors):
            try:
                monitor(status)
            except (Exception, SystemExit) as error:
                if number not in self._failing:
                    logger.warning(
                        "Monitor %s failed in round %d; the run goes on without it, and it is tried again: %s",
                        *(_name(monitor), status.report.round, _in_words(error)),
                    )
                self._failing.add(number)
            else:
                self._failing.discard(number)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Tell those that want to know, if the run in this context ends by an exception."""
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
                        "Monitor %s failed when the run had broken off: %s", _name(monitor), _in_words(error)
                    )


def _name(monitor: Monitor) -> str:
    return str(getattr(monitor, "__name__", type(monitor).__name__))


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
