"""Compares the running times of strategies on a real deployment on this machine, with a limited link for each node.

See python -m deployment.clock --help.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from deployment.clocked import Clocked, measured_network, read_record, rounds_to, table
from deployment.namespaces import NamespacedFederation
from solon_fl import SolonConfig
from solon_fl.config import DownlinkName
from solon_fl.errors import ConfigurationError
from solon_fl.launch.errors import FederationError
from solon_fl.launch.interrupts import run_interruptibly
from solon_fl.simulations.network import Network
from solon_fl.simulations.run import Outcome, RoundRecord, Scenario, jsonable, measure_batch_seconds, simulate

APP = Path(__file__).resolve().parent / "clock-app"
SMALL_MODEL = "logistic"  # its messages are small
ROUNDS = 3  # rounds that are measured, in addition to the first one
LINKS = ("20mbit", "100mbit")
STRATEGIES = ("fedavg", "solon", "draco-repetition", "signum", "multikrum")
DOWNLINKS: tuple[DownlinkName, ...] = ("full", "delta")

program = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@program.command()
def main(
    link: Annotated[
        list[str] | None,
        typer.Option(metavar="RATE[,LATENCY]", help=f"Link of each node. Repeatable. Default: {', '.join(LINKS)}."),
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help=f"Strategy to compare. Repeatable. Default: {', '.join(STRATEGIES)}.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="P, number of nodes, a multiple of 2 byzantine + compression.")] = 6,
    byzantine: Annotated[int, typer.Option(help="s, tolerated liars of a group.")] = 1,
    compression: Annotated[int, typer.Option(help="k: Solon's shares are 1/k of a gradient.")] = 4,
    liars: Annotated[int, typer.Option(help="Number of liars among all nodes.")] = 1,
    attack: Annotated[str, typer.Option(help="Attack of the liars.")] = "reverse",
    model: Annotated[str, typer.Option(help="Model to train.")] = "mlp",
    accuracy: Annotated[float, typer.Option(help="Accuracy to reach, 0..1.")] = 0.65,
    most_rounds: Annotated[
        int, typer.Option(help="Rounds after which the accuracy counts as never reached.", min=1)
    ] = 30,
    to_the_end: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LINK:STRATEGY",
            help="A pair such as 100mbit:solon: measure all its rounds until the accuracy is reached, not just a few. "
            "Repeatable.",
        ),
    ] = None,
) -> None:
    """Compare the running times of strategies on a Flower deployment on this machine (Linux, root).

    Each strategy is simulated first, to find the number of rounds until the
    accuracy is reached. Then a few of its rounds run on SuperNodes with limited
    links, and the server measures how long they take. The table compares these
    times with two predictions of the network model. The first counts links,
    batches and the server's work only. The second adds the overheads of Flower on
    this machine, which are measured with two runs of FedAvg (one with a model
    whose messages are small).

    Nothing else should run on the machine. Flower's waits are shortened; see
    deployment/hurry.py.
    """
    links = link or list(LINKS)
    try:
        ends = read_ends(to_the_end or [], links, strategy or STRATEGIES)
        logging.getLogger("flwr").setLevel(logging.ERROR)
        honest = Scenario(
            config=SolonConfig(num_nodes=nodes, byzantine=byzantine, compression=compression),
            strategy="fedavg",
            num_liars=liars,
            model=model,
            rounds=most_rounds,
            sign_learning_rate=0.0005,
            momentum_at="server",  # a node's process ends with its message, so it can't keep momentum
        )
        reference, others = scenarios(honest, strategy or STRATEGIES, attack)
        batch_seconds = seconds_of_a_batch(honest)
        print(f"{1e3 * batch_seconds:.0f} ms per batch while all nodes compute", flush=True)
        simulated = [expected(scenario, accuracy) for scenario in (*reference, *others)]
        runs: list[tuple[Clocked, Network]] = []
        for each in links:
            runs += clocked(each, simulated, batch_seconds, accuracy, ends[each])
        print(table(runs, accuracy))
        print("* all rounds until the accuracy was reached were measured")
    except (FederationError, ConfigurationError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


# Scenarios to compare


def read_ends(texts: Sequence[str], links: Sequence[str], strategies: Sequence[str]) -> dict[str, set[str]]:
    """Return the strategies whose rounds are all measured, by link."""
    ends: dict[str, set[str]] = {link: set() for link in links}
    for text in texts:
        link, _, strategy = text.partition(":")
        if link not in ends or strategy not in strategies:
            raise FederationError(
                f"to_the_end must be LINK:STRATEGY, with a LINK among {', '.join(links)} and a STRATEGY among "
                f"{', '.join(strategies)}; got {text!r}."
            )
        ends[link].add(strategy)
    return ends


def scenarios(honest: Scenario, strategies: Sequence[str], attack: str) -> tuple[list[Scenario], list[Scenario]]:
    """Return two honest scenarios of FedAvg, the first with a small model, and the scenarios to compare."""
    patched = replace(honest, config=replace(honest.config, downlink="delta"))
    others = [patched] if "fedavg" in strategies else []
    for strategy in strategies:
        # Liars don't change FedAvg's bytes and times, so one run with them, for the model's accuracy, is enough.
        ways = DOWNLINKS[:1] if strategy == "fedavg" else DOWNLINKS
        others += [
            replace(honest, strategy=strategy, attack=attack, config=replace(honest.config, downlink=way))
            for way in ways
        ]
    return [replace(honest, model=SMALL_MODEL), honest], others


def seconds_of_a_batch(scenario: Scenario) -> float:
    """Return the seconds of a batch on one node while all nodes compute on this machine's cores."""
    cores = len(os.sched_getaffinity(0))
    return measure_batch_seconds(scenario) * max(1.0, scenario.config.num_nodes / cores)


