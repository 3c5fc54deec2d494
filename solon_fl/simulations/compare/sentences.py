"""The verdict of a comparison, in sentences that follow from its results."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from solon_fl.simulations.compare.comparison import NO_ATTACK
from solon_fl.simulations.compare.results import Cell, Results, Verdict
from solon_fl.simulations.network import Network
from solon_fl.simulations.run import Outcome, strategy_named
from solon_fl.simulations.run.outcome import few_rounds_sentence

__all__ = ["Standing", "listed", "named_liars", "scatter_sentence", "standings", "verdict_sentences"]

SHOWN_DIGITS = 6  # of the model's SHA-256
GRAVITY: tuple[Verdict, ...] = ("broken", "harmed", "survived")


@dataclass(frozen=True)
class Standing:
    """The results of one strategy under all attacks.

    Attributes
    ----------
    strategy : str
        A key of `STRATEGIES`.
    cells : tuple of Cell
        Its possible and finished runs, in the comparison's order of attacks.
    results : Results
        The results of which they are part.
    """

    strategy: str
    cells: tuple[Cell, ...]
    results: Results

    @property
    def title(self) -> str:
        """The strategy's title."""
        return strategy_named(self.strategy).title

    @cached_property
    def worst(self) -> Cell | None:
        """The run under attack with the lowest final accuracy; without such a run, the attack-free one."""
        cells = [cell for cell in self.cells if cell.attack is not None] or list(self.cells)
        return min((cell for cell in cells if cell.accuracies), key=lambda cell: cell.accuracies[-1], default=None)

    @cached_property
    def verdict(self) -> Verdict | None:
        """The worst verdict. "survived" needs a verdict under every attack; otherwise it is None."""
        found = {cell.attack: self.results.verdict(cell) for cell in self.cells}
        complete = all(found.get(attack) is not None for attack in self.results.comparison.attacks if attack)
        gravest = next((verdict for verdict in GRAVITY if verdict in found.values()), None)
        return gravest if complete or gravest != "survived" else None

    @cached_property
    def model(self) -> str | None:
        """The first digits of the final model's SHA-256, if there are several runs and all have the same model."""
        digests = {cell.outcome.model_sha256 for cell in self.cells if cell.outcome is not None}
        return digests.pop()[:SHOWN_DIGITS] or None if len(digests) == 1 and len(self.cells) > 1 else None

    @property
    def named(self) -> str:
        """How many liars the server named, in the run in which the most liars replied and were not named."""
        runs = [cell for cell in self.cells if cell.liars]
        worst = max(runs, key=lambda cell: (len(cell.liars - cell.named - cell.silent), len(cell.named)), default=None)
        return "" if worst is None else named_liars(worst)

    @property
    def example(self) -> Cell | None:
        """The run that shows the costs of a round: the attack-free one, if there is one."""
        cells = [cell for cell in self.cells if len(cell.records) > 1]
        return min(cells, key=lambda cell: cell.attack is not None, default=None)


def standings(results: Results) -> list[Standing]:
    """Return all strategies, the best worst accuracy first, and those that are not possible last."""
    found = [
        Standing(strategy, tuple(c for c in results.cells if c.strategy == strategy and c.outcome is not None), results)
        for strategy in results.comparison.strategies
    ]
    return sorted(found, key=lambda standing: -standing.worst.accuracies[-1] if standing.worst else 1.0)


def verdict_sentences(results: Results) -> list[str]:
    """Return the verdict; nothing while runs under attack are missing, or if there is nothing to compare with."""
    judged = [standing for standing in standings(results) if standing.verdict is not None]
    attacks = [attack for attack in results.comparison.attacks if attack is not None]
    if not judged or any(results.cell(s, attack) is None for s in results.comparison.strategies for attack in attacks):
        return []
    survivors = [standing for standing in judged if standing.verdict == "survived"]
    others = [standing for standing in judged if standing.verdict != "survived"]
    sentences = [_survival(survivors, others, attacks)]
    sentences += [_strength(standing) for standing in survivors if standing.named or standing.model]
    if others:
        sentences.append(_fall(others))
    outcomes = [(cell, cell.outcome) for cell in results.cells if cell.outcome is not None]
    sentences += [_unstepped(cell, outcome) for cell, outcome in outcomes if outcome.unstepped]
    sentences += _costs(results)
    few = few_rounds_sentence(results.comparison.scenario.rounds)
    return [*sentences, few] if few else sentences


def scatter_sentence(results: Results) -> str:
    """Return in a sentence how many runs were timed on a busy machine; "" if none."""
    busy = [cell for cell in results.cells if cell.timings_scatter]
    if not busy:
        return ""
    return (
        f"This machine was busy with other work during {len(busy)} of {len(results.cells)} runs. The server's seconds "
        "of these runs, marked ~, scatter or are too long."
    )


