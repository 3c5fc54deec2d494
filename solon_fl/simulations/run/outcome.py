"""The outcome of a run: an object that is saved as JSON lines, and loaded from them."""

import json
import math
import platform
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean, median, quantiles

import torch
from flwr.app import ArrayRecord

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.run.own_strategies import strategy_named
from solon_fl.simulations.run.plain import jsonable, rebuilt
from solon_fl.simulations.run.round_record import NumberedReport, RoundRecord
from solon_fl.simulations.run.scenario import Scenario
from solon_fl.strategies import NodeRecord

__all__ = ["Outcome", "Software", "few_rounds_sentence"]

FEW_ROUNDS = 5  # fewer are not enough to judge an accuracy by
LEAST_QUARTILES = 4  # rounds; fewer have no meaningful quartiles
LEAST_CPU = 0.8  # of one CPU; a run that gets less was delayed by other programs
PACKAGES = ("solon-fl", "flwr", "torch", "numpy")  # their versions are recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """The software with which a run was made.

    Attributes
    ----------
    versions : dict
        Versions of solon-fl and the packages that it computes with, by package.
    python : str
        Python's version.
    threads : int
        Number of torch's threads.
    """

    versions: dict[str, str]
    python: str
    threads: int

    @classmethod
    def here(cls) -> "Software":
        """Return the software of this process."""
        return cls(
            versions={name: _version(name) for name in PACKAGES},
            python=platform.python_version(),
            threads=torch.get_num_threads(),
        )


@dataclass(kw_only=True)
class Outcome:
    """The outcome of a run.

    Attributes
    ----------
    scenario : Scenario
        The scenario that was run.
    batches_per_node : int
        Batches that the busiest node computes in a round.
    liars : frozenset of int
        Numbers of the nodes that lie.
    software : Software
        The software with which the run was made.
    records : list of RoundRecord
        One for each round, that of the untrained model first.
    error : str or None
        Why the run broke off; None if it did not.
    ledger : tuple of NodeRecord
        The ledger of strategy "solon": one record for each node.
    model_sha256 : str
        SHA-256 of the final model, in hexadecimal digits; see the function `model_sha256`. "" if there is no model.
    arrays : ArrayRecord
        The final model. It is not saved, and is ignored when two outcomes are compared.
    """

    scenario: Scenario
    batches_per_node: int
    liars: frozenset[int]
    software: Software
    records: list[RoundRecord] = field(default_factory=list)
    error: str | None = None
    ledger: tuple[NodeRecord, ...] = ()
    model_sha256: str = ""
    arrays: ArrayRecord = field(default_factory=ArrayRecord, compare=False)

    @classmethod
    def of(cls, scenario: Scenario) -> "Outcome":
        """Return the outcome of a run that has not begun."""
        return cls(
            scenario=scenario,
            batches_per_node=strategy_named(scenario.strategy).batches_per_node(scenario),
            liars=scenario.liars,
            software=Software.here(),
        )

    @property
    def accuracy(self) -> float:
        """Accuracy of the final model on the test set, 0..1; NaN if there is no record."""
        return self.records[-1].accuracy if self.records else math.nan

    @property
    def accuracies(self) -> list[float]:
        """Accuracy after every round, the untrained model's first."""
        return [record.accuracy for record in self.records]

    @property
    def offences(self) -> dict[int, Counter[str]]:
        """How often each node was reported as "lying", "different", ..., by its number."""
        counts: dict[int, Counter[str]] = {}
        for record in self.records:
            for number, kind in record.named():
                counts.setdefault(number, Counter())[kind] += 1
        return dict(sorted(counts.items()))

    @property
    def named(self) -> frozenset[int]:
        """Numbers of the nodes whose reply the server called wrong in any round: a lie, other bits, or malformed.

        Nodes that did not reply are in `silent`. Suspects are not named.
        """
        return frozenset(number for number, kinds in self.offences.items() if kinds.keys() - {"silent", "suspected"})

    @property
    def silent(self) -> frozenset[int]:
        """Numbers of the nodes that were silent or late in any round."""
        return frozenset(number for number, kinds in self.offences.items() if "silent" in kinds)

    @property
    def has_referee(self) -> bool:
        """Whether there was a referee to ask."""
        return strategy_named(self.scenario.strategy).client == "solon" and self.scenario.config.referee

    @property
    def convicted(self) -> frozenset[int]:
        """Numbers of the nodes that the referee convicted in any round."""
        return frozenset(number for report in self.reports for number in report.convicted_nodes)

    @property
    def referee_computations(self) -> int:
        """How often the referee computed the batches of a group in the whole run."""
        return sum(report.referee_computations for report in self.reports)

    @property
    def reports(self) -> list[NumberedReport]:
        """The strategy's report of every round."""
        return [record.report for record in self.records if record.report is not None]

    @property
    def unstepped(self) -> int:
        """Rounds in which the optimizer made no step."""
        return sum(not report.stepped for report in self.reports)

    @property
    def bytes_sent(self) -> float:
        """Bytes that all nodes together sent in a round (median over the rounds)."""
        return float(median([report.bytes_in for report in self.reports] or [0]))

    @property
    def bytes_out(self) -> float:
        """Bytes sent to all nodes together in a round (median over the rounds)."""
        return float(median([report.bytes_out for report in self.reports] or [0]))

    @property
    def server_seconds(self) -> float:
        """See `NumberedReport.server_seconds` (median over the rounds)."""
        return median([report.server_seconds for report in self.reports] or [0.0])

    @property
    def cpu_share(self) -> float | None:
        """CPU seconds that the run got per second (median over the rounds); None if unknown."""
        shares = [record.cpu_share for record in self.records[1:] if record.cpu_share is not None]
        return median(shares) if shares else None

    @property
    def timing_doubts(self) -> tuple[str, ...]:
        """Why the server's seconds may be wrong because the machine was busy; empty if there are no signs of it.

        A run computes without pauses, so it was delayed if it got less than 0.8 of a CPU. This is the only sign in a
        run that was slow from start to end. In a run in which some rounds were slow, the quartiles of the server's
        seconds are more than half of the median apart.
        """
        doubts = []
        seconds = [report.server_seconds for report in self.reports]
        if len(seconds) >= LEAST_QUARTILES:
            first, middle, third = quantiles(seconds, method="inclusive")
            if third - first > middle / 2:
                doubts.append("the rounds' timings scatter")
        if self.cpu_share is not None and self.cpu_share < LEAST_CPU:
            doubts.append(f"the run had {self.cpu_share:.0%} of a CPU")
        return tuple(doubts)

    @property
    def timings_scatter(self) -> bool:
        """Whether there are `timing_doubts`."""
        return bool(self.timing_doubts)

    @property
    def nodes_asked(self) -> float:
        """Number of nodes that computed in a round (mean over the rounds)."""
        return fmean([report.nodes_asked for report in self.reports] or [0])

    @property
    def batches_of_all(self) -> float:
        """Batches that all nodes and the referee together computed in a round (mean over the rounds)."""
        referee = self.referee_computations / max(len(self.reports), 1)
        return self.batches_per_node * (self.nodes_asked + referee)

    def save(self, path: Path) -> None:
        """Write the outcome as JSON lines: the scenario and software, one line for each round, and a summary.

        The folder is created if it does not exist. Nodes are given by their numbers, and numbers that are not finite
        become null. The file gets its name only when it is complete.
        """
        head = {
            "scenario": asdict(self.scenario),
            "batches_per_node": self.batches_per_node,
            "liars": sorted(self.liars),
            **asdict(self.software),
        }
        regrouped = self.scenario.config.regroup == "round"
        rounds = [{**asdict(record), "regrouped": regrouped} for record in self.records]
        summary = {
            "final_accuracy": self.accuracy,
            "bytes_out_median": self.bytes_out,
            "bytes_in_median": self.bytes_sent,
            "server_seconds_median": self.server_seconds,
            "timings_scatter": self.timings_scatter,
            "timing_doubts": self.timing_doubts,
            "referee_computations": self.referee_computations,
            "convicted": sorted(self.convicted),
            "model_sha256": self.model_sha256,
            "error": self.error,
            "offences": {number: dict(kinds) for number, kinds in self.offences.items()},
            "ledger": [asdict(record) for record in self.ledger],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        lines = [json.dumps(jsonable(line), allow_nan=False) + "\n" for line in (head, *rounds, summary)]
        unfinished.write_text("".join(lines))
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Outcome":
        """Return an outcome that `save` wrote, without the final model.

        Raises
        ------
        ConfigurationError
            If the file can't be read, or holds something else.
        """
        try:
            head, *rounds, summary = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            for line in rounds:
                line.pop("regrouped", None)
            return cls(
                scenario=rebuilt(Scenario, head.pop("scenario")),
                batches_per_node=rebuilt(int, head.pop("batches_per_node")),
                liars=frozenset(rebuilt(tuple[int, ...], head.pop("liars"))),
                software=rebuilt(Software, head),
                records=rebuilt(list[RoundRecord], rounds),
                error=rebuilt(str | None, summary["error"]),
                model_sha256=rebuilt(str, summary["model_sha256"]),
                ledger=rebuilt(tuple[NodeRecord, ...], summary["ledger"]),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"{path} must hold a finished run, as written by Outcome.save; got {type(error).__name__}: {error}; "
                "repeat the run."
            ) from error


def few_rounds_sentence(rounds: int) -> str:
    """Return a warning about results of so few rounds; "" if there are enough."""
    return f"Too few rounds ({rounds}) to show how well the network learns." if rounds < FEW_ROUNDS else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout on the path that is not installed
        return "unknown"
