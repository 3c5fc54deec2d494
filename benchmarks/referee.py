"""Run Solon with a referee, and the other strategies, with six nodes, of which five lie from round 3 on.

Solon has r = 6, s = 5, k = 5, with digests and the exact code (k = 1 without digests). The referee is one more honest
client in the server's process. For each attack, a table compares the run's rounds with those of a run without liars. It
shows the nodes that the referee convicted, its computations, and the models' SHA-256. The other strategies are
configured for five liars and see the same batches. A strategy that does not accept so many liars does not run, and the
reason is printed.

columns of the last table: the accuracy after the last round, without an attack and under each attack; and how often the
referee computed the group's batches under each attack, each time at the cost of one more node.

examples:
  python -m benchmarks.referee
  python -m benchmarks.referee --rounds 10 --attacks reverse
"""

import argparse
import logging
import platform
import time

import torch
from rich.console import Console
from rich.table import Table

from solon_fl import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import STRATEGIES, Outcome, Scenario, simulate

NODES, LIARS, COMPRESSION = 6, 5, 5
FIRST_LIE = 3  # the first round in which nodes lie
DIGITS = 12  # digits shown of a SHA-256
OURS = "solon-referee-digest"

console = Console(width=110)


def scenario_of(strategy: str, attack: str | None, rounds: int) -> Scenario:
    """Return the scenario of one run. Strategies other than Solon ignore the config's referee."""
    ours = STRATEGIES[OURS].settings
    settings = STRATEGIES[strategy].settings if STRATEGIES[strategy].client == "solon" else ours
    compression = COMPRESSION if settings == ours else 1  # other settings need larger groups for a larger one
    config = SolonConfig(num_nodes=NODES, byzantine=LIARS, compression=compression, code="exact", **settings)
    return Scenario(config=config, strategy=strategy, attack=attack, attack_from=FIRST_LIE, rounds=rounds)


def times(number: int) -> str:
    """Return a number of times in words."""
    return "once" if number == 1 else f"{number} times"


def show_rounds(attacked: Outcome, honest: Outcome) -> None:
    """Print a table of Solon's rounds beside those of the honest run, without rounds in which nothing changes."""
    table = Table(title=f"{attacked.scenario.attack} from round {FIRST_LIE} on, nodes {sorted(attacked.liars)} lie")
    for heading in ("round", "nodes asked", "referee", "convicted", "accuracy", "SHA-256", "when nobody lies"):
        table.add_column(heading)
    for record, other in zip(attacked.records[1:], honest.records[1:], strict=True):
        report = record.report
        assert report is not None
        if not (record.round <= FIRST_LIE + 2 or report.referee_reports or record is attacked.records[-1]):
            continue
        asked = ", ".join(referee.reason for referee in report.referee_reports)
        convicted = ", ".join(map(str, report.convicted_nodes))
        shown = [record.model_sha256[:DIGITS], other.model_sha256[:DIGITS]]
        table.add_row(str(record.round), str(report.nodes_asked), asked, convicted, f"{record.accuracy:.1%}", *shown)
    console.print(table)
    same = all(a.model_sha256 == b.model_sha256 for a, b in zip(attacked.records, honest.records, strict=True))
    console.print(
        f"{'No bits differ' if same else 'BITS DIFFER'} after any of the {len(attacked.reports)} rounds; the referee "
        f"computed {times(attacked.referee_computations)} and convicted {len(attacked.convicted & attacked.liars)} of "
        f"{len(attacked.liars)} liars and {len(attacked.convicted - attacked.liars)} honest nodes.\n"
    )


def run_all(attacks: list[str], rounds: int) -> tuple[dict[str, list[Outcome]], dict[str, str]]:
    """Return each strategy's runs, the one without an attack first, and the reasons why strategies refuse to run."""
    runs: dict[str, list[Outcome]] = {}
    refusals: dict[str, str] = {}
    for name, strategy in STRATEGIES.items():
        try:
            scenarios = [scenario_of(name, attack, rounds) for attack in (None, *attacks)]
        except ConfigurationError as error:
            refusals[strategy.title] = str(error)
            continue
        runs[name] = [simulate(scenario) for scenario in scenarios]
    return runs, refusals


def rows_of(runs: dict[str, list[Outcome]]) -> list[list[str]]:
    """Return the rows of the last table, one per strategy."""
    rows = []
    for name, outcomes in runs.items():
        accuracies = [f"{outcome.accuracy:.1%}{' (broke off)' * bool(outcome.error)}" for outcome in outcomes]
        asked = [str(outcome.referee_computations) if outcome.has_referee else "" for outcome in outcomes[1:]]
        rows.append([STRATEGIES[name].title, *accuracies, ", ".join(filter(None, asked))])
    return rows


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="rounds of every run; default 40")
    parser.add_argument("--attacks", default="reverse,alie,foe", help="comma-separated; default reverse,alie,foe")
    arguments = parser.parse_args()
    attacks = arguments.attacks.split(",")
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    started = time.monotonic()
    runs, refusals = run_all(attacks, arguments.rounds)
    honest, *attacked = runs[OURS]
    for outcome in attacked:
        show_rounds(outcome, honest)
    header = ["strategy", "nobody lies", *attacks, "referee"]
    title = f"Accuracy after {arguments.rounds} rounds; {LIARS} of {NODES} nodes lie from round {FIRST_LIE} on"
    table = Table(*header, title=title)
    rows = rows_of(runs)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for title, refusal in refusals.items():
        console.print(f"{title} refuses: {refusal}", highlight=False, markup=False, soft_wrap=True)
    seconds = time.monotonic() - started
    console.print(f"{seconds:.0f} s, {platform.machine()}, torch {torch.__version__}, one thread\n", highlight=False)
    print("\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]))


if __name__ == "__main__":
    main()
