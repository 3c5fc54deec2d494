"""`solon-fl compare`: strategies x attacks x networks."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from solon_fl.cli.earlier import ACCURACY, REPORT, keep_earlier_report
from solon_fl.cli.meanings import CONFIG, SCENARIO, without
from solon_fl.cli.options import DATASET_HELP, MODEL_HELP, Machine
from solon_fl.cli.settings import Keys, SetOption
from solon_fl.cli.terminal import check_output, console, progress_bar, set_log_level, show_rounds
from solon_fl.config import SolonConfig
from solon_fl.simulations.attacks.registry import ATTACKS
from solon_fl.simulations.compare.comparison import Comparison, load_comparison, shipped_comparisons
from solon_fl.simulations.compare.results import Cell, Results
from solon_fl.simulations.compare.running import run_comparison
from solon_fl.simulations.compare.sentences import scatter_sentence, verdict_sentences
from solon_fl.simulations.compare.tables import costs_table, rounds_table, survival_table, times_table
from solon_fl.simulations.network import NETWORKS
from solon_fl.simulations.own import OWN
from solon_fl.simulations.run import STRATEGIES, RoundRecord, Scenario
from solon_fl.simulations.threads import limited_threads, usable_cores

__all__ = ["KEYS", "compare", "compare_command"]


KEYS = Keys(
    {
        Comparison: {
            "title": "Heading of the report.",
            "description": "Text below the heading.",
            "strategies": "See the option.",
            "attacks": "See the option.",
            "networks": "See the option.",
            "batch_seconds": "Seconds that a node takes for one batch. Default: measured here.",
            "target_accuracy": "Where times are compared. Default: 95 % of attack-free training's.",
            "group_sizes": "Whether all versions of Solon have groups of one size, or each its own smallest.",
        },
        SolonConfig: CONFIG,
        Scenario: without(SCENARIO, "strategy", "attack"),
        Machine: {
            "threads": "Threads of torch. Default: 1.",
            "processes": f"Runs that are made at the same time; this machine has {usable_cores()} cores. Default: 1.",
        },
    },
    options=(
        *("strategies", "attacks", "networks", "num_nodes", "byzantine", "compression", "rounds", "dataset", "model"),
        "seed",
    ),
)


def compare_command(
    name: Annotated[
        str,
        typer.Argument(metavar="COMPARISON", help="A name that --list shows, or your .toml file."),
    ] = "demo",
    strategies: Annotated[str | None, typer.Option(help=f"Comma-separated: {', '.join(STRATEGIES)}, or {OWN}.")] = None,
    attacks: Annotated[str | None, typer.Option(help=f"Comma-separated: none, {', '.join(ATTACKS)}, or {OWN}.")] = None,
    networks: Annotated[
        str | None, typer.Option(help=f"Comma-separated: {', '.join(NETWORKS)}, or the file's own.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help=CONFIG["num_nodes"])] = None,
    byzantine: Annotated[int | None, typer.Option(help="s: liars that Solon must find in each group.")] = None,
    compression: Annotated[int | None, typer.Option(help=CONFIG["compression"])] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of every run.")] = None,
    dataset: Annotated[str | None, typer.Option(help=DATASET_HELP)] = None,
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    seed: Annotated[int | None, typer.Option(help=CONFIG["seed"])] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for runs, report.html and accuracy.png. Default: solon-results/NAME.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the comparisons that come with the package.")] = False,
    settings: SetOption = None,
) -> None:
    """Run strategies against attacks, and write a report with tables and plots.

    COMPARISON is a name that --list shows, or a .toml file of yours. Finished runs are kept: stop whenever you like,
    and start the same command to go on. Times are computed for each network from bytes, batches and the server's
    measured seconds. For example:

        solon-fl compare --strategies solon,bulyan,signum --attacks none,alie,foe --networks wan-100m

    With data, a network, an aggregator and an attack of your own, the last three in mine.py of this folder:

        solon-fl compare --dataset photos --model mine:Net --strategies solon,mine:median --attacks none,mine:Attack

    Options and --set replace what the comparison says. To write a file of your own, start from one in the package's
    folder solon_fl/simulations/compare/comparisons.
    """
    if show_list:
        _print_list()
        return
    given: dict[str, Any] = {
        "strategies": strategies,
        "attacks": attacks,
        "networks": networks,
        "num_nodes": nodes,
        "byzantine": byzantine,
        "compression": compression,
        "rounds": rounds,
        "dataset": dataset,
        "model": model,
        "seed": seed,
    }
    values = KEYS.read(settings, given)
    if byzantine is not None or compression is not None:
        values[SolonConfig].setdefault("group_size", 0)  # the file's is for its own s and k
    tables = {"": values[Comparison], "config": values[SolonConfig], "scenario": values[Scenario]}
    machine = Machine(**values[Machine])
    compare(load_comparison(name, tables), output or Path("solon-results") / Path(name).stem, machine)


def compare(comparison: Comparison, output: Path, machine: Machine, *, brief: bool = False) -> None:
    """Run a comparison with progress bars, and leave tables, plot and report, of what is finished if interrupted.

    With `brief` the tables that have a line for each run are not printed.
    """
    set_log_level(verbose=False)
    check_output(output)
    results: Results | None = None
    try:
        with limited_threads(machine.threads), progress_bar() as progress:

            def on_cell(cell: Cell | Scenario) -> Callable[[RoundRecord], None] | None:
                if isinstance(cell, Scenario):
                    return show_rounds(cell, progress)
                done = "is not possible" if cell.refusal else "was run before"
                progress.console.print(f"[dim]{cell.strategy:16} {cell.attack or 'no attack':16} {done}[/]")
                return None

            for so_far in run_comparison(comparison, output / "runs", on_cell, processes=machine.processes):
                results = so_far
    except KeyboardInterrupt:
        console.print("[yellow]Stopped;[/] what is finished is kept: run the same command to go on.")
        raise typer.Exit(130) from None
    finally:
        if results is not None:
            _show(results, output, brief)


def _show(results: Results, output: Path, brief: bool) -> None:
    # Imported late, as matplotlib takes a second.
    from solon_fl.simulations.compare.plots import plot_accuracy
    from solon_fl.simulations.compare.report import write_report

    console.print(survival_table(results))
    console.print(costs_table(results))
    if not brief:
        console.print(rounds_table(results))
        if (times := times_table(results)) is not None:
            console.print(times)
    for sentence in (*verdict_sentences(results), scatter_sentence(results)):
        if sentence:
            console.print(sentence, highlight=False, markup=False)
    for refusal in dict.fromkeys(cell.refusal for cell in results.cells if cell.refusal):
        console.print(f"[dim]Not possible: {escape(refusal)}[/]", highlight=False, soft_wrap=True)
    if kept := keep_earlier_report(output, results.comparison):
        names = ", ".join(path.name for path in kept)
        console.print(f"Another comparison's files in {output} are now {names}.", highlight=False, soft_wrap=True)
    write_report(results, output / REPORT, [Path(sys.argv[0]).name, *sys.argv[1:]])
    plot_accuracy(results).savefig(output / ACCURACY, dpi=120)
    console.print(f"Report: {output / REPORT}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Plot:   {output / ACCURACY}", highlight=False, markup=False, soft_wrap=True)


def _print_list() -> None:
    table = Table("name", "what it compares")
    for name, title in shipped_comparisons().items():
        table.add_row(name, title)
    console.print(table)