def expected(scenario: Scenario, accuracy: float) -> Outcome:
    """Simulate the scenario, and print when it reaches the accuracy."""
    outcome = simulate(scenario)
    reached = rounds_to(outcome, accuracy)
    when = "never" if reached is None else f"after {reached} rounds"
    print(f"simulated: {label(scenario)}: {accuracy:.0%} {when}", flush=True)
    return outcome


def label(scenario: Scenario) -> str:
    """Return a readable name of a scenario."""
    attack = scenario.attack or "nobody lies"
    return f"{scenario.strategy}, {scenario.model}, downlink {scenario.config.downlink}, {attack}"


# Runs


def clocked(
    link: str, simulated: Sequence[Outcome], batch_seconds: float, accuracy: float, to_the_end: set[str]
) -> Iterator[tuple[Clocked, Network]]:
    """Run some rounds of each scenario on nodes with such links, and yield all but the first, with the small model."""
    bandwidth, _, latency = link.partition(",")
    num_nodes = simulated[0].scenario.config.num_nodes
    with NamespacedFederation(bandwidth=bandwidth, latency=latency or "0ms", hurried=True) as federation:
        print(f"{link}: starting {num_nodes} SuperNodes", flush=True)
        federation.start_nodes(
            {f"node-{number + 1}": {"partition-id": number, "num-partitions": num_nodes} for number in range(num_nodes)}
        )
        runs = []
        for outcome in simulated:
            whole = rounds_to(outcome, accuracy) if outcome.scenario.strategy in to_the_end else None
            records = run(federation, outcome.scenario, max(ROUNDS + 1, whole or 0))
            runs.append(
                Clocked(network=federation.network, simulated=outcome, records=records, batch_seconds=batch_seconds)
            )
            print(
                f"{link}: {label(outcome.scenario)}: {runs[-1].round_seconds:.1f} s per round "
                f"({', '.join(f'{seconds:.1f}' for seconds in runs[-1].seconds)}), accuracy "
                f"{records[-1].accuracy:.1%}; load average {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    small, large, *_ = runs
    network = measured_network(small, large)
    print(
        f"{link}: Flower's overheads are {network.round_overhead:.1f} s per round and "
        f"{1e9 * network.byte_overhead:.0f} ms per MB",
        flush=True,
    )
    for each in runs[1:]:
        yield each, network


def run(federation: NamespacedFederation, scenario: Scenario, rounds: int) -> list[RoundRecord]:
    """Run a scenario's first rounds on the federation and return their records."""
    told = replace(scenario, rounds=rounds, compute_once=False)
    text = json.dumps(jsonable(asdict(told)))
    records = map(read_record, federation.start_run(APP, {"scenario": text}).checked_lines())
    return [record for record in records if record is not None]


if __name__ == "__main__":
    run_interruptibly(program)
