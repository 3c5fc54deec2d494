"""A page about a run that is kept current while it trains."""

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
MOST_OF_TIME = 0.02  # of the server's that writing may take


class LiveReport:
    """Keeps a page about a run: ``monitors=LiveReport("run.html")``. Open it in a browser; it reloads itself.

    It shows what `evaluate_fn` and the nodes' evaluations say of the model, bytes and seconds, who lies, is silent,
    rests or is quarantined, and the ledger. The file loads nothing from anywhere, and can be copied and mailed.

    Parameters
    ----------
    path : path
        Of the page. Its folder is made if it is not there.
    title : str
        The page's heading.
    reload_seconds : float
        After how many seconds a browser looks for a newer page, until the run has ended or broken off.

    Raises
    ------
    ConfigurationError
        If jinja2 is not installed, or reload_seconds is not positive.

    Notes
    -----
    Cost: the page is written after a round, but not more than once a second, nor so often that it takes more than a
    fiftieth of the time; after the last round always, and when an exception ends the run, with the reason. It stays
    below a megabyte, however many rounds and nodes there are: long runs are thinned out, and of many nodes those with
    most trouble are shown. A reader sees the old page or the new one, never a part. If it can't be written, the run
    goes on (see `Monitors`).

    Nobody tells it of the end under Flower's own `start`, or when the process is killed. The page then lacks the rounds
    since it was last written, and goes on reloading.

    One can watch several runs, one after the other; the page is about the latest that has done a round.
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
        """Know nothing of a run."""
        self._history = History()
        self._finished_at: list[tuple[int, float]] = []  # the latest rounds, and when they were done
        self._bytes = 0.0
        self._next_write = 0.0
        self._latest: RunStatus | None = None

    def __call__(self, status: RunStatus) -> None:
        """Take in a round, and write the page if it is time."""
        if status.report.round <= self._history.last:  # another run, or the same again
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
        """Write on the page why the run has ended, if it has done a round."""
        if self._latest is not None:
            self._end(replace(self._latest, ended=True), why)

    def _end(self, status: RunStatus, why: str = "") -> None:
        """Write the last page of a run, and be ready for another."""
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
        """Enter all rounds that are new: after a checkpoint those before it, too."""
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
        """Return the seconds of a round, the mean over the latest; None before the second."""
        (first, start), (last, end) = self._finished_at[0], self._finished_at[-1]
        return (end - start) / (last - first) if last > first else None
