"""What a plan says in sentences."""

import itertools
import math
from collections.abc import Iterator

from solon_fl.simulations.network import DELTA_BYTES
from solon_fl.simulations.plan.aggregating import AGGREGATORS
from solon_fl.simulations.plan.choices import Baseline, Choice, Plan
from solon_fl.simulations.plan.rounding import short
from solon_fl.simulations.plan.server_time import Kind

__all__ = ["caveats_of", "name_of", "num_options", "options_of"]

NAMES: dict[Kind, str] = {
    "no defence": "no defence",
    "signum": "Signum",
    "multikrum": "MultiKrum",
    "bulyan": "Bulyan",
    "draco-cyclic": "Draco (cyclic)",
    "draco-repetition": "Draco (repetition)",
}
EXACT = "--set code=exact makes every bit right."


def name_of(row: Choice | Baseline) -> str:
    """Return the name of a candidate, without its downlink."""
    if isinstance(row, Baseline):
        return NAMES[row.name]
    digests = " digests" if row.verification == "digest" else ""
    reactive = " reactive" if row.redundancy == "reactive" else ""
    return f"Solon{digests}{reactive}"


def options_of(choice: Choice) -> str:
    """Return the options of Solon that a choice takes, in words; "" if they are the defaults."""
    options = _options(choice)
    return ", ".join([*options[:-2], " and ".join(options[-2:])])


def num_options(choice: Choice) -> int:
    """Return how many options of Solon a choice takes."""
    return len(_options(choice))


def caveats_of(planned: Plan, use: Choice | Baseline) -> Iterator[str]:
    """Yield what a recommendation presupposes, and what else one may want to know of it."""
    if isinstance(use, Choice):
        yield _guarantee(use)
        if use.seconds_if_asked is not None:
            yield _referee(use, use.seconds_if_asked)
        if use.verification == "digest":
            yield (
                "Digests need nodes that compute the same bits: the same hardware, software and number of threads "
                "(solon_fl.strategies.calibrate says whether yours do)" + _without_digests(planned, use)
            )
        if use.redundancy == "reactive":
            yield from _rare_faults(planned, use)
    if use.downlink == "delta":
        yield _state(planned, use)
    yield from _break_evens(planned)
    yield from _estimates(planned, use)


def _options(choice: Choice) -> list[str]:
    digests, reactive = choice.verification == "digest", choice.redundancy == "reactive"
    taken = (choice.referee, digests, reactive, choice.downlink == "delta")
    return list(itertools.compress(("a referee", "digests", "reactive redundancy", "downlink='delta'"), taken))


def _guarantee(choice: Choice) -> str:
    borne = f"Whatever the liars do (s = {choice.byzantine} in each of {choice.num_groups} groups), the gradient is "
    if choice.code == "exact":
        return borne + "proved to be right bit for bit, as long as all honest nodes compute the same bits."
    return (
        f"{borne}proved to be right to {choice.certificate:.1g} of its size, the certificate: a bound for the worst "
        "lie that passes for float noise. The attacks that were tried come nowhere near it."
        + ("" if choice.verification == "digest" else " Where nodes compute the same bits, " + EXACT)
    )


def _referee(choice: Choice, seconds_if_asked: float) -> str:
    bits = "; it must compute the same bits as they do" if choice.config().needs_equal_bits else ""
    return (
        "The referee is whom you trust with the data: what your nodes run, in the server's process, or nodes of yours "
        f"that are in no group{bits}. Where a group's shares don't settle its gradient, it computes the "
        f"{choice.batches_per_node} batches itself: such a round takes about {short(seconds_if_asked)} s, and whoever "
        "lied gets no more tasks."
    )


def _without_digests(planned: Plan, choice: Choice) -> str:
    """Return what to do where bits differ: the exact code is of no use then either, and where not, better."""
    if choice.code == "exact":
        return ". If they don't: --set code=fourier --set verification=algebra, for the exact code needs that, too."
    without = _otherwise(planned, choice, "If they don't", "verification", "algebra")
    return f"{without} If they do, {EXACT}"


def _rare_faults(planned: Plan, choice: Choice) -> Iterator[str]:
    times = short(choice.computations / choice.num_nodes)
    yield (
        f"Reactive redundancy asks {choice.asked_per_group} of the {choice.group_size} nodes of a group, so that all "
        f"nodes together compute {times} times what no defence does. A fault wakes the others of its group: a round "
        f"that wakes all takes about {short(choice.seconds_if_woken)} s"
        + _otherwise(planned, choice, "If there are faults in most rounds", "redundancy", "full")
    )


def _state(planned: Plan, use: Choice | Baseline) -> str:
    load = planned.workload
    whole, patches = (
        load.network.transfer_seconds(num_nodes=use.num_asked, bytes_out=bytes_out, bytes_in=0)
        for bytes_out in (use.num_asked * load.bytes_of_model, use.bytes_out)
    )
    return (
        f"downlink='delta' needs nodes that keep the model from round to round, and computes on a rounded copy of it. "
        f"A patch is assumed to take {DELTA_BYTES:g} of the model's bytes; the first round sends the whole model, "
        f"which takes {short(whole - patches)} s more"
        + _otherwise(planned, use, "If nodes can't keep it", "downlink", "full")
    )


def _otherwise(planned: Plan, use: Choice | Baseline, condition: str, name: str, value: str) -> str:
    """Return how long a round takes without an option, as far as that is in the plan."""
    if isinstance(use, Baseline):
        rows: list[Choice | Baseline] = [row for row in planned.baselines if row.name == use.name]
    else:
        rows = list(planned.best_of_each_variant().values())
    without = (row for row in rows if getattr(row, name) == value)
    other = min(without, key=lambda row: row.seconds.total, default=None)
    if other is None:
        return "."
    return f". {condition}: --set {name}={value}, {short(other.seconds.total)} s a round."


def _break_evens(planned: Plan) -> Iterator[str]:
    for name in ("no defence", "draco-repetition"):
        rows = [baseline for baseline in planned.baselines if baseline.name == name]
        if not rows:
            continue
        factor = planned.break_even(*rows)
        if factor == 0:
            yield f"Solon is never faster than {NAMES[name]}, whatever the links."
        elif factor == math.inf:
            yield f"Solon is faster than {NAMES[name]}, whatever the links."
        else:
            yield f"Solon is faster than {NAMES[name]} on links below {short(factor)} times these rates."


def _estimates(planned: Plan, use: Choice | Baseline) -> Iterator[str]:
    faster = [
        f"{name_of(row)} {short(row.seconds.total)} s"
        for name in AGGREGATORS
        if (row := planned.baseline(name)) is not None and row.seconds.total < use.seconds.total
    ]
    if faster:
        yield (
            f"Faster, if an estimate of the gradient is enough, which attacks can move: {', '.join(faster)} "
            "(docs/explanation/when-to-use.md has what they lose)."
        )
