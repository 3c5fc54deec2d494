"""A page about a run that is updated while the run trains."""

import time
from dataclasses import replace
from pathlib import Path

from solon_fl.errors import ConfigurationError
from solon_fl.monitoring.history import History, kinds_of
from solon_fl.monitoring.view import live_view
from solon_fl.pages import page_html, templates_are_there, write_page
from solon_fl.strategies.monitors import RunStatus

__all__ = ["LiveReport"]

FIGURES = ("bytes-out", "bytes-in", "seconds-waiting", "seconds-aggregating", "seconds-stepping", "nodes-asked")
LOSS = "unprotected-training-loss"
LEAST_SECONDS = 1.0  # between two writes
MOST_OF_TIME = 0.02  # largest fraction of the server's time that writing may take


class LiveReport:
    """Keeps a page about a run current: ``monitors=LiveReport("run.html")``.

    Open the page in a browser; it reloads itself. It shows the metrics of `evaluate_fn` and of the nodes' evaluations,
    bytes and seconds, the nodes that lie, are silent, rest or are quarantined, and the ledger. The file loads no other
    resources, so it can be copied and mailed.

    Parameters
    ----------
    path : path
        Path of the page. Its folder is made if it is missing.
    title : str
        The page's heading.
    reload_seconds : float
        Seconds after which a browser loads the page again, until the run has ended.

    Raises
    ------
    ConfigurationError
        If jinja2 is not installed, or if reload_seconds is not positive.

    Notes
    -----
    Cost: the page is written after a round, but at most once a second, and only so often that writing takes at most a
    fiftieth of the time. It is always written after the last round and, with the reason, when an exception ends the
    run. It stays below a megabyte for any number of rounds and nodes: long runs are thinned out, and only the nodes
    with the most trouble are shown. Writes are atomic, so a reader never sees a partial page. If the page can't be
    written, the run continues (see `Monitors`).

    The report does not learn of the run's end under Flower's own ``start``, or if the process is killed. The page then
    lacks the rounds since it was last written, and keeps reloading.

    One report can watch several runs in turn. The page is about the latest run that has completed a round.
    """

    def __init__(self, path: str | Path, *, title: str = "Training run", reload_seconds: float = 5.0) -> None:
        if not templates_are_there():
            raise ConfigurationError("LiveReport needs jinja2, which is not installed; pip install 'solon-fl[report]'.")
        if not reload_seconds > 0:
            raise ConfigurationError(
                f"reload_seconds must be positive; got reload_seconds={reload_seconds!r}; the default is 5."
            )
        self._path = Path(path)
        self._title = title
        self._reload_seconds = reload_seconds
        self._begin()

    def _begin(self) -> None:
        """Reset for a new run."""
        self._history = History()
        self._finished_at: list[tuple[int, float]] = []  # the latest rounds, and the times when they finished
        self._bytes = 0.0
        self._next_write = 0.0
        self._latest: RunStatus | None = None

    def __call__(self, status: RunStatus) -> None:
        """Record a round, and write the page if it is due."""
        if status.report.round <= self._history.last:  # another run, or the same run again
            self._begin()
        now = time.monotonic()
        self._take_in(status)
        self._finished_at = [*self._finished_at[-20:], (status.report.round, now)]
        self._latest = status
        if status.ended:
            self._end(status)
        elif now >= self._next_write:
            self._write(status)

    def broke_off(self, why: str) -> None:
        """Write the page with the reason why the run ended, if the run has completed a round."""
        if self._latest is not None:
            self._end(replace(self._latest, ended=True), why)

    def _end(self, status: RunStatus, why: str = "") -> None:
        """Write the last page of a run, and reset for another one."""
        try:
            self._write(status, why)
        finally:
            self._begin()

    def _write(self, status: RunStatus, why: str = "") -> None:
        started = time.monotonic()
        view = live_view(status, self._history, self._title, self._bytes, self._seconds_a_round(), why)
        html = page_html(
            "live.html",
            title=view.title,
            view=view,
            reload_seconds=0 if status.ended else self._reload_seconds,
            written=time.time(),
        )
        self._next_write = time.monotonic() + max(LEAST_SECONDS, (time.monotonic() - started) / MOST_OF_TIME)
        write_page(self._path, html)

    def _take_in(self, status: RunStatus) -> None:
        """Enter all new rounds into the history; after a checkpoint, these include the rounds before it."""
        history, latest = self._history, status.report.round
        quarantined = {record.node_id for record in status.ledger.values() if record.state == "quarantined"}
        for number in range(history.last + 1, latest + 1):
            training = status.training.get(number)
            figures: dict[str, float] = {}
            kinds: dict[int, str] = {}
            if training is not None:
                for name in (*FIGURES, LOSS):
                    if isinstance(value := training.get(name), int | float):
                        figures[name] = value
                kinds = kinds_of(training)
                self._bytes += sum(figures.get(name, 0.0) for name in ("bytes-out", "bytes-in"))
            for prefix, records in (("evaluation", status.evaluation), ("node-evaluation", status.node_evaluation)):
                for name, value in (records.get(number) or {}).items():
                    if isinstance(value, int | float):
                        figures[f"{prefix}/{name}"] = value
            if number == latest:
                kinds |= {node_id: kinds.get(node_id, "quarantined") for node_id in quarantined}
            if figures or kinds:
                history.enter(number, figures, kinds)

    def _seconds_a_round(self) -> float | None:
        """Return the mean seconds of the latest rounds, or None before the second round."""
        (first, start), (last, end) = self._finished_at[0], self._finished_at[-1]
        return (end - start) / (last - first) if last > first else None
