"""Measure a round of every strategy at full size: server seconds, bytes, memory, and the time on real networks.

The time on networks is computed, not measured. Gradients are random numbers, so that models may have any size.
Everything else is as in a simulation: strategies, messages, attack. Each strategy runs in its own process, whose peak
memory includes the server and all nodes.

    python -m benchmarks.full_size --dim 1000000
"""

import argparse
import json
import logging
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from itertools import product

import torch
from flwr.app import ArrayRecord, Context
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from solon_fl.clients import Batch
from solon_fl.config import DownlinkName, SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import InProcessGrid, Scenario
from solon_fl.simulations.network import NETWORKS, round_seconds
from solon_fl.simulations.run.nodes import ImageClient, make_client_app
from solon_fl.simulations.run.strategies import STRATEGIES
from solon_fl.strategies import RoundReport
from solon_fl.wire import to_array

NOISE = 1_000_003  # number of different offsets of the batches' noise
SPREAD = 0.3  # size of the batches' noise relative to the common vector


class RandomGradients(ImageClient):
    """Computes gradients that resemble those of batches: a common vector, and different noise for each batch."""

    def __init__(self, scenario: Scenario, dim: int) -> None:
        super().__init__(scenario)
        self._dim = dim
        rng = torch.Generator().manual_seed(scenario.config.seed)
        self._noise = torch.randn(NOISE + dim, generator=rng)

    def build_model(self, context: Context) -> nn.Module:
        model = nn.Module()
        model.weight = nn.Parameter(torch.zeros(self._dim))
        return model

    def mean_gradient(
        self,
        arrays: ArrayRecord,
        batches: Sequence[Batch],
        buffers: Sequence[str],
        context: Context,
        *,
        multiple: int = 1,
    ) -> Tensor:
        key = tuple(batch.number for batch in batches)
        return self._once(context, batches[0].round, key, lambda: self._mean(batches))

    def _mean(self, batches: Sequence[Batch]) -> Tensor:
        total = torch.zeros(self._dim)
        for batch in batches:
            start = (7919 * batch.number + 104729 * batch.round) % NOISE
            total.add_(self._noise[start : start + self._dim], alpha=SPREAD / len(batches))
        return total.add_(self._noise[: self._dim])


def run_one(strategy: str, attack: str, dim: int, rounds: int, downlink: DownlinkName) -> None:
    """Run a strategy and print the costs of a round and the peak memory of this process, as JSON."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    config = SolonConfig(num_nodes=100, byzantine=5, compression=10, group_size=20, downlink=downlink)
    told = None if attack == "none" else attack
    # Keep the momenta of all nodes out of the measured memory.
    scenario = Scenario(config=config, strategy=strategy, attack=told, num_liars=5, momentum_at="server")
    client = RandomGradients(scenario, dim)
    reports: list[RoundReport] = []
    contender = STRATEGIES[strategy]
    referee = {"referee": RandomGradients(scenario, dim)} if scenario.config.referee else {}
    made = contender.make(scenario, buffers=(), on_round=reports.append, **referee)
    arrays = ArrayRecord({"weight": to_array(torch.zeros(dim))})
    grid = InProcessGrid(make_client_app(client), 100)
    result = made.start(grid, arrays, num_rounds=1 + rounds, timeout=0.01)
    if (strategy, attack) != ("fedavg", "reverse"):
        step = torch.from_numpy(result.arrays["weight"].numpy()).double()
        honest = client._mean([Batch(0, 1, number) for number in range(100)]).double()
        assert float(torch.corrcoef(torch.stack([-step, honest]))[0, 1]) > 0.5, "the step is not along the gradient"
    # The first round is left out, because it sends the whole model.
    seconds = [report.seconds_aggregating + report.seconds_stepping for report in reports[1:]]
    print(
        json.dumps(
            {
                "seconds": min(seconds),
                "bytes_in": reports[-1].bytes_in,
                "bytes_out": reports[-1].bytes_out,
                "batches": contender.batches_per_node(scenario),
                "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=1_000_000, help="d, the length of a gradient (default: %(default)s)")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="comma-separated (default: all)")
    parser.add_argument("--attack", default="reverse", help='the attack, or "none" (default: %(default)s)')
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds after the first; the fastest counts (default: %(default)s)"
    )
    parser.add_argument("--batch-seconds", type=float, default=0.4, help="seconds per batch (default: %(default)s)")
    parser.add_argument("--downlink", default="full,delta", help="downlinks, comma-separated (default: %(default)s)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    strategies = arguments.strategies.split(",")
    if arguments.one:
        run_one(strategies[0], arguments.attack, arguments.dim, arguments.rounds, arguments.downlink)
        return
    console = Console(width=130)
    console.print(
        f"P = 100, d = {arguments.dim:,}, attack {arguments.attack}, 5 liars; Solon with r = 20, s = 5, k = 10; "
        f"{arguments.batch_seconds} s per batch; one thread, best of {arguments.rounds} rounds. "
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.processor() or platform.machine()}",
        soft_wrap=True,
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD)
    times = (f"s on\n{name}" for name in NETWORKS)
    for heading in ("strategy", "model", "batches", "MB down", "MB up", "server s", "GiB", *times):
        table.add_column(heading, justify="left" if heading in ("strategy", "model") else "right", no_wrap=True)
    for strategy, downlink in product(strategies, arguments.downlink.split(",")):
        command = [sys.executable, __file__, "--one", "--strategies", strategy, "--dim", str(arguments.dim)]
        command += ["--attack", arguments.attack, "--rounds", str(arguments.rounds), "--downlink", downlink]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            table.add_row(strategy, f"[red]failed: {done.stderr.strip().splitlines()[-1][:60]}[/]")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        totals = [
            round_seconds(
                network,
                num_nodes=100,
                batches_per_node=found["batches"],
                batch_seconds=arguments.batch_seconds,
                bytes_out=found["bytes_out"],
                bytes_in=found["bytes_in"],
                server_seconds=found["seconds"],
                waited=False,
            ).total
            for network in NETWORKS.values()
        ]
        table.add_row(
            STRATEGIES[strategy].title,
            downlink,
            str(found["batches"]),
            f"{found['bytes_out'] / 1e6:,.0f}",
            f"{found['bytes_in'] / 1e6:,.0f}",
            f"{found['seconds']:.3g}",
            f"{found['gib']:.2f}",
            *(f"{total:,.3g}" for total in totals),
        )
    console.print(table)


if __name__ == "__main__":
    try:
        main()
    except ConfigurationError as error:
        sys.exit(f"error: {error}")
