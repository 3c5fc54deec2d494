"""`solon-fl simulate`: one run."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from solon_fl.checks import check_whole
from solon_fl.cli import options
from solon_fl.cli.earlier import PLOT, ROUNDS, keep_earlier_run
from solon_fl.cli.meanings import CONFIG, SCENARIO
from solon_fl.cli.options import SCENARIO_DEFAULTS
from solon_fl.cli.settings import Keys, SetOption
from solon_fl.cli.terminal import check_output, console, progress_bar, run_scenario, set_log_level
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.own import OWN
from solon_fl.simulations.run import STRATEGIES, Outcome, Scenario, Stopped, strategy_named
from solon_fl.simulations.run.outcome import few_rounds_sentence
from solon_fl.simulations.threads import limited_threads, usable_cores
from solon_fl.strategies import Checkpoints

__all__ = ["KEYS", "simulate_command"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """How often a run is saved, if at all."""

    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None:
            check_whole("checkpoint_every", self.checkpoint_every, 1)

    def checkpoints(self, output: Path) -> Checkpoints | None:
        """Return the checkpoints of the run, if it is saved. Fail at once if the folder can't be used."""
        if self.checkpoint_every is None:
            return None
        check_output(output / "checkpoints")
        return Checkpoints(output / "checkpoints", every=self.checkpoint_every)


KEYS = Keys(
    {
        SolonConfig: CONFIG,
        Scenario: SCENARIO,
        options.Machine: {
            "threads": "Threads of torch. One is fastest for small networks. Give resnet18 and vgg13 all cores (this "
            f"machine has {usable_cores()})."
        },
        Saving: {
            "checkpoint_every": "Save the run every so many rounds, in OUTPUT/checkpoints. After a stop or a crash, "
            "the same command continues from there. none does not save it.",
        },
    },
    options=(
        *("num_nodes", "byzantine", "compression", "attack", "strategy", "referee", "rounds", "dataset", "model"),
        "seed",
    ),
)


def simulate_command(
    nodes: options.Nodes = None,
    byzantine: options.Byzantine = None,
    compression: options.Compression = None,
    attack: options.AttackName = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help=f"Aggregation strategy: {', '.join(STRATEGIES)}, or {OWN}. Default: {SCENARIO_DEFAULTS['strategy']}."
        ),
    ] = None,
    referee: Annotated[bool, typer.Option("--referee", help=CONFIG["referee"])] = False,
    rounds: Annotated[
        int | None, typer.Option(help=f"{SCENARIO['rounds']} Default: {SCENARIO_DEFAULTS['rounds']}.")
    ] = None,
    dataset: options.DatasetName = None,
    model: options.ModelName = None,
    seed: Annotated[int | None, typer.Option(help=f"{CONFIG['seed']} Default: 0.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for rounds.jsonl and plot.png.")] = Path("solon-results"),
    verbose: options.Verbose = False,
    settings: SetOption = None,
) -> None:
    r"""Train a network while some nodes lie, and show which of them are caught.

    All nodes are simulated on this machine. For example, train with 20 nodes in two groups of 10, and two liars in
    each:

        solon-fl simulate --nodes 20 --byzantine 2 --compression 6 --attack alie

    The same with larger batches, and with digests:

        solon-fl simulate --attack alie \
            --set batch_size=64 --set verification=digest

    Five of six nodes lie from round 3 on, and a referee finds them:

        solon-fl simulate --nodes 6 --byzantine 5 --compression 5 \
            --referee --attack reverse --set attack_from=3 \
            --set verification=digest --set code=exact

    The output folder gets one line of JSON for each round (rounds.jsonl), and a plot (plot.png).
    They and the tables number nodes from 0. Flower's log (--verbose) numbers them from 1, unless engine=ray.
    """
    set_log_level(verbose)
    given = {
        "num_nodes": nodes,
        "byzantine": byzantine,
        "compression": compression,
        "attack": attack,
        "strategy": strategy,
        "referee": referee or None,
        "rounds": rounds,
        "dataset": dataset,
        "model": model,
        "seed": seed,
    }
    values = KEYS.read(settings, given)
    machine, saving = options.Machine(**values[options.Machine]), Saving(**values[Saving])
    named = strategy_named(values[Scenario].get("strategy", SCENARIO_DEFAULTS["strategy"]))
    config = options.config_of({**values[SolonConfig], **named.settings})
    scenario = Scenario(config=config, **values[Scenario])
    if config.referee and strategy_named(scenario.strategy).client != "solon":
        raise ConfigurationError(
            f"a referee needs strategy=solon; got --referee and strategy={scenario.strategy}; leave one out."
        )
    with limited_threads(machine.threads):
        run(scenario, saving, output)


