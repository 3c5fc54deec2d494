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
from solon_fl.simulations.threads import limited_threads, usable_cores
from solon_fl.strategies import Checkpoints

__all__ = ["KEYS", "simulate_command"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """How often a run is saved."""

    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None:
            check_whole("checkpoint_every", self.checkpoint_every, 1)

    def checkpoints(self, output: Path) -> Checkpoints | None:
        """Return where the run is saved, if it is; fail before anything is run if that can't be."""
        if self.checkpoint_every is None:
            return None
        check_output(output / "checkpoints")
        return Checkpoints(output / "checkpoints", every=self.checkpoint_every)


KEYS = Keys(
    {
        SolonConfig: CONFIG,
        Scenario: SCENARIO,
        options.Machine: {
            "threads": "Threads of torch. One is quickest for small networks; give resnet18 and vgg13 all cores (here "
            f"{usable_cores()})."
        },
        Saving: {
            "checkpoint_every": "Save the run after every so many rounds, in OUTPUT/checkpoints: the same command goes "
            "on from there after a stop or a crash (and has nothing to do if the run was finished).",
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
            help=f"Who aggregates: {', '.join(STRATEGIES)}, or {OWN}. Default: {SCENARIO_DEFAULTS['strategy']}."
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
    """Train a network while some nodes lie, and see who was caught.

    For example, 20 nodes in two groups of 10, two liars in each:

        solon-fl simulate --nodes 20 --byzantine 2 --compression 6 --attack alie

    The same with larger batches, and with digests:

        solon-fl simulate --attack alie --set batch_size=64 --set verification=digest

    Six nodes of which five lie from round 3 on, and a referee, who finds them out:

        solon-fl simulate --nodes 6 --byzantine 5 --compression 5 --referee --attack reverse --set attack_from=3
        --set verification=digest --set code=exact
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
            f"a referee is for strategy=solon; got --referee and strategy={scenario.strategy}; leave one out."
        )
    with limited_threads(machine.threads):
        run(scenario, saving, output)


def run(scenario: Scenario, saving: Saving, output: Path) -> None:
    """Run a scenario with a progress bar, write its files, and say what came of it."""
    from solon_fl.simulations.run.plots import plot_run  # matplotlib takes a second
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
    console.print(
        f"SHA-256 of the model: {outcome.model_sha256[:16]} (equal if, and only if, every bit is).", highlight=False
    )
    console.print(
        f"A round: {outcome.bytes_out / 1e6:.3g} MB down to all nodes, {outcome.bytes_sent / 1e6:.3g} MB up from them, "
        f"{1e3 * outcome.server_seconds:.3g} ms of the server (medians)"
        f"{'; timings scatter: machine busy?' if outcome.timings_scatter else ''}.",
        highlight=False,
    )
    losses = [report.unprotected_training_loss for report in outcome.reports]
    if losses and losses[-1] is not None:
        console.print(f"Training loss of the last round, as the nodes report it (unprotected): {losses[-1]:.3g}.")
    if outcome.unstepped and not outcome.error:
        console.print(
            f"[yellow]{outcome.unstepped} of {len(outcome.reports)} rounds made no step;[/] --verbose shows why.",
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
    """Say where a run was stopped, and how it can go on."""
    rounds, wanted = len(outcome.reports), outcome.scenario.rounds
    where = f"after {rounds} of {wanted} rounds. "
    if saving.checkpoint_every is None:
        return where + "It was not saved: with --set checkpoint_every=10 the same command goes on where it was stopped."
    saved = rounds // saving.checkpoint_every * saving.checkpoint_every
    return where + f"The same command goes on after round {saved}, the last that was saved."


def _print_saving(outcome: Outcome) -> None:
    """Say how many nodes computed, if some were to rest."""
    config, reports = outcome.scenario.config, outcome.reports
    if config.redundancy == "reactive" and reports:
        asked = sum(report.nodes_asked for report in reports) / len(reports)
        escalations = sum(len(report.escalated_groups) for report in reports)
        console.print(
            f"Of {config.num_nodes} nodes {asked:.3g} computed in a round, on average; "
            f"{escalations} times the others of a group had to be asked too."
        )


def _print_referee(outcome: Outcome) -> None:
    """Say how often the referee was asked, why, and what it found, if there is one."""
    if not outcome.has_referee:
        return
    reports = [referee for report in outcome.reports for referee in report.referee_reports]
    rounds = len(outcome.reports)
    if not reports:
        console.print(f"In {rounds} rounds the referee was never asked.", highlight=False)
        return
    asked = sum(report.nodes_asked for report in outcome.reports)
    reasons = Counter(report.reason for report in reports)
    why = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
    times = f"{outcome.referee_computations} time{'s' if outcome.referee_computations != 1 else ''}"
    convicted, wrongly = outcome.convicted, len(outcome.convicted - outcome.liars)
    named = f"nodes {', '.join(map(str, sorted(convicted)))}" if convicted else "nobody"
    console.print(
        f"In {rounds} rounds nodes computed their group's batches {asked} times, and the referee "
        f"{times} ({why}), in {sum(report.seconds for report in reports):.3g} s. It "
        f"convicted {named}{f', {wrongly} of them wrongly' if wrongly else ''}.",
        highlight=False,
    )


def _print_failures(outcome: Outcome) -> None:
    failures = sum(len(record.report.failed_groups) for record in outcome.records if record.report)
    if failures:
        console.print(
            f"[yellow]{failures} times a group could not be decoded[/] (left out, and reported: never guessed)."
        )
