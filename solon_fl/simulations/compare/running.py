"""Makes the runs of a comparison, one by one or several at a time. Finished runs are kept in files and not repeated."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from queue import Empty
from signal import SIG_IGN, SIGINT, signal
from typing import Any

import torch

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.compare.comparison import NO_ATTACK, Comparison
from solon_fl.simulations.compare.results import Cell, Results
from solon_fl.simulations.run import Outcome, RoundRecord, Scenario, jsonable, measure_batch_seconds, simulate
from solon_fl.simulations.sources import digest_of
from solon_fl.simulations.threads import limited_threads

__all__ = ["run_comparison"]

OnRound = Callable[[RoundRecord], None]
OnCell = Callable[[Cell | Scenario], OnRound | None]
PAUSE = 0.1  # seconds between two checks whether a run has ended
logger = logging.getLogger(__name__)


def run_comparison(
    comparison: Comparison,
    folder: Path,
    on_cell: OnCell = lambda cell: None,
    *,
    processes: int = 1,
) -> Iterable[Results]:
    """Make all runs that are not finished yet. After each of them, yield the results so far.

    Parameters
    ----------
    comparison : Comparison
        The comparison to run.
    folder : Path
        Folder in which outcomes are kept, one file for each run. The file's name has a hash of the scenario, and of
        the user's own code and folders of data (see `digest_of`). So several comparisons can share a folder without
        overwriting each other's runs.
    on_cell : callable, optional
        Called with the scenario when a run begins. It may return a function to be called after every round. For a
        cell that needs no run, it is called with the `Cell`.
    processes : int
        Number of runs at a time. With more than one, each has its own process, with as many threads as torch has here.
        Use no more than there are cores: otherwise the server's seconds are those of a busy machine. A script must
        then start its work under ``if __name__ == "__main__"``.
    """
    batch_seconds = _batch_seconds(comparison, folder)
    cells: dict[tuple[str, str | None], Cell | None] = {}
    missing: list[tuple[Scenario, Path]] = []

    def results() -> Results:
        finished = tuple(cell for cell in cells.values() if cell is not None)
        return Results(comparison=comparison, cells=finished, batch_seconds=batch_seconds)

    for attack in comparison.attacks:
        for strategy in comparison.strategies:
            cells[strategy, attack] = cell = _known(comparison, strategy, attack, folder, missing)
            if cell is not None:
                on_cell(cell)
    if len(missing) < len(cells):
        yield results()
    made = _one_by_one(missing, on_cell) if processes == 1 else _at_once(missing, on_cell, processes)
    for scenario, path in made:
        outcome = Outcome.load(path)  # without the model
        cells[scenario.strategy, scenario.attack] = Cell(scenario.strategy, scenario.attack, outcome)
        yield results()


def _known(
    comparison: Comparison, strategy: str, attack: str | None, folder: Path, missing: list[tuple[Scenario, Path]]
) -> Cell | None:
    """Return a cell that is finished or impossible. Otherwise add its scenario and file to the missing ones."""
    try:
        scenario = comparison.cell(strategy, attack)
    except ConfigurationError as error:
        return Cell(strategy, attack, refusal=str(error))
    name = f"{strategy}-{attack or NO_ATTACK}".replace(":", ".")  # not every file system allows colons
    path = folder / f"{name}-{_digest(scenario)}.jsonl"
    outcome = _finished(path)
    if outcome is None:
        missing.append((scenario, path))
        return None
    return Cell(strategy, attack, outcome)


def _one_by_one(missing: Iterable[tuple[Scenario, Path]], on_cell: OnCell) -> Iterator[tuple[Scenario, Path]]:
    for scenario, path in missing:
        simulate(scenario, on_cell(scenario)).save(path)
        yield scenario, path


def _at_once(
    missing: Iterable[tuple[Scenario, Path]], on_cell: OnCell, processes: int
) -> Iterator[tuple[Scenario, Path]]:
    """Make the runs in other processes, which report every round and the end of the run; yield each finished run."""
    context = get_context("spawn")
    news, stop = context.Queue(), context.Event()
    runs = dict(enumerate(missing))
    on_rounds: dict[int, OnRound | None] = {}
    pool = ProcessPoolExecutor(processes, context, _begin, (news, stop, torch.get_num_threads()))
    try:
        futures = {number: pool.submit(_make, number, *run) for number, run in runs.items()}
        while futures:
            try:
                number, record = news.get(timeout=PAUSE)
            except Empty:
                for future in futures.values():
                    if future.done():  # it raised, or its process died, or its last report is still on the way
                        future.result()
                continue
            if number not in on_rounds:
                on_rounds[number] = on_cell(runs[number][0])
            if record is None:
                futures.pop(number).result()
                yield runs[number]
            elif (on_round := on_rounds[number]) is not None:
                on_round(record)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_shared: list[Any] = []  # in a process of `_at_once`: the queue for reports, the event that stops it, and its threads


def _begin(news: Any, stop: Any, threads: int) -> None:
    signal(SIGINT, SIG_IGN)  # Ctrl-C reaches all processes; the main one stops the others
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    _shared[:] = news, stop, threads


def _make(number: int, scenario: Scenario, path: Path) -> None:
    news, stop, threads = _shared

    def on_round(record: RoundRecord) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        news.put((number, record))

    with limited_threads(threads):
        simulate(scenario, on_round).save(path)
    news.put((number, None))


def _finished(path: Path) -> Outcome | None:
    """Return a finished run; None if there is none. A damaged file is renamed, so that the run is repeated."""
    if not path.exists():
        return None
    try:
        return Outcome.load(path)
    except ConfigurationError:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        logger.warning(
            "%s does not hold a finished run. It was renamed to %s, and the run is repeated.", path, aside.name
        )
        return None


def _digest(scenario: Scenario) -> str:
    """Return a hash, 8 characters, of the scenario and of the user's own code and folders that it names."""
    names = [scenario.strategy, scenario.attack, scenario.dataset, scenario.model]
    files = {name: digest for name in names if name and (digest := digest_of(name))}
    text = json.dumps(jsonable(asdict(scenario)), sort_keys=True) + (json.dumps(files) if files else "")
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _batch_seconds(comparison: Comparison, folder: Path) -> float:
    """Return the seconds per batch. They are measured once per folder, so that a resumed comparison uses one value."""
    if comparison.batch_seconds is not None:
        return comparison.batch_seconds
    path = folder / f"batch-seconds-{_digest(comparison.scenario)}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measure_batch_seconds(comparison.scenario)))
    try:
        return float(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} must hold the seconds of a batch; got {error}; delete the file to measure them again."
        ) from error
