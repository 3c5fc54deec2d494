"""The runs of a comparison: made one by one, kept in files, and never made twice."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.compare.comparison import NO_ATTACK, Comparison
from solon_fl.simulations.network import Network, RoundSeconds, round_seconds
from solon_fl.simulations.run.engine import measure_batch_seconds, simulate
from solon_fl.simulations.run.outcome import RoundRecord
from solon_fl.simulations.run.output import jsonable, write_jsonl
from solon_fl.simulations.run.scenario import Scenario

__all__ = ["Cell", "Results", "Verdict", "run_comparison"]

Verdict = Literal["survived", "harmed", "broken"]
HARMED_BELOW = 0.02  # accuracy lost, of 1
BROKEN_BELOW = 0.5  # part of what training gains that is lost
REFERENCE = "fedavg"  # whose attack-free run tells what there is to lose
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One run of a comparison, as its file has it.

    Attributes
    ----------
    strategy : str
        A key of `STRATEGIES`.
    attack : str or None
        A key of `ATTACKS`, or None.
    lines : tuple of dict
        What `write_jsonl` wrote: head, rounds, summary; empty if the run could not be.
    refusal : str or None
        Why it could not be.
    """

    strategy: str
    attack: str | None
    lines: tuple[dict[str, Any], ...] = ()
    refusal: str | None = None

    @property
    def rounds(self) -> tuple[dict[str, Any], ...]:
        """One record a round, the untrained model first."""
        return self.lines[1:-1]

    @property
    def error(self) -> str | None:
        """Why the run broke off, if it did."""
        error: str | None = self.lines[-1]["error"] if self.lines else None
        return error

    @cached_property
    def accuracies(self) -> list[float]:
        """After every round, 0..1, the untrained model's first."""
        return [record["accuracy"] for record in self.rounds]

    @property
    def liars(self) -> set[int]:
        """Numbers of the nodes that lie."""
        return set(self.lines[0]["liars"]) if self.lines else set()

    @property
    def named(self) -> set[int]:
        """Numbers of the nodes that the server named in any round, for whatever."""
        return {int(number) for number in self.lines[-1]["offences"]} if self.lines else set()

    @property
    def bytes_sent(self) -> float:
        """Bytes of a round that the nodes sent, all of them together (median over the rounds)."""
        return float(median([report["bytes_in"] for report in self._reports] or [0]))

    @property
    def server_seconds(self) -> float:
        """Measured seconds of a round that the server took to decode or aggregate, and step (median)."""
        return median([_server_seconds(report) for report in self._reports] or [0.0])

    @property
    def batches_per_node(self) -> int:
        """Batches that the busiest node computes in a round."""
        return int(self.lines[0]["batches_per_node"]) if self.lines else 0

    @property
    def batches_of_all(self) -> float:
        """Batches of a round that all nodes together computed (mean over the rounds)."""
        asked = [_nodes_asked(report) for report in self._reports]
        return self.batches_per_node * fmean(asked or [0])

    @property
    def _reports(self) -> list[dict[str, Any]]:
        return [record["report"] for record in self.rounds if record["report"] is not None]

    def round_times(self, network: Network, batch_seconds: float) -> list[RoundSeconds]:
        """Return how long each round takes on a network."""
        return [
            round_seconds(
                network,
                num_nodes=max(1, _nodes_asked(record["report"])),
                batches_per_node=self.batches_per_node * (1 + _escalated(record["report"])),
                batch_seconds=batch_seconds,
                bytes_out=record["report"]["bytes_out"],
                bytes_in=record["report"]["bytes_in"],
                server_seconds=_server_seconds(record["report"]),
                waited=record["waited"],
            )
            for record in self.rounds[1:]
        ]

    def clock(self, network: Network, batch_seconds: float) -> list[float]:
        """Return the seconds since the start after every round, 0.0 for the untrained model."""
        times = [0.0]
        for seconds in self.round_times(network, batch_seconds):
            times.append(times[-1] + seconds.total)
        return times

    def rounds_to(self, accuracy: float) -> int | None:
        """Return the first round after which the accuracy is that or more; None if there is none."""
        return next((number for number, reached in enumerate(self.accuracies) if reached >= accuracy), None)

    def seconds_to(self, accuracy: float, network: Network, batch_seconds: float) -> float | None:
        """Return the seconds until the accuracy is reached; None if it never is."""
        number = self.rounds_to(accuracy)
        return None if number is None else self.clock(network, batch_seconds)[number]