def named_liars(cell: Cell) -> str:
    """Return in words how many liars the server named, and how many others of them did not reply.

    The text is empty for strategies that name no nodes.
    """
    if not cell.named and (not cell.liars or strategy_named(cell.strategy).client not in ("solon", "draco")):
        return ""
    right, wrong = len(cell.named & cell.liars), len(cell.named - cell.liars)
    named = f"all {right}" if right == len(cell.liars) else f"{right} of {len(cell.liars)}"
    silent = len(cell.liars & cell.silent - cell.named)
    return named + (f", {silent} silent" if silent else "") + (f", {wrong} wrongly" if wrong else "")


def listed(words: Sequence[str], last: str = "and") -> str:
    """Return words as a list within a sentence."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _survival(survivors: Sequence[Standing], others: Sequence[Standing], attacks: Sequence[str]) -> str:
    every = f"the attack {attacks[0]}" if len(attacks) == 1 else f"{_all(len(attacks))} attacks"
    if not survivors:
        best = others[0]
        closest = f"; {best.title} came closest, with {_percent(best.worst)} at worst" if best.worst else ""
        return f"No strategy survived {every}{closest}."
    titles = listed([standing.title for standing in survivors])
    return f"{'Only ' if len(survivors) == 1 and others else ''}{titles} survived {every}."


def _strength(standing: Standing) -> str:
    """Return a survivor's worst accuracy, the liars it named, and whether all its models are the same."""
    assert standing.worst is not None  # as it has a verdict
    parts = [f"{standing.title} reached {_percent(standing.worst)} at worst"]
    if standing.named:
        first, _, others = standing.named.partition(", ")
        liars = {"all 1": "the liar", "all 2": "both liars"}.get(first, f"{first} liars")
        parts.append(f"named {liars}" + (f" ({others})" if others else ""))
    if standing.model:
        parts.append(
            f"made the same model, to the last bit, in {_all(len(standing.cells))} runs (SHA-256 {standing.model}…)"
        )
    return listed(parts) + "."


def _fall(others: Sequence[Standing]) -> str:
    """Return the worst accuracies of the others, and the attacks that caused them."""
    fallen = [
        f"{standing.title} {_percent(standing.worst)} ({standing.worst.attack or NO_ATTACK})"
        for standing in others
        if standing.worst is not None
    ]
    broken = [standing.title for standing in others if standing.worst is None]
    sentence = f"Worst accuracies of the others: {', '.join(fallen)}." if fallen else ""
    return sentence + (f" {listed(broken)} broke off." if broken else "")


def _unstepped(cell: Cell, outcome: Outcome) -> str:
    title, attack = strategy_named(cell.strategy).title, cell.attack or "no attack"
    return f"{title} made no step in {outcome.unstepped} of {len(outcome.reports)} rounds ({attack})."


def _costs(results: Results) -> list[str]:
    """Return how Solon's costs compare: computation, and the time to the same accuracy."""
    by_name = {standing.strategy: standing for standing in standings(results)}
    solon = by_name.pop("solon", None)
    if solon is None or solon.example is None or not by_name:
        return []
    batches = solon.example.batches_per_node
    counts = {other.title: other.example.batches_per_node for other in by_name.values() if other.example}
    fewer = {title: count for title, count in counts.items() if count < batches}
    sentences = []
    if fewer:
        sentences.append(
            f"Solon costs computation: each of its nodes computes {batches} batches a round, while a node of "
            f"{listed(list(fewer), 'or')} computes only {min(fewer.values())}."
        )
    times = (_relative_times(results, network) for network in results.comparison.networks)
    return sentences + [sentence for sentence in times if sentence is not None]


def _relative_times(results: Results, network: Network) -> str | None:
    """Return the attack-free times of the other strategies in a sentence; None if there are none to compare."""
    parts = []
    for strategy in results.comparison.strategies:
        ratio = results.speed(results.cell(strategy, None), network) if strategy != "solon" else None
        if ratio is not None:
            parts.append(f"{strategy_named(strategy).title} {ratio:.2g}")
    times = ", ".join(parts)
    if not parts:
        return None
    goal = f"{100 * (results.target_accuracy or 0.0):.1f} %"
    return f"Time to {goal} on {network.name} without an attack, as a multiple of Solon's: {times}."


def _percent(cell: Cell) -> str:
    return f"{100 * cell.accuracies[-1]:.1f} %"


def _all(count: int) -> str:
    return "both" if count == 2 else f"all {count}"
