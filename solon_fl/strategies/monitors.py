"""Who watches a run: told after every round how it stands, and unable to disturb it."""

import logging
from collections.abc import Callable, Iterable, Mapping
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
        Each is called with a `RunStatus` after every round; what it returns means nothing.

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
            except Exception as error:
                if number not in self._failing:
                    logger.warning(
                        "Monitor %s failed in round %d; the run goes on without it, and it is tried again: %s: %s",
                        *(getattr(monitor, "__name__", type(monitor).__name__), status.report.round),
                        *(type(error).__name__, error),
                    )
                self._failing.add(number)
            else:
                self._failing.discard(number)
