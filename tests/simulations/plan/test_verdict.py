from typing import Any

import pytest

from solon_fl.config import SolonConfig
from solon_fl.simulations.network import NETWORKS
from solon_fl.simulations.plan.choices import Baseline, Choice, Plan
from solon_fl.simulations.plan.planner import plan
from solon_fl.simulations.plan.regrouping import Regrouping
from solon_fl.simulations.plan.server_time import Kind
from solon_fl.simulations.plan.verdict import verdict_of
from solon_fl.simulations.plan.workload import Workload


def no_seconds(*_: object) -> float:
    return 0.0


def solon_is_slower(kind: Kind, *_: object) -> float:
    return 0.05 if kind == "solon" else 0.0


def small_plan(**changes: Any) -> Plan:
    """15 nodes at home, groups of 5 or 15, and batches that take so little time that the links decide."""
    settings: dict[str, Any] = {"num_nodes": 15, "byzantine": 2, "dim": 1_000_000, "batch_seconds": 0.001}
    how: dict[str, Any] = dict.fromkeys(("verification", "redundancy", "downlink"), "any")
    how |= {name: changes.pop(name) for name in tuple(changes) if name in how}
    server_seconds = changes.pop("server_seconds", no_seconds)
    workload = Workload(**{**settings, "network": NETWORKS["home-20m"], **changes})
    return plan(workload, server_seconds=server_seconds, **how)


PLAIN = {"verification": "algebra", "redundancy": "full", "downlink": "full"}


def seconds(planned: Plan, name: Kind) -> float:
    baseline = planned.baseline(name)
    assert baseline is not None
    return baseline.seconds.total


def told(planned: Plan, regrouping: Regrouping | None = None) -> str:
    verdict = verdict_of(planned, regrouping)
    return " ".join((verdict.sentence, *verdict.caveats))


def test_solon_where_it_is_the_fastest_and_by_how_much() -> None:
    planned = small_plan(**PLAIN)
    verdict = verdict_of(planned)
    best = planned.best
    assert verdict.use == best
    total, draco, nothing = best.seconds.total, seconds(planned, "draco-repetition"), seconds(planned, "no defence")
    assert total < nothing < draco
    assert verdict.sentence == (
        "Use Solon, in groups of r = 15 nodes that send 1/11 of the gradient each (k = 11). A round takes about "
        f"{total:.2f} s. This is {draco / total:.2f} times as fast as Draco ({draco:.2f} s) and {nothing / total:.2f} "
        f"times as fast as no defence ({nothing:.2f} s)."
    )
    assert verdict.lines == (
        "  SolonConfig(num_nodes=15, byzantine=2, compression=11, group_size=15)",
        "  solon-fl simulate --nodes 15 --byzantine 2 --compression 11 --set group_size=15",
    )
    assert not any(word in told(planned) for word in ("Digests", "Reactive", "downlink"))


def test_no_defence_that_is_faster_is_in_the_first_sentence() -> None:
    planned = small_plan(**PLAIN, batch_seconds=0.2, server_seconds=solon_is_slower)
    verdict = verdict_of(planned, None)
    draco, nothing = seconds(planned, "draco-repetition"), seconds(planned, "no defence")
    assert isinstance(verdict.use, Baseline)
    assert (verdict.use.name, verdict.use.seconds.total) == ("draco-repetition", draco)
    best = planned.best.seconds.total
    assert nothing < draco < best
    assert verdict.sentence == (
        f"Don't use Solon here: Draco (repetition) tolerates as many liars, and takes about {draco:.2f} s a round. "
        f"Solon takes at least {best:.2f} s, about as long. No defence, which tolerates no liar, takes {nothing:.2f} s."
    )
    assert verdict.lines == ("  solon-fl simulate --nodes 15 --byzantine 2 --strategy draco-repetition",)

    def draco_is_slow(kind: Kind, *_: object) -> float:
        return 10.0 if kind == "draco-repetition" else 0.0

    planned = small_plan(**PLAIN, batch_seconds=0.2, server_seconds=draco_is_slow)
    sentence = verdict_of(planned).sentence
    assert sentence.startswith("Use Solon, in groups of r = ")
    assert sentence.endswith(f" s). No defence, which tolerates no liar, takes {nothing:.2f} s.")


def test_no_defence_only_if_nobody_lies_or_is_missing() -> None:
    settings: dict[str, Any] = {"byzantine": 0, "batch_seconds": 10.0, "num_nodes": 10, **PLAIN}

    def draco_is_slow(kind: Kind, *_: object) -> float:
        return 0.0 if kind == "no defence" else 30.0

    planned = small_plan(**settings, server_seconds=draco_is_slow)
    verdict = verdict_of(planned)
    assert isinstance(verdict.use, Baseline)
    assert verdict.use.name == "no defence"
    assert "Don't use Solon here: there are no liars to tolerate. No defence takes about" in verdict.sentence
    ratio = planned.best.seconds.total / verdict.use.seconds.total
    assert f" s, {ratio:.2f} times as long." in verdict.sentence
    assert verdict.lines == ("  solon-fl simulate --nodes 10 --byzantine 0 --strategy fedavg",)
    for unsafe in ({"byzantine": 1}, {"stragglers": 1}):
        use = verdict_of(small_plan(**{**settings, **unsafe}, server_seconds=draco_is_slow)).use
        assert not isinstance(use, Baseline) or use.name != "no defence"


def test_draco_that_bears_liars_among_all_nodes_only_is_no_rival() -> None:
    def cyclic_is_free(kind: Kind, *_: object) -> float:
        return 0.0 if kind == "draco-cyclic" else 100.0

    planned = small_plan(server_seconds=cyclic_is_free)
    assert seconds(planned, "draco-cyclic") < planned.best.seconds.total < seconds(planned, "draco-repetition")
    assert isinstance(verdict_of(planned).use, Choice)


