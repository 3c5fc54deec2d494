"""The sentences of a plan."""

import itertools
import math
from collections.abc import Iterator

from solon_fl.simulations.network import DELTA_BYTES
from solon_fl.simulations.plan.aggregating import AGGREGATORS
from solon_fl.simulations.plan.choices import Baseline, Choice, Plan
from solon_fl.simulations.plan.rounding import short
from solon_fl.simulations.plan.server_time import Kind

__all__ = ["MARGIN", "caveats_of", "name_of", "num_options", "options_of"]

MARGIN = 1.05  # an option that makes a round no shorter than by this factor is not worth its requirements

NAMES: dict[Kind, str] = {
    "no defence": "no defence",
    "signum": "Signum",
    "multikrum": "MultiKrum",
    "bulyan": "Bulyan",
    "draco-cyclic": "Draco (cyclic)",
    "draco-repetition": "Draco (repetition)",
}
EXACT = "--set code=exact makes every bit of the gradient correct."


def name_of(row: Choice | Baseline) -> str:
    """Return the name of a candidate, without its downlink."""
    if isinstance(row, Baseline):
        return NAMES[row.name]
    digests = " digests" if row.verification == "digest" else ""
    reactive = " reactive" if row.redundancy == "reactive" else ""
    return f"Solon{digests}{reactive}"


def options_of(choice: Choice) -> str:
    """Return the options of Solon that a choice uses, in words, or "" if it uses the defaults."""
    options = _options(choice)
    return ", ".join([*options[:-2], " and ".join(options[-2:])])


def num_options(choice: Choice) -> int:
    """Return how many options of Solon a choice uses."""
    return len(_options(choice))


def caveats_of(planned: Plan, use: Choice | Baseline) -> Iterator[str]:
    """Yield the requirements of a recommendation, and more that a reader may want to know about it."""
    if isinstance(use, Choice):
        yield _guarantee(use)
        if use.seconds_if_asked is not None:
            yield _referee(use, use.seconds_if_asked)
        if use.verification == "digest":
            yield (
                "Digests need nodes that compute the same bits, so the same hardware, software and number of threads. "
                "solon_fl.strategies.calibrate tells you whether yours do." + _without_digests(planned, use)
            )
        if use.redundancy == "reactive":
            yield from _rare_faults(planned, use)
    if use.downlink == "delta":
        yield _state(planned, use)
    if isinstance(use, Choice) and planned.best.seconds.total < use.seconds.total:
        yield _not_the_fastest(planned.best)
    yield from _break_evens(planned)
    yield from _estimates(planned, use)


def _options(choice: Choice) -> list[str]:
    digests, reactive = choice.verification == "digest", choice.redundancy == "reactive"
    taken = (choice.referee, digests, reactive, choice.downlink == "delta")
    return list(itertools.compress(("a referee", "digests", "reactive redundancy", "downlink='delta'"), taken))


def _guarantee(choice: Choice) -> str:
    groups = "the group" if choice.num_groups == 1 else f"each of the {choice.num_groups} groups"
    whatever = f"Whatever up to s = {choice.byzantine} liars in {groups} do, "
    if choice.code == "exact":
        return whatever + "every bit of the gradient is correct, as long as all honest nodes compute the same bits."
    return (
        f"{whatever}the gradient's relative error is at most {choice.certificate:.1g}. This bound, the certificate, is "
        "proved for the worst lie that passes for float noise. docs/measurements/decoding-accuracy.md has the errors "
        "that attacks attained."
        + ("" if choice.verification == "digest" else " If all nodes compute the same bits, " + EXACT)
    )


def _referee(choice: Choice, seconds_if_asked: float) -> str:
    bits = " It must compute the same bits as the nodes." if choice.config().needs_equal_bits else ""
    return (
        "The referee is a machine that you trust and that has the data: the server, which then runs your client, or "
        f"nodes of yours that are in no group.{bits} If a group's shares don't settle its gradient, the referee "
        f"computes the group's {choice.batches_per_node} batches itself. Such a round takes about "
        f"{short(seconds_if_asked)} s, and nodes that lied get no more tasks."
    )


