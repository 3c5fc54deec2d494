"""`solon-fl simulate`: one run."""

from pathlib import Path
from typing import Annotated, cast, get_args

import torch
import typer
from rich.markup import escape

from solon_fl.cli import options
from solon_fl.cli.terminal import check_output, console, progress_bar, run_scenario, set_log_level
from solon_fl.coding import BeyondBound, DecodeStatus
from solon_fl.config import CodeName, Mode, Redundancy, Regroup, SolonConfig, Verification
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.plan.server_time import check_threads
from solon_fl.simulations.run import STRATEGIES, Engine, Outcome, Scenario
from solon_fl.simulations.run.plots import plot_run
from solon_fl.simulations.run.tables import offences_table
from solon_fl.strategies import Checkpoints

__all__ = ["simulate_command"]


def simulate_command(
    nodes: options.Nodes = 20,
    byzantine: Annotated[int, typer.Option(help="s: nodes of each group that lie, and that Solon must find.")] = 2,
    compression: options.Compression = 6,
    stragglers: options.Stragglers = 0,
    group_size: Annotated[
        int, typer.Option(help="r: nodes of a group, at least 2s + e + k (see --verification); 0 takes just that.")
    ] = 0,
    attack: options.AttackName = "none",
    num_liars: options.NumLiars = None,
    beyond_bound: Annotated[
        str,
        typer.Option(
            help="A group with more faults than Solon bears for certain: reject it, or accept what is likely."
        ),
    ] = "reject",
    regroup: Annotated[
        str,
        typer.Option(
            help=f"When nodes are put into new groups, at random: {', '.join(get_args(Regroup))}. With round, s nodes "
            "in all lie by default."
        ),
    ] = "never",
    verification: Annotated[
        str,
        typer.Option(
            help=f"How lies are told from the truth: {', '.join(get_args(Verification))}. With digest r may be as "
            "small as max(2s + 1, s + k) + e, if all nodes compute the same bits."
        ),
    ] = "algebra",
    redundancy: Annotated[
        str,
        typer.Option(
            help=f"Who of a group computes: {', '.join(get_args(Redundancy))}. With reactive only as many as are "
            "enough if they agree, and the others where they don't."
        ),
    ] = "full",
    strategy: Annotated[str, typer.Option(help=f"Who aggregates: {', '.join(STRATEGIES)}.")] = "solon",
    dataset: options.DatasetName = "fashion-mnist-6k",
    data_dir: options.DataDir = None,
    model: options.ModelName = "cnn",
    rounds: Annotated[int, typer.Option(help="Rounds: steps of the server's optimizer.")] = 60,
    batch_size: Annotated[int, typer.Option(help="Examples in one batch; every round has P batches.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Of the server's SGD.")] = 0.05,
    momentum: Annotated[float, typer.Option(help="Of the server's SGD.")] = 0.9,
    mode: options.ModeName = "gradient",
    local_learning_rate: options.LocalLearningRate = 0.05,
    code: options.Code = "fourier",
    rtol: Annotated[float, typer.Option(help="Float noise tolerated between honest nodes.")] = 1e-6,
    seed: Annotated[int, typer.Option(help="Fixes weights, batches and liars: same seed, same result.")] = 0,
    engine: options.EngineName = "in-process",
    threads: Annotated[
        int,
        typer.Option(help="Threads of torch. One is quickest for small networks; give resnet18, vgg13 all cores."),
    ] = 1,
    every_node_computes: Annotated[
        bool, typer.Option(help="Compute every node's gradient, not one per group (r times slower, same result).")
    ] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            help="Save the run after every so many rounds, in OUTPUT/checkpoints: the same command goes on from there "
            "after a stop or a crash (and has nothing to do if the run was finished)."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for rounds.jsonl and plot.png.")] = Path("solon-results"),
    verbose: options.Verbose = False,
) -> None:
    """Train a network while some nodes lie, and see who was caught.

    For example, 20 nodes in two groups of 10, two liars in each:

        solon-fl simulate --nodes 20 --byzantine 2 --compression 6 --attack alie
    """
    set_log_level(verbose)
    check_threads(threads)
    torch.set_num_threads(threads)
    scenario = Scenario(
        config=SolonConfig(
            num_nodes=nodes,
            byzantine=byzantine,
            compression=compression,
            stragglers=stragglers,
            group_size=group_size,
            code=cast(CodeName, code),
            rtol=rtol,
            seed=seed,
            mode=cast(Mode, mode),
            beyond_bound=cast(BeyondBound, beyond_bound),
            regroup=cast(Regroup, regroup),
            verification=cast(Verification, verification),
            redundancy=cast(Redundancy, redundancy),
        ),
        strategy=strategy,
        attack=None if attack == "none" else attack,
        num_liars=num_liars,
        dataset=dataset,
        model=model,
        data_dir=data_dir,
        rounds=rounds,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        local_learning_rate=local_learning_rate,
        engine=cast(Engine, engine),
        compute_once=not every_node_computes,
    )
    check_output(output)
    checkpoints = None
    if checkpoint_every is not None:
        if checkpoint_every < 1:
            raise ConfigurationError(
                f"--checkpoint-every must be a number of rounds >= 1; got --checkpoint-every {checkpoint_every}."
            )
        check_output(output / "checkpoints")
        checkpoints = Checkpoints(output / "checkpoints", every=checkpoint_every)
    with progress_bar() as progress:
        outcome = run_scenario(scenario, progress, checkpoints)
    outcome.save(output / "rounds.jsonl")
    plot_run(outcome, output / "plot.png")
    if STRATEGIES[strategy].client == "solon" or outcome.offences:
        console.print(offences_table(outcome))
        _print_failures(outcome)
    _print_saving(outcome)
    console.print(f"Accuracy: [bold]{outcome.accuracy:.1%}[/] after {len(outcome.records) - 1} rounds.")
    if outcome.error:
        console.print(f"[red]The run broke off:[/] {escape(outcome.error)}", highlight=False)
    console.print(f"Written: {output / 'rounds.jsonl'}, {output / 'plot.png'}", highlight=False, soft_wrap=True)
    if outcome.error:
        raise typer.Exit(1)


def _print_saving(outcome: Outcome) -> None:
    """Say how many nodes computed, if some were to rest."""
    config = outcome.scenario.config
    reports = [record.report for record in outcome.records if record.report]
    if config.redundancy == "reactive" and reports:
        asked = sum(report.nodes_asked for report in reports) / len(reports)
        escalations = sum(len(report.escalated_groups) for report in reports)
        console.print(
            f"Of {config.num_nodes} nodes {asked:.3g} computed in a round, on average; "
            f"{escalations} times the others of a group had to be asked too."
        )


def _print_failures(outcome: Outcome) -> None:
    failures = sum(len(record.report.failed_groups) for record in outcome.records if record.report)
    if failures:
        console.print(
            f"[yellow]{failures} times a group could not be decoded[/] (left out, and reported: never guessed)."
        )
    groups = [group for record in outcome.records if record.report for group in record.report.groups]
    if beyond := sum(group.status == DecodeStatus.BEYOND_BOUND for group in groups):
        console.print(
            f"[yellow]{beyond} times a group had more faults than s and e[/] (beyond the guarantee: the only gradient "
            "that k + 1 or more of its nodes agree on was taken)."
        )
