"""Results of comparisons written by hand, for tests of what is made of them."""

from collections.abc import Sequence
from typing import Any

from solon_fl.config import SolonConfig
from solon_fl.simulations import Scenario
from solon_fl.simulations.compare.comparison import Comparison
from solon_fl.simulations.compare.results import Cell, Results
from solon_fl.simulations.network import Network

SLOW = Network(
    name="slow",
    server_download=8e6,
    server_upload=8e6,
    node_download=8e5,
    node_upload=8e5,
    latency=0.5,
    deadline=30.0,
)


def cell(
    strategy: str,
    attack: str | None,
    accuracies: Sequence[float],
    *,
    error: str | None = None,
    liars: Sequence[int] = (),
    named: Sequence[int] = (),
    waited: Sequence[int] = (),
    escalated: Sequence[int] = (),
    bytes_in: int = 1_000_000,
) -> Cell:
    """Return a run of 10 nodes that compute 3 batches each, are sent 2 MB and take 0.25 s of the server a round."""
    head = {
        "scenario": {"config": {"num_nodes": 10}},
        "batches_per_node": 3,
        "liars": list(liars),
        "versions": {"flwr": "1.0"},
        "python": "3.11",
        "threads": 1,
    }
    report = {"bytes_out": 2_000_000, "bytes_in": bytes_in, "seconds_aggregating": 0.2, "seconds_stepping": 0.05}

    def groups(number: int) -> list[dict[str, Any]]:
        return [{"nodes_asked": 5, "escalated": False}, {"nodes_asked": 5, "escalated": number in escalated}]

    rounds = [
        {
            "round": n,
            "accuracy": accuracy,
            "report": report | {"groups": groups(n)} if n else None,
            "waited": n in waited,
        }
        for n, accuracy in enumerate(accuracies)
    ]
    summary = {"error": error, "offences": {str(number): {"lying": 1} for number in named}}
    return Cell(strategy, attack, (head, *rounds, summary))


def results(*cells: Cell, batch_seconds: float = 0.5, **changes: Any) -> Results:
    """Return the results that consist of these cells."""
    values: dict[str, Any] = {
        "title": "By hand",
        "scenario": Scenario(config=SolonConfig(num_nodes=10, byzantine=1, compression=3)),
        "strategies": tuple(dict.fromkeys(cell.strategy for cell in cells)),
        "attacks": tuple(dict.fromkeys(cell.attack for cell in cells)),
        "networks": (SLOW,),
    }
    return Results(comparison=Comparison(**{**values, **changes}), cells=cells, batch_seconds=batch_seconds)
