"""`solon-fl compare`: strategies x attacks x networks."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from solon_fl.cli.terminal import check_output, console, progress_bar, set_log_level, show_rounds
from solon_fl.simulations.attacks.registry import ATTACKS
from solon_fl.simulations.compare.comparison import Comparison, load_comparison, shipped_comparisons
from solon_fl.simulations.compare.plots import plot_accuracy
from solon_fl.simulations.compare.report import write_report
from solon_fl.simulations.compare.results import Cell, Results, run_comparison
from solon_fl.simulations.compare.tables import comparison_table, times_table
from solon_fl.simulations.network import NETWORKS
from solon_fl.simulations.plan.server_time import check_threads
from solon_fl.simulations.run import STRATEGIES, RoundRecord, Scenario

__all__ = ["compare", "compare_command"]


def compare_command(
    name: Annotated[
        str,
        typer.Argument(metavar="COMPARISON", help="One that comes with the package (see --list), or your .toml file."),
    ] = "demo",
    strategies: Annotated[str | None, typer.Option(help=f"Comma-separated: {', '.join(STRATEGIES)}.")] = None,
    attacks: Annotated[str | None, typer.Option(help=f"Comma-separated: none, {', '.join(ATTACKS)}.")] = None,
    networks: Annotated[
        str | None, typer.Option(help=f"Comma-separated: {', '.join(NETWORKS)}, or the file's own.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="P: nodes in the run.")] = None,
    byzantine: Annotated[int | None, typer.Option(help="s: liars that Solon must find in each group.")] = None,
    compression: Annotated[int | None, typer.Option(help="k: a Solon node sends 1/k of the gradient.")] = None,
    group_size: Annotated[int | None, typer.Option(help="r: nodes of a Solon group.")] = None,
    num_liars: Annotated[int | None, typer.Option(help="Liars among all nodes, at most s a group.")] = None,
    dataset: Annotated[str | None, typer.Option(help="See solon-fl simulate --help.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where a data set lies that is not embedded.")] = None,
    model: Annotated[str | None, typer.Option(help="See solon-fl simulate --help.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of every run.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in one batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the server's SGD.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes weights, batches and liars.")] = None,
    batch_seconds: Annotated[
        float | None, typer.Option(help="Seconds that a node takes for one batch. Default: measured here.")
    ] = None,
    target_accuracy: Annotated[
        float | None, typer.Option(help="Where times are compared. Default: 95 % of attack-free training's.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for runs, report.html and accuracy.png. Default: solon-results/NAME.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    show_list: Annotated[bool, typer.Option("--list", help="List the comparisons that come with the package.")] = False,
) -> None:
    """Run strategies against attacks, and write a report with tables and plots.

    A run that is finished is not run again: stop whenever you like, and start the same command to go on. Times
    are reckoned for each network from bytes, batches and the server's measured seconds. For example:

        solon-fl compare --strategies solon,bulyan,signum --attacks none,alie,foe --networks wan-100m

    Options take the place of what the comparison says. A file of your own looks like those of --list, which lie
    in the package's folder solon_fl/simulations/compare/comparisons.
    """
    if show_list:
        _print_list()
        return
    given: dict[str, dict[str, Any]] = {
        "": {
            "strategies": _split(strategies),
            "attacks": _split(attacks),
            "networks": _split(networks),
            "batch_seconds": batch_seconds,
            "target_accuracy": target_accuracy,
        },
        "config": {
            "num_nodes": nodes,
            "byzantine": byzantine,
            "compression": compression,
            "group_size": group_size,
            "seed": seed,
        },
        "scenario": {
            "num_liars": num_liars,
            "dataset": dataset,
            "data_dir": data_dir,
            "model": model,
            "rounds": rounds,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
        },
    }
    overrides = {table: {k: v for k, v in values.items() if v is not None} for table, values in given.items()}
    comparison = load_comparison(name, overrides)
    compare(comparison, output or Path("solon-results") / Path(name).stem, threads)


def compare(comparison: Comparison, output: Path, threads: int) -> None:
    """Run a comparison with progress bars, and leave table, plot and report, of what is finished if interrupted."""
    set_log_level(verbose=False)
    check_threads(threads)
    torch.set_num_threads(threads)
    check_output(output)
    results: Results | None = None
    try:
        with progress_bar() as progress:

            def on_cell(cell: Cell | Scenario) -> Callable[[RoundRecord], None] | None:
                if isinstance(cell, Scenario):
                    return show_rounds(cell, progress)
                done = "is not possible" if cell.refusal else "was run before"
                progress.console.print(f"[dim]{cell.strategy:16} {cell.attack or 'no attack':16} {done}[/]")
                return None

            for results_so_far in run_comparison(comparison, output / "runs", on_cell):
                results = results_so_far
    except KeyboardInterrupt:
        console.print("[yellow]Stopped;[/] what is finished is kept: run the same command to go on.")
        raise typer.Exit(130) from None
    finally:
        if results is not None:
            _show(results, output)


def _show(results: Results, output: Path) -> None:
    console.print(comparison_table(results))
    if (times := times_table(results)) is not None:
        console.print(times)
    for refusal in dict.fromkeys(cell.refusal for cell in results.cells if cell.refusal):
        console.print(f"[dim]Not possible: {escape(refusal)}[/]", highlight=False, soft_wrap=True)
    write_report(results, output / "report.html", [Path(sys.argv[0]).name, *sys.argv[1:]])
    plot_accuracy(results).savefig(output / "accuracy.png", dpi=120)
    console.print(f"Report: {output / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Plot:   {output / 'accuracy.png'}", highlight=False, markup=False, soft_wrap=True)


def _print_list() -> None:
    table = Table("name", "what it compares")
    for name, title in shipped_comparisons().items():
        table.add_row(name, title)
    console.print(table)


def _split(names: str | None) -> list[str] | None:
    return None if names is None else [part.strip() for part in names.split(",") if part.strip()]
