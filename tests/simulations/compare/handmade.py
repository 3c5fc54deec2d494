"""Results of comparisons written by hand, for tests of tables, plots and reports."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from solon_fl.config import SolonConfig
from solon_fl.simulations import Outcome, RoundRecord, Scenario
from solon_fl.simulations.compare import Cell, Comparison, Results
from solon_fl.simulations.network import Network
from solon_fl.simulations.run import NumberedGroup, NumberedReferee, NumberedReport
from solon_fl.simulations.run.outcome import Software

SLOW = Network(
    name="slow",
    server_download=8e6,
    server_upload=8e6,
    node_download=8e5,
    node_upload=8e5,
    latency=0.5,
    deadline=30.0,
)
SCENARIO = Scenario(config=SolonConfig(num_nodes=10, byzantine=1, compression=3))


def cell(
    strategy: str,
    attack: str | None,
    accuracies: Sequence[float],
    *,
    error: str | None = None,
    liars: Sequence[int] = (),
    named: Sequence[int] = (),
    silent: Sequence[int] = (),
    waited: Sequence[int] = (),
    escalated: Sequence[int] = (),
    refereed: Sequence[int] | None = None,
    bytes_in: int = 1_000_000,
    aggregating: Sequence[float] = (),
) -> Cell:
    """Return a run of 10 nodes. In a round each computes 3 batches, the server sends 2 MB and takes 0.25 s.

    With `refereed` there is a referee. It is asked about the second group in these rounds, and takes 0.15 s of the
    server's. With `aggregating` the server takes so many seconds and 0.05 more, by round.
    """

    def report(number: int) -> NumberedReport:
        caught, mute = (tuple(named), tuple(silent)) if number == 1 else ((), ())
        first = NumberedGroup(group=0, status="clean", nodes_asked=5, corrupt_nodes=caught, silent_nodes=mute)
        asked = NumberedReferee(reason="shares disagree", answered=True, seconds=0.15)
        second = NumberedGroup(
            group=1,
            status="clean",
            nodes_asked=5,
            escalated=number in escalated,
            referee=asked if number in (refereed or ()) else None,
        )
        return NumberedReport(
            round=number,
            groups=(first, second),
            stepped=True,
            bytes_out=2_000_000,
            bytes_in=bytes_in,
            seconds_waiting=0.0,
            seconds_aggregating=aggregating[number - 1] if aggregating else 0.2,
            seconds_stepping=0.05,
        )

    records = [
        RoundRecord(
            round=number,
            accuracy=accuracy,
            loss=1.0,
            seconds=float(number),
            report=report(number) if number else None,
            waited=number in waited,
        )
        for number, accuracy in enumerate(accuracies)
    ]
    outcome = Outcome(
        scenario=SCENARIO if refereed is None else replace(SCENARIO, strategy=strategy),
        batches_per_node=3,
        liars=frozenset(liars),
        software=Software(versions={"flwr": "1.0"}, python="3.11", threads=1),
        records=records,
        model_sha256="0123456789abcdef",
        error=error,
    )
    return Cell(strategy, attack, outcome)


HONEST = cell("fedavg", None, [0.1, 0.5, 0.8])
SOLON = cell("solon", None, [0.1, 0.52, 0.801])
RESCUED = cell("solon", "alie", [0.1, 0.5, 0.799], liars=[3, 7], named=[3, 7])
RUINED = cell("fedavg", "alie", [0.1, 0.2, 0.123], liars=[3, 7])
ABORTED = cell("multikrum", "alie", [0.1], error="ValueError: <b>odd</b> reply")
REFUSED = Cell("bulyan", "alie", refusal="Bulyan needs at least 11 nodes <i>for</i> [dim]2 liars[/dim]")
ALL = (SOLON, HONEST, RESCUED, RUINED, ABORTED, REFUSED)


def results(*cells: Cell, batch_seconds: float = 0.5, **changes: Any) -> Results:
    """Return results with these cells."""
    values: dict[str, Any] = {
        "title": "By hand",
        "scenario": SCENARIO,
        "strategies": tuple(dict.fromkeys(cell.strategy for cell in cells)),
        "attacks": tuple(dict.fromkeys(cell.attack for cell in cells)),
        "networks": (SLOW,),
    }
    return Results(comparison=Comparison(**{**values, **changes}), cells=cells, batch_seconds=batch_seconds)


def rendered(table: Table | None, width: int = 80) -> str:
    """Return a table as a terminal of this width shows it."""
    assert table is not None
    stream = io.StringIO()
    Console(width=width, file=stream).print(table)
    return stream.getvalue()