def test_an_option_that_gains_little_is_not_taken() -> None:
    planned = small_plan()
    best = planned.best
    use = verdict_of(planned).use
    assert isinstance(use, Choice)
    assert use.downlink == "delta"
    options = use.variant != best.variant
    assert options, "the fastest has options that gain less than 5 %"
    assert use.seconds.total <= 1.05 * best.seconds.total
    assert f"would be the fastest, with {best.seconds.total:.2f} s a round. That saves less than 5 %" in told(planned)
    simpler = [choice for choice in planned.choices if choice.variant == ("algebra", "full", "full")]
    assert min(choice.seconds.total for choice in simpler) > 1.05 * best.seconds.total


def test_everything_that_is_presupposed_is_said_with_a_way_out() -> None:
    settings: dict[str, Any] = {"num_nodes": 20, "batch_seconds": 0.5, "network": NETWORKS["cluster-1g"].scaled(0.01)}
    planned = small_plan(**settings)
    verdict = verdict_of(planned)
    use = verdict.use
    assert isinstance(use, Choice)
    assert use.variant == ("digest", "reactive", "delta")
    assert verdict.sentence.startswith(
        "Use Solon with digests, reactive redundancy and downlink='delta', in groups of r = 10 nodes that send 1/8 "
    )
    for name, value, condition in (
        ("verification", "algebra", "If they don't"),
        ("redundancy", "full", "If most rounds have faults"),
        ("downlink", "full", "If nodes can't keep the model"),
    ):
        other = small_plan(**settings, **{name: value}).best.seconds.total
        assert f"{condition}, use --set {name}={value}: a round then takes {other:.1f} s." in told(planned)
        assert condition not in told(small_plan(**settings, **{name: getattr(use, name)})), "no other is in the plan"
    assert f"A round in which it asks all nodes takes about {use.seconds_if_woken:.1f} s." in told(planned)
    longer = 8 * (use.num_asked * 4_000_000 - use.bytes_out) / 1e7
    assert f"The first round sends the whole model, which takes {longer:.1f} s more." in told(planned)


def test_the_way_out_of_a_baseline_is_its_own() -> None:
    planned = small_plan(batch_seconds=0.2, verification="algebra", redundancy="full", server_seconds=solon_is_slower)
    use = verdict_of(planned).use
    assert isinstance(use, Baseline)
    assert (use.name, use.downlink) == ("draco-repetition", "delta")
    (whole,) = (row for row in planned.baselines if (row.name, row.downlink) == ("draco-repetition", "full"))
    assert f"--set downlink=full: a round then takes {whole.seconds.total:.2f} s." in told(planned)
    assert verdict_of(planned).lines[0].endswith(" --set downlink=delta --strategy draco-repetition")


def test_break_evens_are_those_of_all_downlinks() -> None:
    planned = small_plan(batch_seconds=0.2)
    rows = [row for row in planned.baselines if row.name == "no defence"]
    factor = planned.break_even(*rows)
    assert 0 < factor < planned.break_even(rows[0])
    assert f"faster than no defence as long as links have less than {factor:.2f} times the rates" in told(planned)


def test_estimates_that_are_faster_are_named() -> None:
    planned = small_plan()
    names = [name for name in ("signum", "multikrum", "bulyan") if seconds(planned, name) < planned.best.seconds.total]
    assert names == ["signum"]
    faster = f"these rules are faster: Signum {seconds(planned, 'signum'):.2f} s. Attacks"
    assert f"If an estimate of the gradient is enough, {faster}" in told(planned)


def test_what_is_about_as_fast_is_not_called_faster() -> None:
    planned = small_plan(**PLAIN, num_nodes=5)  # k = 1 alone, which is Draco's repetition code
    assert planned.best.seconds.total == seconds(planned, "draco-repetition")
    assert " s. This is about as fast as Draco (" in verdict_of(planned).sentence


def test_regrouping_leaves_what_is_within_the_risk() -> None:
    planned = small_plan()
    assert verdict_of(planned, Regrouping(liars=2)).use == verdict_of(planned).use
    verdict = verdict_of(planned, Regrouping(liars=3, rounds=1))
    assert (verdict.use, verdict.lines) == (None, ())
    assert verdict.sentence == Regrouping(liars=3, rounds=1).sentence(planned)
    daring = Regrouping(liars=3, rounds=1, risk=0.5)
    use = verdict_of(planned, daring).use
    assert isinstance(use, Choice)
    assert use.group_size == 5
    assert daring.overflow(use)[1] < 0.5 < daring.overflow(planned.best)[1]
    assert all("regroup" in line for line in verdict_of(planned, daring).lines)


def test_draco_is_no_rival_where_more_than_its_liars_are_regrouped() -> None:
    planned = small_plan(batch_seconds=0.2, **PLAIN, server_seconds=solon_is_slower)
    assert isinstance(verdict_of(planned).use, Baseline)
    assert isinstance(verdict_of(planned, Regrouping(liars=2)).use, Baseline)
    assert isinstance(verdict_of(planned, Regrouping(liars=3, rounds=1, risk=0.5)).use, Choice)


@pytest.mark.parametrize("stragglers", [0, 1])
def test_the_line_to_use_is_a_config(stragglers: int) -> None:
    planned = small_plan(stragglers=stragglers, rtol=2e-6)
    verdict = verdict_of(planned)
    assert isinstance(verdict.use, Choice)
    line = verdict.lines[0].strip()
    assert eval(line, {"SolonConfig": SolonConfig}) == verdict.use.config()  # what users would paste
