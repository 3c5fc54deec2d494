"""`solon-fl compare`: a grid of strategies and attacks, timed on several networks."""

import re
import sys
from collections.abc import Callable, Mapping
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
from solon_fl.errors import ConfigurationError
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
            "strategies": "See --strategies.",
            "attacks": "See --attacks.",
            "networks": "See --networks.",
            "batch_seconds": "Seconds that a node takes for one batch. Default: measured on this machine.",
            "target_accuracy": "Accuracy at which times are compared. Default: 95 % of that of attack-free training.",
            "group_sizes": "Whether all versions of Solon have groups of the same size, or each has its smallest.",
        },
        SolonConfig: CONFIG,
        Scenario: without(SCENARIO, "strategy", "attack"),
        Machine: {
            "threads": "Threads of torch. Default: 1.",
            "processes": f"Number of runs at a time; this machine has {usable_cores()} cores. Default: 1.",
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
        typer.Argument(metavar="COMPARISON", help="A name from --list, or your own .toml file."),
    ] = "demo",
    strategies: Annotated[
        str | None, typer.Option(help=f"Strategies to compare, separated by commas: {', '.join(STRATEGIES)}, or {OWN}.")
    ] = None,
    attacks: Annotated[
        str | None, typer.Option(help=f"Attacks, separated by commas: none, {', '.join(ATTACKS)}, or {OWN}.")
    ] = None,
    networks: Annotated[
        str | None,
        typer.Option(help=f"Networks, separated by commas: {', '.join(NETWORKS)}, or those of your file."),
    ] = None,
    nodes: Annotated[int | None, typer.Option(help=CONFIG["num_nodes"])] = None,
    byzantine: Annotated[int | None, typer.Option(help=CONFIG["byzantine"])] = None,
    compression: Annotated[int | None, typer.Option(help=CONFIG["compression"])] = None,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds of every run.")] = None,
    dataset: Annotated[str | None, typer.Option(help=DATASET_HELP)] = None,
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    seed: Annotated[int | None, typer.Option(help=CONFIG["seed"])] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for runs, report.html and accuracy.png. Default: solon-results/COMPARISON."),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the comparisons that come with the package.")] = False,
    settings: SetOption = None,
) -> None:
    r"""Run strategies against attacks, and write a report with tables and plots.

    COMPARISON is a name from --list, or your own .toml file. Options and --set override its settings. For example:

        solon-fl compare --strategies solon,bulyan,signum \
            --attacks none,alie,foe --networks wan-100m

    Finished runs are kept: stop at any time, and run the same command to continue. Times are computed for each
    network from the bytes sent, the batches computed and the server's measured seconds.

    You can bring your own data, network, aggregator and attack. Here the last three are in mine.py in the current
    folder:

        solon-fl compare --dataset photos --model mine:Net \
            --strategies solon,mine:median --attacks none,mine:Attack

    To write your own file, start from one of the package's, in solon_fl/simulations/compare/comparisons.
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
        values[SolonConfig].setdefault("group_size", 0)  # the file's r is for its own s and k
    tables = {"": values[Comparison], "config": values[SolonConfig], "scenario": values[Scenario]}
    machine = Machine(**values[Machine])
    comparison = load(name, tables, KEYS.typed(settings, given))
    compare(comparison, output or Path("solon-results") / Path(name).stem, machine)


def load(name: str, tables: Mapping[str, Mapping[str, Any]], typed: Mapping[str, str]) -> Comparison:
    """Load a comparison with overrides. If one of them is wrong, the error names the option.

    Parameters
    ----------
    name, tables
        See `load_comparison`.
    typed : mapping
        The options as they were typed, by key.
    """
    try:
        return load_comparison(name, tables)
    except ConfigurationError as error:
        try:
            load_comparison(name)
        except ConfigurationError:
            raise error from None  # the file itself is wrong
        message = re.sub(r"^(\[\w+\] )?(\w+: )?", "", str(error).removeprefix(f"{Path(name)}: "))
        blamed = [option for key, option in typed.items() if re.search(rf"\b{key}\b", message)]
        raise ConfigurationError(f"{' '.join(blamed or typed.values())}: {message}") from error


def compare(comparison: Comparison, output: Path, machine: Machine, *, brief: bool = False) -> None:
    """Run a comparison with progress bars, and write tables, plot and report. If stopped, write them for finished runs.

    With `brief` the tables with a line for each run are not printed.
    """
    set_log_level(verbose=False)
    check_output(output)
    results: Results | None = None
    try:
        with limited_threads(machine.threads), progress_bar() as progress:

            def on_cell(cell: Cell | Scenario) -> Callable[[RoundRecord], None] | None:
                if isinstance(cell, Scenario):
                    return show_rounds(cell, progress)
                done = "not possible" if cell.refusal else "already finished"
                progress.console.print(f"[dim]{cell.strategy:16} {cell.attack or 'no attack':16} {done}[/]")
                return None

            for so_far in run_comparison(comparison, output / "runs", on_cell, processes=machine.processes):
                results = so_far
    except KeyboardInterrupt:
        console.print("[yellow]Stopped.[/] Finished runs are kept. Run the same command to continue.")
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
        console.print(f"The files of another comparison in {output} are now {names}.", highlight=False, soft_wrap=True)
    write_report(results, output / REPORT, [Path(sys.argv[0]).name, *sys.argv[1:]])
    plot_accuracy(results).savefig(output / ACCURACY, dpi=120)
    console.print(f"Report: {output / REPORT}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Plot:   {output / ACCURACY}", highlight=False, markup=False, soft_wrap=True)


def _print_list() -> None:
    table = Table("name", "title")
    for name, title in shipped_comparisons().items():
        table.add_row(name, title)
    console.print(table)