@dataclass(frozen=True, kw_only=True)
class Results:
    """A comparison and the cells that are finished.

    Attributes
    ----------
    comparison : Comparison
        What was to be run.
    cells : tuple of Cell
        By strategy and attack, in the comparison's order; those that are not finished are missing.
    batch_seconds : float
        Given, or measured.
    """

    comparison: Comparison
    cells: tuple[Cell, ...]
    batch_seconds: float

    def cell(self, strategy: str, attack: str | None) -> Cell | None:
        """Return a cell, if it is finished."""
        return next((c for c in self.cells if (c.strategy, c.attack) == (strategy, attack)), None)

    @cached_property
    def reference(self) -> Cell | None:
        """The attack-free run that others are held against: FedAvg's, else the first strategy's that has one."""
        candidates = [REFERENCE, *self.comparison.strategies]
        found = (self.cell(strategy, None) for strategy in candidates)
        return next((cell for cell in found if cell is not None and cell.accuracies), None)

    @property
    def target_accuracy(self) -> float | None:
        """The accuracy at which times are compared; None if it is not given and there is no reference."""
        if self.comparison.target_accuracy is not None:
            return self.comparison.target_accuracy
        return None if self.reference is None else 0.95 * self.reference.accuracies[-1]

    def verdict(self, cell: Cell) -> Verdict | None:
        """Return what an attack did: "survived", "harmed" or "broken"; None if there was none, or nothing to judge by.

        Judged by the attack-free run of the same strategy, or by the reference if there is no such run. Harmed: the
        final accuracy is more than 2 points below its. Broken: more than half of what training gains is lost, and more
        than 2 points, or the run broke off.
        """
        if not cell.lines:
            return None
        if cell.error is not None or not cell.accuracies:
            return "broken"
        own = self.cell(cell.strategy, None)
        unharmed = own if own is not None and own.accuracies else self.reference
        if unharmed is None or cell.attack is None:
            return None
        start, end = unharmed.accuracies[0], unharmed.accuracies[-1]
        if end <= start:
            return None  # nothing was learnt that could be lost
        lost = round(end - cell.accuracies[-1], 9)  # two points are 0.02, not 0.02 and some float noise
        if lost <= HARMED_BELOW:
            return "survived"
        return "broken" if lost > round(BROKEN_BELOW * (end - start), 9) else "harmed"


def run_comparison(
    comparison: Comparison,
    folder: Path,
    on_cell: Callable[[Cell | Scenario], Callable[[RoundRecord], None] | None] = lambda cell: None,
) -> Iterable[Results]:
    """Run all cells that are not finished yet, and yield the results so far after each.

    Parameters
    ----------
    comparison : Comparison
        What to run.
    folder : Path
        Where the cells are kept, one JSON-lines file each. Its name holds a hash of the scenario, so that a folder may
        serve several comparisons, and nothing that was run is lost.
    on_cell : callable, optional
        Called with the scenario before a cell is run, and returns what to call after every round; called with the
        Cell if it need not be run.
    """
    batch_seconds = _batch_seconds(comparison, folder)
    cells: list[Cell] = []
    for attack in comparison.attacks:
        for strategy in comparison.strategies:
            cells.append(_cell(comparison, strategy, attack, folder, on_cell))
            yield Results(comparison=comparison, cells=tuple(cells), batch_seconds=batch_seconds)


def _cell(comparison: Comparison, strategy: str, attack: str | None, folder: Path, on_cell: Callable[..., Any]) -> Cell:
    try:
        scenario = comparison.cell(strategy, attack)
    except ConfigurationError as error:
        refused = Cell(strategy, attack, refusal=str(error))
        on_cell(refused)
        return refused
    path = folder / f"{strategy}-{attack or NO_ATTACK}-{_digest(scenario)}.jsonl"
    if (lines := _read(path)) is not None:
        cell = Cell(strategy, attack, lines)
        on_cell(cell)
        return cell
    write_jsonl(simulate(scenario, on_cell(scenario)), path)
    return Cell(strategy, attack, _read(path) or ())


def _read(path: Path) -> tuple[dict[str, Any], ...] | None:
    """Return a finished run; None if there is none. A damaged file is put aside, so that the run is made again."""
    if not path.exists():
        return None
    try:
        lines = tuple(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        whole = all(isinstance(line, dict) for line in lines) and "scenario" in lines[0] and "error" in lines[-1]
    except (OSError, ValueError, IndexError):
        whole = False
    if whole:
        return lines
    aside = path.with_suffix(".damaged")
    path.replace(aside)
    logger.warning("%s is no finished run: it is now %s, and is run again.", path, aside.name)
    return None


def _digest(scenario: Scenario) -> str:
    """Return 8 characters that differ where the scenario does."""
    text = json.dumps(jsonable(asdict(scenario)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _batch_seconds(comparison: Comparison, folder: Path) -> float:
    """Return the seconds per batch: given, or measured once per folder, so that a resumed comparison has one clock."""
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
            f"{path} should hold the seconds of a batch; got {error}; delete it to measure them again."
        ) from error


def _server_seconds(report: dict[str, Any]) -> float:
    return float(report["seconds_aggregating"]) + float(report["seconds_stepping"])


def _nodes_asked(report: dict[str, Any]) -> int:
    """Return how many nodes had a task in a round."""
    return sum(group["nodes_asked"] for group in report["groups"])


def _escalated(report: dict[str, Any]) -> bool:
    """Whether some group's nodes computed one after the other."""
    return any(group["escalated"] for group in report["groups"])