def _without_digests(planned: Plan, choice: Choice) -> str:
    """Return what to do if bits differ, which rules out the exact code, too, and what to do if they do not."""
    if choice.code == "exact":
        return " If they don't, use --set code=fourier --set verification=algebra: the exact code needs them, too."
    without = _otherwise(planned, choice, "If they don't", "verification", "algebra")
    return f"{without} If they do, {EXACT}"


def _rare_faults(planned: Plan, choice: Choice) -> Iterator[str]:
    times = short(choice.computations / choice.num_nodes)
    yield (
        f"Reactive redundancy asks {choice.asked_per_group} of the {choice.group_size} nodes of a group, so all nodes "
        f"together compute {times} times as many batches as without a defence. After a fault, the server asks the "
        f"others of the group, too. A round in which it asks all nodes takes about {short(choice.seconds_if_woken)} s."
        + _otherwise(planned, choice, "If most rounds have faults", "redundancy", "full")
    )


def _state(planned: Plan, use: Choice | Baseline) -> str:
    load = planned.workload
    whole, patches = (
        load.network.transfer_seconds(num_nodes=use.num_asked, bytes_out=bytes_out, bytes_in=0)
        for bytes_out in (use.num_asked * load.bytes_of_model, use.bytes_out)
    )
    return (
        f"downlink='delta' needs nodes that keep the model from round to round. They compute on a rounded copy of it. "
        f"A patch is assumed to take {DELTA_BYTES:g} of the model's bytes. The first round sends the whole model, "
        f"which takes {short(whole - patches)} s more."
        + _otherwise(planned, use, "If nodes can't keep the model", "downlink", "full")
    )


def _not_the_fastest(best: Choice) -> str:
    return (
        f"Solon with {options_of(best)} would be the fastest, with {short(best.seconds.total)} s a round. That saves "
        f"less than {100 * (MARGIN - 1):.0f} %, which is not worth the requirements of another option."
    )


def _otherwise(planned: Plan, use: Choice | Baseline, condition: str, name: str, value: str) -> str:
    """Return a sentence with the duration of a round without an option, if the plan has one, or ""."""
    if isinstance(use, Baseline):
        rows: list[Choice | Baseline] = [row for row in planned.baselines if row.name == use.name]
    else:
        rows = list(planned.best_of_each_variant().values())
    without = (row for row in rows if getattr(row, name) == value)
    other = min(without, key=lambda row: row.seconds.total, default=None)
    if other is None:
        return ""
    return f" {condition}, use --set {name}={value}: a round then takes {short(other.seconds.total)} s."


def _break_evens(planned: Plan) -> Iterator[str]:
    for name in ("no defence", "draco-repetition"):
        rows = [baseline for baseline in planned.baselines if baseline.name == name]
        if not rows:
            continue
        factor = planned.break_even(*rows)
        if factor == 0:
            yield f"Solon is not faster than {NAMES[name]}, whatever the rates of the links."
        elif factor == math.inf:
            yield f"Solon is faster than {NAMES[name]}, whatever the rates of the links."
        else:
            yield (
                f"Solon is faster than {NAMES[name]} as long as links have less than {short(factor)} times the rates "
                "of this network."
            )


def _estimates(planned: Plan, use: Choice | Baseline) -> Iterator[str]:
    faster = [
        f"{name_of(row)} {short(row.seconds.total)} s"
        for name in AGGREGATORS
        if (row := planned.baseline(name)) is not None and row.seconds.total < use.seconds.total
    ]
    if faster:
        yield (
            f"If an estimate of the gradient is enough, these rules are faster: {', '.join(faster)}. Attacks can bias "
            "their estimates: docs/explanation/when-to-use.md shows what that costs."
        )
