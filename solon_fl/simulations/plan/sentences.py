"""What a plan says in sentences, with rich's markup, and the lines to use it."""

import math
from typing import Any

from solon_fl.config import SolonConfig
from solon_fl.simulations.plan.choices import Choice, Plan
from solon_fl.simulations.plan.rounding import short
from solon_fl.simulations.plan.tables import is_plain
from solon_fl.simulations.settings import defaults_of

__all__ = ["lines_to_use", "plan_sentences", "variants_sentence"]

SAME_BITS = (
    "Digests presuppose nodes that compute the same bits: the same hardware, software and number of threads (where "
    "they don't, a group fails unless r >= 2 s + e + k)."
)
RARE_FAULTS = (
    "Reactive redundancy presupposes that faults are rare: a round with one takes its computation twice, and sends "
    "what full redundancy sends. Its rows hold for rounds without."
)


def plan_sentences(planned: Plan) -> list[str]:
    """Return which choice is best, what it costs and presupposes, and how it compares with each baseline."""
    best = planned.best
    total = best.seconds.total
    model = planned.workload.network.transfer_seconds(num_nodes=best.num_asked, bytes_out=best.bytes_out, bytes_in=0)
    lines = [
        f"[bold]Best: r = {best.group_size}, k = {best.compression}[/], {short(total)} s a round. "
        f"Whatever the liars do (s = {best.byzantine} in each of {best.num_groups} groups), the gradient is proved to "
        f"be right {_how_right(best)}.",
        f"A node pays {best.batches_per_node} times the computation of no defence and sends "
        f"1/{best.compression} of the gradient. Sending out the model takes {short(model)} s"
        f"{' in every row' if is_plain(planned.choices) else ''}.",
    ]
    lines += _presupposed(best)
    for baseline in planned.baselines:
        other = baseline.seconds.total
        least = "" if baseline.name == "no defence" else "at least "
        longer, shorter = f"{short(other / total)} times as long", f"Solon {short(total / other)} times as long"
        ratio = longer if other >= total else shorter
        lines.append(
            f"{baseline.name.capitalize()} (tolerates {baseline.tolerates}) takes {least}{short(other)} s, {ratio}; "
            f"Solon {_break_even(planned.break_even(baseline))}."
        )
    return lines


def _how_right(choice: Choice) -> str:
    if choice.code == "exact":
        return "bit for bit, as long as all honest nodes compute the same bits"
    return (
        f"to {choice.certificate:.1g} of its size, the certificate: a bound for the worst lie that passes for float "
        "noise. The attacks that were tried come nowhere near it. Where nodes compute the same bits, no bit need be "
        "wrong: --set code=exact"
    )


def variants_sentence(everything: Plan) -> str:
    """Return which of all choices is cheapest in seconds, which in computation, and what they presuppose."""
    best, thriftiest = everything.best, everything.thriftiest
    seconds = f"{short(best.seconds.total)} s a round"
    if thriftiest == best:
        cheapest = f"[bold]Cheapest in seconds and in computation: {_name(best)}[/], {seconds}"
    else:
        cheapest = (
            f"[bold]Cheapest in seconds: {_name(best)}[/], {seconds}; "
            f"[bold]in computation: {_name(thriftiest)}[/], {short(thriftiest.seconds.total)} s"
        )
    times = short(thriftiest.computations / thriftiest.num_nodes)
    return f"{cheapest} and {times} times the computations of no defence. {SAME_BITS} {RARE_FAULTS}"


def _presupposed(choice: Choice) -> list[str]:
    """Return a sentence for everything that a choice presupposes."""
    sentences = []
    if choice.verification == "digest":
        sentences.append(SAME_BITS)
    if choice.redundancy == "reactive":
        times = short(choice.computations / choice.num_nodes)
        sentences.append(
            f"{choice.asked_per_group} of the {choice.group_size} nodes of a group are asked, so that all nodes "
            f"together compute {times} times what no defence does. {RARE_FAULTS}"
        )
    return sentences


def lines_to_use(best: Choice, *, regrouped: bool) -> list[str]:
    """Return a choice as a `SolonConfig` and as a command.

    Parameters
    ----------
    best : Choice
        To be used.
    regrouped : bool
        Whether nodes are to be put into new groups in every round.
    """
    settings: dict[str, Any] = {
        "byzantine": best.byzantine,
        "compression": best.compression,
        "group_size": best.group_size,
    }
    defaults = defaults_of(SolonConfig)
    for name in ("stragglers", "code", "rtol", "verification", "redundancy"):
        if (value := getattr(best, name)) != defaults[name]:
            settings[name] = value
    if regrouped:
        settings["regroup"] = "round"
    arguments = "".join(f", {name}={value!r}" for name, value in settings.items())
    options = "".join(
        f" --{name} {value}" if name in ("byzantine", "compression") else f" --set {name}={value}"
        for name, value in settings.items()
    )
    return [
        "Use it:",
        f"  SolonConfig(num_nodes={best.num_nodes}{arguments})",
        f"  solon-fl simulate --nodes {best.num_nodes}{options}",
    ]


def _break_even(factor: float) -> str:
    if factor == 0:
        return "is never faster, whatever the links"
    if factor == math.inf:
        return "is faster, whatever the links"
    return f"is faster on links below {short(factor)} times these rates"


def _name(choice: Choice) -> str:
    """Return a choice in words."""
    redundancy = f"{choice.redundancy} redundancy"
    digests = " with digests" if choice.verification == "digest" else ""
    return f"{redundancy}{digests} (r = {choice.group_size}, k = {choice.compression})"
