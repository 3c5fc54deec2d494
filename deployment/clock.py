"""Compare strategies by the clock: on a real deployment on this machine, whose nodes have links of their own.

python -m deployment.clock --help says how.
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
SMALL_MODEL = "logistic"  # sends next to nothing
ROUNDS = 3  # that are clocked, beside the first
LINKS = ("20mbit", "100mbit")
STRATEGIES = ("fedavg", "solon", "draco-repetition", "signum", "multikrum")
DOWNLINKS: tuple[DownlinkName, ...] = ("full", "delta")

program = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@program.command()
def main(
    link: Annotated[
        list[str] | None,
        typer.Option(metavar="RATE[,LATENCY]", help=f"Of each node; may be repeated. Default: {', '.join(LINKS)}."),
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help=f"May be repeated. Default: {', '.join(STRATEGIES)}.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="P, a multiple of 2 byzantine + compression.")] = 6,
    byzantine: Annotated[int, typer.Option(help="s, of a group.")] = 1,
    compression: Annotated[int, typer.Option(help="k: Solon's shares are 1/k of a gradient.")] = 4,
    liars: Annotated[int, typer.Option(help="Among all nodes.")] = 1,
    attack: Annotated[str, typer.Option(help="What they do.")] = "reverse",
    model: Annotated[str, typer.Option(help="What is trained.")] = "mlp",
    accuracy: Annotated[float, typer.Option(help="To be reached, 0..1.")] = 0.65,
    most_rounds: Annotated[int, typer.Option(help="After which the accuracy counts as never reached.", min=1)] = 30,
    to_the_end: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LINK:STRATEGY",
            help="Clock all rounds to the accuracy, not only a few; may be repeated, such as 100mbit:solon.",
        ),
    ] = None,
) -> None:
    """Compare strategies by the clock, on a Flower deployment on this machine (Linux, root).

    Each strategy is simulated first: that says how many rounds it takes to the
    accuracy. Then a few of its rounds run on SuperNodes whose links have a limit,
    and the server's clock says how long they take. The table has what the model
    of a network says beside it: of links, batches and the server's work alone;
    and with the overheads of Flower on this machine, which two runs of FedAvg
    show (one with a model that sends next to nothing).

    Nothing else should run on the machine. Flower's processes are hurried: see
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
            momentum_at="server",  # a process that ends with its message has no memory
        )
        reference, others = scenarios(honest, strategy or STRATEGIES, attack)
        batch_seconds = seconds_of_a_batch(honest)
        print(f"{1e3 * batch_seconds:.0f} ms a batch while all nodes compute", flush=True)
        simulated = [expected(scenario, accuracy) for scenario in (*reference, *others)]
        runs: list[tuple[Clocked, Network]] = []
        for each in links:
            runs += clocked(each, simulated, batch_seconds, accuracy, ends[each])
        print(table(runs, accuracy))
        print("* all rounds to the accuracy were clocked")
    except (FederationError, ConfigurationError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


# What is compared


def read_ends(texts: Sequence[str], links: Sequence[str], strategies: Sequence[str]) -> dict[str, set[str]]:
    """Return the strategies of which all rounds are clocked, by link."""
    ends: dict[str, set[str]] = {link: set() for link in links}
    for text in texts:
        link, _, strategy = text.partition(":")
        if link not in ends or strategy not in strategies:
            raise FederationError(
                f"to_the_end must be LINK:STRATEGY, one of {', '.join(links)} and one of {', '.join(strategies)}; "
                f"got {text!r}."
            )
        ends[link].add(strategy)
    return ends


def scenarios(honest: Scenario, strategies: Sequence[str], attack: str) -> tuple[list[Scenario], list[Scenario]]:
    """Return two honest scenarios of FedAvg, the first with a small model, and those that are compared."""
    patched = replace(honest, config=replace(honest.config, downlink="delta"))
    others = [patched] if "fedavg" in strategies else []
    for strategy in strategies:
        # FedAvg sends the same bytes in the same time whoever lies; one run shows what becomes of the model.
        ways = DOWNLINKS[:1] if strategy == "fedavg" else DOWNLINKS
        others += [
            replace(honest, strategy=strategy, attack=attack, config=replace(honest.config, downlink=way))
            for way in ways
        ]
    return [replace(honest, model=SMALL_MODEL), honest], others


def seconds_of_a_batch(scenario: Scenario) -> float:
    """Return the seconds of a batch on one node while all nodes compute, on the cores that this machine has."""
    cores = len(os.sched_getaffinity(0))
    return measure_batch_seconds(scenario) * max(1.0, scenario.config.num_nodes / cores)


def expected(scenario: Scenario, accuracy: float) -> Outcome:
    """Return what a simulation of the scenario comes to, and say when it has the accuracy."""
    outcome = simulate(scenario)
    reached = rounds_to(outcome, accuracy)
    when = "never" if reached is None else f"after {reached} rounds"
    print(f"simulated: {label(scenario)}: {accuracy:.0%} {when}", flush=True)
    return outcome


def label(scenario: Scenario) -> str:
    """Return a scenario's name for people."""
    attack = scenario.attack or "nobody lies"
    return f"{scenario.strategy}, {scenario.model}, downlink {scenario.config.downlink}, {attack}"


# What is done


def clocked(
    link: str, simulated: Sequence[Outcome], batch_seconds: float, accuracy: float, to_the_end: set[str]
) -> Iterator[tuple[Clocked, Network]]:
    """Run some rounds of each scenario on nodes with such links, and yield all but the first, the small model's."""
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
                f"{link}: {label(outcome.scenario)}: {runs[-1].round_seconds:.1f} s a round "
                f"({', '.join(f'{seconds:.1f}' for seconds in runs[-1].seconds)}), accuracy "
                f"{records[-1].accuracy:.1%}; load average {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    small, large, *_ = runs
    network = measured_network(small, large)
    print(
        f"{link}: Flower takes {network.round_overhead:.1f} s a round and {1e9 * network.byte_overhead:.0f} ms a MB",
        flush=True,
    )
    for each in runs[1:]:
        yield each, network


def run(federation: NamespacedFederation, scenario: Scenario, rounds: int) -> list[RoundRecord]:
    """Run a scenario's first rounds on the federation and return the record of each."""
    told = replace(scenario, rounds=rounds, compute_once=False)
    text = json.dumps(jsonable(asdict(told)))
    records = map(read_record, federation.start_run(APP, {"scenario": text}).checked_lines())
    return [record for record in records if record is not None]


if __name__ == "__main__":
    run_interruptibly(program)
