"""The recommendation of a plan, and its requirements."""

from dataclasses import dataclass, replace
from typing import Any

from solon_fl.config import SolonConfig
from solon_fl.simulations.plan.choices import Baseline, Choice, Plan
from solon_fl.simulations.plan.regrouping import Regrouping
from solon_fl.simulations.plan.rounding import short
from solon_fl.simulations.plan.sentences import MARGIN, caveats_of, name_of, num_options, options_of
from solon_fl.simulations.plan.server_time import Kind
from solon_fl.simulations.settings import defaults_of

__all__ = ["Verdict", "verdict_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The recommendation.

    Attributes
    ----------
    use : Choice, Baseline or None
        The recommended row, or None if nothing is safe enough.
    sentence : str
        The recommendation in words.
    lines : tuple of str
        Code and command to use it.
    caveats : tuple of str
        Its requirements, and what to do where they do not hold.
    """

    use: Choice | Baseline | None
    sentence: str
    lines: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()


def verdict_of(planned: Plan, regrouping: Regrouping | None = None) -> Verdict:
    """Recommend the fastest row that tolerates s liars in every group: a choice of Solon, or Draco's repetition code.

    Among variants of Solon within 5 % of the fastest, the one with the fewest options is recommended, because every
    option has requirements. No defence is a candidate only if byzantine and stragglers are 0.

    Parameters
    ----------
    planned : Plan
        A plan with all choices that you would accept.
    regrouping : Regrouping, optional
        Excludes choices beyond its risk. With more than s liars in all, it also excludes Draco, which keeps its groups.

    Raises
    ------
    ConfigurationError
        If no choice of Solon can be recommended.
    """
    regrouped = regrouping is not None and regrouping.liars > planned.workload.byzantine
    beyond = []
    if regrouping is not None:
        within = tuple(choice for choice in planned.choices if regrouping.overflow(choice)[1] <= regrouping.risk)
        if all(choice.is_void for choice in within):
            return Verdict(use=None, sentence=regrouping.sentence(planned))
        if planned.best not in within:
            beyond.append(f"Faster choices are left out because they exceed the accepted risk of {regrouping.risk:g}.")
        planned = replace(planned, choices=within)
    best = _simplest(planned)
    candidates: list[Choice | Baseline] = [best]
    candidates += [row for row in planned.baselines if not regrouped and _bears_as_many(planned, row)]
    use = min(candidates, key=lambda row: row.seconds.total)
    return Verdict(
        use=use,
        sentence=_use_solon(planned, use) if isinstance(use, Choice) else _use_another(planned, use),
        lines=tuple(_lines(use, planned, regrouped=regrouped)),
        caveats=(*beyond, *caveats_of(planned, use)),
    )


def _simplest(planned: Plan) -> Choice:
    """Return the choice with the fewest options among those that are hardly slower than the fastest."""
    most = MARGIN * planned.best.seconds.total
    fast = [choice for choice in planned.best_of_each_variant().values() if choice.seconds.total <= most]
    return min(fast, key=lambda choice: (num_options(choice), choice.seconds.total))


def _bears_as_many(planned: Plan, baseline: Baseline) -> bool:
    load = planned.workload
    nobody = load.byzantine == load.stragglers == 0
    return baseline.name == "draco-repetition" or (baseline.name == "no defence" and nobody)


def _use_solon(planned: Plan, best: Choice) -> str:
    total = best.seconds.total
    ratios, faster = [], ""
    rivals: tuple[tuple[Kind, str, str], ...] = (
        ("draco-repetition", "Draco", "Draco, which keeps its groups,"),
        ("no defence", "no defence", "No defence, which tolerates no liar,"),
    )
    for name, title, reservation in rivals:
        other = planned.baseline(name)
        if other is None:
            continue
        seconds = other.seconds.total
        if seconds >= total:
            ratio = f"{short(seconds / total)} times" if seconds > MARGIN * total else "about"
            ratios.append(f"{ratio} as fast as {title} ({short(seconds)} s)")
        else:
            faster += f" {reservation} takes {short(seconds)} s."
    options = options_of(best)
    with_options = f" with {options}" if options else ""
    share = f"1/{best.compression} of the gradient" if best.compression > 1 else "the whole gradient"
    compared = f" This is {' and '.join(ratios)}." if ratios else ""
    return (
        f"Use Solon{with_options}, in groups of r = {best.group_size} nodes that send {share} each "
        f"(k = {best.compression}). A round takes about {short(total)} s.{compared}{faster}"
    )


def _use_another(planned: Plan, use: Baseline) -> str:
    best, seconds = planned.best.seconds.total, use.seconds.total
    if use.name == "no defence":
        sentence = f"Don't use Solon here: there are no liars to tolerate. No defence takes about {short(seconds)} s"
    else:
        sentence = f"Don't use Solon here: {name_of(use)} tolerates as many liars, and takes about {short(seconds)} s"
    ratio = f"{short(best / seconds)} times" if best > MARGIN * seconds else "about"
    sentence += f" a round. Solon takes at least {short(best)} s, {ratio} as long."
    nothing = planned.baseline("no defence")
    if use.name != "no defence" and nothing is not None and nothing.seconds.total < seconds:
        sentence += f" No defence, which tolerates no liar, takes {short(nothing.seconds.total)} s."
    return sentence


def _lines(use: Choice | Baseline, planned: Plan, *, regrouped: bool) -> list[str]:
    """Return code and command to use it."""
    load = planned.workload
    settings: dict[str, Any] = {"byzantine": load.byzantine}
    start = f"  solon-fl simulate --nodes {load.num_nodes}"
    if isinstance(use, Baseline):
        strategy = {"no defence": "fedavg"}.get(use.name, use.name)
        settings |= {} if use.downlink == "full" else {"downlink": use.downlink}
        return [f"{start}{_options(settings)} --strategy {strategy}"]
    settings |= {"compression": use.compression, "group_size": use.group_size}
    defaults = defaults_of(SolonConfig)
    for name in ("stragglers", "code", "rtol", "verification", "redundancy", "downlink", "referee"):
        if (value := getattr(use, name)) != defaults[name]:
            settings[name] = value
    if regrouped:
        settings["regroup"] = "round"
    arguments = "".join(f", {name}={value!r}" for name, value in settings.items())
    code = [f"  SolonConfig(num_nodes={use.num_nodes}{arguments})"]
    if use.referee:
        code.append("  SolonStrategy(config, ..., referee=MyClient())")
    return [*code, start + _options(settings)]


def _options(settings: dict[str, Any]) -> str:
    def option(name: str, value: Any) -> str:
        if name == "referee":
            return " --referee"
        return f" --{name} {value}" if name in ("byzantine", "compression") else f" --set {name}={value}"

    return "".join(option(name, value) for name, value in settings.items())
