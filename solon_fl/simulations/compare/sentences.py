"""What came of a comparison, in sentences. All of it follows from the results."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from solon_fl.simulations.compare.comparison import NO_ATTACK
from solon_fl.simulations.compare.results import Cell, Results, Verdict
from solon_fl.simulations.network import Network
from solon_fl.simulations.run import Outcome, strategy_named

__all__ = ["Standing", "listed", "named_liars", "scatter_sentence", "standings", "verdict_sentences"]

SHOWN_DIGITS = 6  # of the model's SHA-256
GRAVITY: tuple[Verdict, ...] = ("broken", "harmed", "survived")


@dataclass(frozen=True)
class Standing:
    """How one strategy fared under all attacks.

    Attributes
    ----------
    strategy : str
        A key of `STRATEGIES`.
    cells : tuple of Cell
        Its runs, in the comparison's order of attacks; those that are possible and finished.
    results : Results
        What they are from.
    """

    strategy: str
    cells: tuple[Cell, ...]
    results: Results

    @property
    def title(self) -> str:
        """The strategy's name for people."""
        return strategy_named(self.strategy).title

    @cached_property
    def worst(self) -> Cell | None:
        """The run under attack that ended with the least accuracy; without any the attack-free one."""
        cells = [cell for cell in self.cells if cell.attack is not None] or list(self.cells)
        return min((cell for cell in cells if cell.accuracies), key=lambda cell: cell.accuracies[-1], default=None)

    @cached_property
    def verdict(self) -> Verdict | None:
        """The gravest verdict, "survived" only if there is one under every attack; else None."""
        found = {cell.attack: self.results.verdict(cell) for cell in self.cells}
        complete = all(found.get(attack) is not None for attack in self.results.comparison.attacks if attack)
        gravest = next((verdict for verdict in GRAVITY if verdict in found.values()), None)
        return gravest if complete or gravest != "survived" else None

    @cached_property
    def model(self) -> str | None:
        """The first digits of the final model's SHA-256, if it is the same in all of several runs."""
        digests = {cell.outcome.model_sha256 for cell in self.cells if cell.outcome is not None}
        return digests.pop()[:SHOWN_DIGITS] or None if len(digests) == 1 and len(self.cells) > 1 else None

    @property
    def named(self) -> str:
        """How many liars the server named, in the run in which these were fewest."""
        told = [(len(cell.named & cell.liars), named_liars(cell)) for cell in self.cells if cell.liars]
        return min(told, default=(0, ""))[1]

    @property
    def example(self) -> Cell | None:
        """The run that shows what a round costs: the attack-free one, if there is one."""
        cells = [cell for cell in self.cells if len(cell.records) > 1]
        return min(cells, key=lambda cell: cell.attack is not None, default=None)


def standings(results: Results) -> list[Standing]:
    """Return all strategies, the one with the best worst accuracy first, and those that are not possible last."""
    found = [
        Standing(strategy, tuple(c for c in results.cells if c.strategy == strategy and c.outcome is not None), results)
        for strategy in results.comparison.strategies
    ]
    return sorted(found, key=lambda standing: -standing.worst.accuracies[-1] if standing.worst else 1.0)


def verdict_sentences(results: Results) -> list[str]:
    """Return what a reader should know first; nothing while attacked runs are missing, or if nothing can be judged."""
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
    return sentences


def scatter_sentence(results: Results) -> str:
    """Return in a sentence how many runs were timed on a busy machine; "" if none was."""
    busy = [cell for cell in results.cells if cell.timings_scatter]
    if not busy:
        return ""
    return (
        f"This machine was busy with other work during {len(busy)} of {len(results.cells)} runs: their "
        "server's seconds scatter, or are longer than the work took. They are marked ~."
    )


def named_liars(cell: Cell) -> str:
    """Return in words how many of the liars the server named; an empty text for strategies that name none."""
    if not cell.named and (not cell.liars or strategy_named(cell.strategy).client not in ("solon", "draco")):
        return ""
    right, wrong = len(cell.named & cell.liars), len(cell.named - cell.liars)
    named = f"all {right}" if right == len(cell.liars) else f"{right} of {len(cell.liars)}"
    return named + (f", {wrong} wrongly" if wrong else "")


def listed(words: Sequence[str], last: str = "and") -> str:
    """Return words as a list in a sentence."""
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
    """Return what a survivor did besides: liars named, and the very same model with them and without."""
    assert standing.worst is not None  # it has a verdict
    parts = [f"{standing.title} ended with {_percent(standing.worst)} at worst"]
    if standing.named:
        first, *wrongly = standing.named.split(", ")
        parts.append(f"named {first} {'liar' if first == 'all 1' else 'liars'}{f' ({wrongly[0]})' if wrongly else ''}")
    if standing.model:
        parts.append(
            f"made the same model to the last bit in {_all(len(standing.cells))} runs, whoever lied "
            f"(SHA-256 {standing.model}…)"
        )
    return listed(parts) + "."


def _fall(others: Sequence[Standing]) -> str:
    """Return how low the others fell, and by which attack."""
    fallen = [
        f"{standing.title} {_percent(standing.worst)} ({standing.worst.attack or NO_ATTACK})"
        for standing in others
        if standing.worst is not None
    ]
    broken = [standing.title for standing in others if standing.worst is None]
    sentence = f"At worst, the others ended with: {', '.join(fallen)}." if fallen else ""
    return sentence + (f" {listed(broken)} broke off." if broken else "")


def _unstepped(cell: Cell, outcome: Outcome) -> str:
    title, attack = strategy_named(cell.strategy).title, cell.attack or "no attack"
    return f"{title} made no step in {outcome.unstepped} of {len(outcome.reports)} rounds ({attack})."


def _costs(results: Results) -> list[str]:
    """Return where Solon loses or wins: computation, and the time to the same accuracy."""
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
            f"Solon pays in computation: each of its nodes computes {batches} batches a round, and a node of "
            f"{listed(list(fewer), 'or')} only {min(fewer.values())}."
        )
    times = (_relative_times(results, network) for network in results.comparison.networks)
    return sentences + [sentence for sentence in times if sentence is not None]


def _relative_times(results: Results, network: Network) -> str | None:
    """Return a sentence about the attack-free times of the other strategies, if they can be compared with Solon's."""
    parts = []
    for strategy in results.comparison.strategies:
        ratio = results.speed(results.cell(strategy, None), network) if strategy != "solon" else None
        if ratio is not None:
            parts.append(f"{strategy_named(strategy).title} {ratio:.2g}")
    times = ", ".join(parts)
    if not parts:
        return None
    goal = f"{100 * (results.target_accuracy or 0.0):.1f} %"
    return f"On {network.name}, without an attack, the time to {goal} is, as a multiple of Solon's: {times}."


def _percent(cell: Cell) -> str:
    return f"{100 * cell.accuracies[-1]:.1f} %"


def _all(count: int) -> str:
    return "both" if count == 2 else f"all {count}"
