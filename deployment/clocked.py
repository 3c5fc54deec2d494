"""Measured times of rounds on a deployment, and the predictions of the simulations' network model."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

from solon_fl.launch.errors import FederationError
from solon_fl.simulations.compare import Cell
from solon_fl.simulations.network import Network
from solon_fl.simulations.run import Outcome, RoundRecord, rebuilt, strategy_named

__all__ = ["Clocked", "measured_network", "read_record", "rounds_to", "table"]

RECORD = "record "  # prefix of a line with the record of a round
HEAD = (
    *("link", "strategy", "model goes down", "liars", "MB a round", "s a round", "links alone", "off"),
    *("with Flower", "off", "rounds", "s to the accuracy", "with Flower"),
)
LEFT = 4  # left-aligned columns


def read_record(line: str) -> RoundRecord | None:
    """Return the record in a line of the app's output, or None for any other line."""
    if not line.startswith(RECORD):
        return None
    record: RoundRecord = rebuilt(RoundRecord, json.loads(line.removeprefix(RECORD)))
    return record


def rounds_to(outcome: Outcome, accuracy: float) -> int | None:
    """Return the number of rounds after which a simulation reaches the accuracy, or None if it never does."""
    return _cell(outcome).rounds_to(accuracy)


@dataclass(frozen=True, kw_only=True)
class Clocked:
    """Some rounds of a scenario on a deployment, and all of its rounds in a simulation.

    Attributes
    ----------
    network : Network
        The deployment's links, without overheads.
    simulated : Outcome
        The simulation of the same scenario, at least until the accuracy is reached. If it never is, all rounds.
    records : sequence of RoundRecord
        Records of the deployment, at least three; their `seconds` are measured by the server.
    batch_seconds : float
        Seconds of one batch on one node while all nodes compute.
    """

    network: Network
    simulated: Outcome
    records: Sequence[RoundRecord]
    batch_seconds: float

    def __post_init__(self) -> None:
        if len(self.records) < 3:
            raise FederationError(f"at least 2 rounds must be measured; got {max(0, len(self.records) - 1)}.")

    @property
    def seconds(self) -> list[float]:
        """Measured seconds of each round."""
        ends = [record.seconds for record in self.records]
        return [end - start for start, end in pairwise(ends)]

    @property
    def round_seconds(self) -> float:
        """Measured mean seconds of all rounds except the first, in which every node gets the whole model."""
        return fmean(self.seconds[1:])

    @property
    def sent(self) -> float:
        """Mean bytes of a round in both directions, without the first round."""
        reports = [record.report for record in self.records[2:] if record.report is not None]
        return fmean(report.bytes_out + report.bytes_in for report in reports)

    def rounds_to(self, accuracy: float) -> int | None:
        """See `rounds_to`."""
        return rounds_to(self.simulated, accuracy)

    def seconds_to(self, accuracy: float) -> float | None:
        """Return the seconds to that accuracy; rounds that were not measured count as mean rounds."""
        rounds = self.rounds_to(accuracy)
        if not rounds:
            return rounds
        seconds = self.seconds[:rounds]
        return sum(seconds) + (rounds - len(seconds)) * self.round_seconds

    def ran_to(self, accuracy: float) -> bool:
        """Return whether all rounds to that accuracy were measured."""
        rounds = self.rounds_to(accuracy)
        return rounds is not None and len(self.seconds) >= rounds

    def modelled_round(self, network: Network) -> float:
        """Return the model's prediction of `round_seconds`."""
        times = _cell(self.simulated).round_times(network, self.batch_seconds)
        return fmean(seconds.total for seconds in times[1 : len(self.seconds)])

    def modelled_to(self, accuracy: float, network: Network) -> float | None:
        """Return the model's prediction of the seconds to that accuracy."""
        return _cell(self.simulated).seconds_to(accuracy, network, self.batch_seconds)


def measured_network(small: Clocked, large: Clocked) -> Network:
    """Return the network with overheads fitted to two runs that send different numbers of bytes.

    With these overheads, the model predicts the measured times of both runs. A negative overhead is replaced by 0.
    """
    missing = [run.round_seconds - run.modelled_round(run.network) for run in (small, large)]
    if large.sent <= small.sent:
        raise FederationError(f"the large model must send more; got {large.sent:.0f} and {small.sent:.0f} bytes.")
    each = max(0.0, (missing[1] - missing[0]) / (large.sent - small.sent))
    return replace(small.network, round_overhead=max(0.0, missing[0] - each * small.sent), byte_overhead=each)


def table(runs: Iterable[tuple[Clocked, Network]], accuracy: float) -> str:
    """Return a Markdown table of runs, each with its measured network.

    A time to the accuracy has a star if all of its rounds were measured.
    """
    lines = [HEAD, ["---"] * LEFT + ["---:"] * (len(HEAD) - LEFT)]
    lines += [_row(run, network, accuracy) for run, network in runs]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(outcome: Outcome) -> Cell:
    return Cell(outcome.scenario.strategy, outcome.scenario.attack, outcome)


def _row(run: Clocked, measured: Network, accuracy: float) -> list[str]:
    scenario = run.simulated.scenario
    clock, alone, whole = run.round_seconds, run.modelled_round(run.network), run.modelled_round(measured)
    rounds, seconds, modelled = (
        run.rounds_to(accuracy),
        run.seconds_to(accuracy),
        run.modelled_to(accuracy, measured),
    )
    return [
        f"{run.network.node_upload / 1e6:g} Mbit/s",
        strategy_named(scenario.strategy).title,
        "whole" if scenario.config.downlink == "full" else "in patches",
        str(len(scenario.liars)),
        f"{run.sent / 1e6:.1f}",
        f"{clock:.1f}",
        *(f"{alone:.1f}", f"{alone / clock - 1:+.0%}"),
        *(f"{whole:.1f}", f"{whole / clock - 1:+.0%}"),
        "never" if rounds is None else str(rounds),
        "-" if seconds is None else f"{seconds:.0f}{' *' if run.ran_to(accuracy) else ''}",
        "-" if modelled is None else f"{modelled:.0f}",
    ]