def run(scenario: Scenario, saving: Saving, output: Path) -> None:
    """Run a scenario with a progress bar, write its files, and print its results."""
    from solon_fl.simulations.run.plots import plot_run  # imported late, as matplotlib takes a second
    from solon_fl.simulations.run.tables import named_sentence, offences_table

    check_output(output)
    checkpoints = saving.checkpoints(output)
    is_stopped = False
    with progress_bar() as progress:
        try:
            outcome = run_scenario(scenario, progress, checkpoints)
        except Stopped as stopped:
            outcome, is_stopped = stopped.outcome, True
    kept = keep_earlier_run(output, outcome)
    outcome.save(output / ROUNDS)
    plot_run(outcome, output / PLOT)
    if strategy_named(scenario.strategy).client == "solon" or outcome.offences:
        if (table := offences_table(outcome)).row_count:
            console.print(table)
        console.print(named_sentence(outcome), highlight=False)
        _print_failures(outcome)
    _print_saving(outcome)
    _print_referee(outcome)
    console.print(f"Accuracy: [bold]{outcome.accuracy:.1%}[/] after {len(outcome.reports)} rounds.")
    if few := few_rounds_sentence(len(outcome.reports)):
        console.print(few, highlight=False)
    console.print(f"SHA-256 of the model: {outcome.model_sha256[:16]} (it differs if any bit does).", highlight=False)
    console.print(
        f"In a round, the server sends {outcome.bytes_out / 1e6:.3g} MB and receives "
        f"{outcome.bytes_sent / 1e6:.3g} MB, for all nodes together, and works for "
        f"{1e3 * outcome.server_seconds:.3g} ms (medians)."
        f"{' These timings scatter: was the machine busy?' if outcome.timings_scatter else ''}",
        highlight=False,
    )
    losses = [report.unprotected_training_loss for report in outcome.reports]
    if losses and losses[-1] is not None:
        console.print(f"Training loss of the last round, as reported by the nodes (unprotected): {losses[-1]:.3g}.")
    if outcome.unstepped and not outcome.error:
        console.print(
            f"[yellow]{outcome.unstepped} of {len(outcome.reports)} rounds made no step.[/] Add --verbose to see why.",
            highlight=False,
        )
    if is_stopped:
        console.print(f"[yellow]Stopped[/] {_how_to_go_on(outcome, saving)}", highlight=False)
    elif outcome.error:
        console.print(f"[red]The run broke off:[/] {escape(outcome.error)}", highlight=False)
    if kept:
        names = ", ".join(path.name for path in kept)
        console.print(f"An earlier run's files in {output} are now {names}.", highlight=False, soft_wrap=True)
    console.print(f"Written: {output / ROUNDS}, {output / PLOT}", highlight=False, soft_wrap=True)
    if outcome.error:
        raise typer.Exit(130 if is_stopped else 1)


def _how_to_go_on(outcome: Outcome, saving: Saving) -> str:
    """Return in words where a run was stopped, and how to continue it."""
    rounds, wanted = len(outcome.reports), outcome.scenario.rounds
    where = f"after {rounds} of {wanted} rounds. "
    if saving.checkpoint_every is None:
        return where + "It was not saved. With --set checkpoint_every=10 a stopped run can be continued."
    saved = rounds // saving.checkpoint_every * saving.checkpoint_every
    return where + f"Run the same command to continue after round {saved}, the last one saved."


def _print_saving(outcome: Outcome) -> None:
    """Print how many nodes computed, if some rest."""
    config, reports = outcome.scenario.config, outcome.reports
    if config.redundancy == "reactive" and reports:
        asked = sum(report.nodes_asked for report in reports) / len(reports)
        escalations = sum(len(report.escalated_groups) for report in reports)
        console.print(
            f"On average {asked:.3g} of {config.num_nodes} nodes computed in a round. "
            f"{escalations} times the resting nodes of a group had to be asked too."
        )


def _print_referee(outcome: Outcome) -> None:
    """Print how often the referee was asked, why, and what it found, if there is one."""
    if not outcome.has_referee:
        return
    reports = [referee for report in outcome.reports for referee in report.referee_reports]
    rounds = len(outcome.reports)
    if not reports:
        console.print(f"The referee was not asked in any of {rounds} rounds.", highlight=False)
        return
    asked = sum(report.nodes_asked for report in outcome.reports)
    reasons = Counter(report.reason for report in reports)
    why = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
    times = f"{outcome.referee_computations} time{'s' if outcome.referee_computations != 1 else ''}"
    convicted, wrongly = outcome.convicted, len(outcome.convicted - outcome.liars)
    named = f"nodes {', '.join(map(str, sorted(convicted)))}" if convicted else "nobody"
    console.print(
        f"In {rounds} rounds nodes computed their group's batches {asked} times. The referee computed them "
        f"{times} ({why}) and took {sum(report.seconds for report in reports):.3g} s. It "
        f"convicted {named}{f', {wrongly} of them wrongly' if wrongly else ''}.",
        highlight=False,
    )


def _print_failures(outcome: Outcome) -> None:
    failures = sum(len(record.report.failed_groups) for record in outcome.records if record.report)
    if failures:
        console.print(f"[yellow]{failures} times a group could not be decoded.[/] Its gradient is never guessed.")
