import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from solon_fl.baselines import CyclicCode, RepetitionCode
from solon_fl.coding import CertificateWarning
from solon_fl.coding.sections import padded
from solon_fl.config import DownlinkName, Redundancy, SolonConfig, Verification
from solon_fl.downlink.codec import make_patch
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import Scenario, simulate
from solon_fl.simulations.network import NETWORKS, round_seconds
from solon_fl.simulations.plan import server_time
from solon_fl.simulations.plan.aggregating import AGGREGATORS
from solon_fl.simulations.plan.choices import Baseline, Choice, Plan
from solon_fl.simulations.plan.planner import plan
from solon_fl.simulations.plan.server_time import Kind, MeasuredServer
from solon_fl.simulations.plan.workload import Workload
from solon_fl.wire import to_array

HOME = NETWORKS["home-20m"]
VARIANTS: list[tuple[Verification, Redundancy]] = [
    ("algebra", "full"),
    ("algebra", "reactive"),
    ("digest", "full"),
    ("digest", "reactive"),
]


def no_seconds(*_: object) -> float:
    return 0.0


def small_plan(**changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "num_nodes": 20,
        "byzantine": 2,
        "dim": 1_000_000,
        "batch_seconds": 0.01,
        "network": HOME,
    }
    how = {name: changes.pop(name) for name in ("verification", "redundancy", "downlink") if name in changes}
    server_seconds = changes.pop("server_seconds", no_seconds)
    return plan(Workload(**{**settings, **changes}), server_seconds=server_seconds, **how)


def named(planned: Plan, name: Kind) -> Baseline:
    return next(baseline for baseline in planned.baselines if baseline.name == name)


@pytest.mark.filterwarnings("ignore::solon_fl.coding.CertificateWarning")
@pytest.mark.parametrize("byzantine", [0, 1, 2])
@pytest.mark.parametrize("stragglers", [0, 1])
@pytest.mark.parametrize("num_nodes", [6, 7, 12])
@pytest.mark.parametrize(("verification", "redundancy"), VARIANTS)
def test_what_is_listed_is_what_can_be_configured(
    num_nodes: int, byzantine: int, stragglers: int, verification: Verification, redundancy: Redundancy
) -> None:
    possible = set()
    for group_size in range(1, num_nodes + 1):
        for compression in range(1, num_nodes + 1):
            try:
                config = SolonConfig(
                    num_nodes=num_nodes,
                    byzantine=byzantine,
                    compression=compression,
                    stragglers=stragglers,
                    group_size=group_size,
                    verification=verification,
                    redundancy=redundancy,
                )
            except ConfigurationError:
                continue
            possible.add(config)
    choices = small_plan(
        num_nodes=num_nodes,
        byzantine=byzantine,
        stragglers=stragglers,
        verification=verification,
        redundancy=redundancy,
    ).choices
    assert {choice.config() for choice in choices} == possible
    assert len(choices) == len(possible)
    for choice in choices:
        config = choice.config()
        asked = config.group_size if redundancy == "full" else config.num_agreeing + stragglers
        assert (choice.asked_per_group, choice.batches_per_node) == (asked, config.batches_per_group)
        assert choice.certificate == config.make_decoder().certificate


@given(
    st.sampled_from([(12, 1), (20, 2), (30, 3)]),
    st.integers(1, 10**8),
    st.floats(0, 10),
    st.sampled_from(sorted(NETWORKS)),
)
def test_larger_k_never_sends_more_and_choices_come_in_order(
    nodes: tuple[int, int], dim: int, batch_seconds: float, network: str
) -> None:
    num_nodes, byzantine = nodes
    planned = small_plan(
        num_nodes=num_nodes, byzantine=byzantine, dim=dim, batch_seconds=batch_seconds, network=NETWORKS[network]
    )
    totals = [choice.seconds.total for choice in planned.choices]
    assert totals == sorted(totals)
    by_compression = sorted(planned.choices, key=lambda choice: (choice.group_size, choice.compression))
    for less, more in pairwise(by_compression):
        if less.group_size == more.group_size:
            assert more.bytes_in <= less.bytes_in
            assert more.seconds.transfer <= less.seconds.transfer


def test_a_plan_computed_by_hand() -> None:
    network = replace(
        HOME, server_download=1e9, server_upload=1e9, node_download=1e7, node_upload=1e6, latency=0.25, deadline=9.0
    )
    planned = small_plan(num_nodes=14, byzantine=2, dim=1000, batch_seconds=0.5, network=network)
    seven = next(choice for choice in planned.choices if (choice.group_size, choice.compression) == (7, 3))
    assert (seven.num_groups, seven.batches_per_node) == (2, 7)
    assert seven.bytes_per_node == 4 * 334
    assert (seven.bytes_out, seven.bytes_in) == (14 * 4000, 14 * 4 * 334)
    assert seven.seconds.computation == 3.5
    assert seven.seconds.transfer == pytest.approx(0.5 + 8 * 4000 / 1e7 + 8 * 1336 / 1e6)
    costs = {
        baseline.name: (baseline.group_size, baseline.batches_per_node, baseline.bytes_per_node)
        for baseline in planned.baselines
    }
    # 14 nodes make two groups of 7 rather than 5, 5 and 4.
    assert costs == {
        "no defence": (1, 1, 4000),
        "signum": (14, 1, 125),
        "multikrum": (14, 1, 4000),
        "bulyan": (14, 1, 4000),
        "draco-repetition": (7, 7, 4000),
        "draco-cyclic": (14, 5, 8000),
    }


def variant(planned: Plan, verification: Verification, redundancy: Redundancy, size: int, compression: int) -> Choice:
    wanted = (verification, redundancy, size, compression)
    (choice,) = (
        choice
        for choice in planned.choices
        if (choice.verification, choice.redundancy, choice.group_size, choice.compression) == wanted
    )
    return choice


@pytest.mark.parametrize(
    ("verification", "redundancy", "asked", "reply"),
    [
        ("algebra", "full", 20, 4_400_000),
        ("algebra", "reactive", 15, 4_400_000),
        ("digest", "full", 20, 4_400_000 + 640),
        ("digest", "reactive", 10, 4_400_000 + 640),
    ],
)
def test_variants_computed_by_hand(verification: Verification, redundancy: Redundancy, asked: int, reply: int) -> None:
    """s = 5, k = 10, r = 20 and d = 11M: five groups. 15 nodes of a group are enough, or 10 with digests."""
    network = replace(HOME, server_download=1e12, server_upload=1e9, node_download=1e12, node_upload=1e7, latency=0.25)
    planned = small_plan(
        num_nodes=100,
        byzantine=5,
        dim=11_000_000,
        batch_seconds=0.5,
        network=network,
        server_seconds=lambda *_: 0.125,
        verification="any",
        redundancy="any",
    )
    choice = variant(planned, verification, redundancy, 20, 10)
    assert (choice.asked_per_group, choice.num_asked) == (asked, 5 * asked)
    assert choice.computations == 5 * asked * 20
    assert (choice.bytes_out, choice.bytes_in) == (5 * asked * 44_000_000, 5 * asked * reply)
    assert choice.bytes_per_node == reply
    # The model takes the server's link, shares take the nodes' links, whatever the number of replies.
    assert choice.seconds.transfer == pytest.approx(0.5 + 8 * choice.bytes_out / 1e9 + 8 * reply / 1e7)
    digests = verification == "digest"
    hashed_by_node, hashed_by_server = 20 * (0.0044 + 0.0044), 5 * asked * 0.0044  # seconds
    assert choice.seconds.computation == pytest.approx(20 * 0.5 + digests * hashed_by_node)
    assert choice.seconds.server == pytest.approx(0.125 + digests * hashed_by_server)


def seconds_of_patches(kind: Kind, *_: object) -> float:
    return {"patch made": 0.25, "patch applied": 0.125}.get(kind, 1.0)


@pytest.mark.parametrize(
    ("verification", "redundancy", "asked", "rounds"),
    [("algebra", "full", 20, 1), ("algebra", "reactive", 15, 4 / 3), ("digest", "reactive", 10, 2)],
)
def test_patches_computed_by_hand(
    verification: Verification, redundancy: Redundancy, asked: int, rounds: float
) -> None:
    """As above. A node that computes in every second round then receives two patches."""
    network = replace(HOME, server_download=1e12, server_upload=1e9, node_download=1e12, node_upload=1e7, latency=0.25)
    settings: dict[str, Any] = {
        "num_nodes": 100,
        "byzantine": 5,
        "dim": 11_000_000,
        "batch_seconds": 0.5,
        "network": network,
        "server_seconds": seconds_of_patches,
        "verification": verification,
        "redundancy": redundancy,
    }
    planned = small_plan(**settings, downlink="any")
    (whole, patched) = (
        next(c for c in planned.choices if (c.downlink, c.group_size, c.compression) == (downlink, 20, 10))
        for downlink in ("full", "delta")
    )
    assert (whole.bytes_to_node, whole.bytes_in) == (44_000_000, patched.bytes_in)
    assert patched.bytes_to_node == pytest.approx(rounds * 3_960_000, abs=1)
    assert patched.bytes_out == 5 * asked * patched.bytes_to_node
    saved = 8 * (whole.bytes_out - patched.bytes_out) / 1e9
    assert patched.seconds.transfer == pytest.approx(whole.seconds.transfer - saved)
    assert patched.seconds.server == pytest.approx(whole.seconds.server + 0.25)
    assert patched.seconds.computation == pytest.approx(whole.seconds.computation + rounds * 0.125)
    assert planned.choices[0].downlink == "delta"
    assert {choice.downlink for choice in small_plan(**settings).choices} == {"full"}


def test_patches_never_cost_more_than_the_model() -> None:
    """With k = 1 and s = 1, 2 of 100 nodes compute in a round, so each computes in one of 50 rounds."""
    planned = small_plan(
        num_nodes=100, byzantine=1, redundancy="reactive", downlink="delta", server_seconds=seconds_of_patches
    )
    rested = next(choice for choice in planned.choices if (choice.group_size, choice.compression) == (100, 1))
    assert (rested.asked_per_group, rested.bytes_to_node) == (2, 4_000_000)
    assert rested.seconds.computation == pytest.approx(100 * 0.01 + 0.125 / 0.09)  # as much as the whole model


def test_baselines_are_sent_patches_too() -> None:
    planned = small_plan(downlink="any", server_seconds=seconds_of_patches)
    rows = {(row.name, row.downlink): row for row in planned.baselines}
    names = {name for name, _ in rows}
    assert names == {"no defence", "signum", "multikrum", "bulyan", "draco-cyclic", "draco-repetition"}
    for name in names:
        whole, patched = rows[name, "full"], rows[name, "delta"]
        assert (whole.bytes_to_node, patched.bytes_to_node) == (4_000_000, 360_000)
        assert patched.bytes_in == whole.bytes_in
        assert patched.seconds.server == whole.seconds.server + 0.25
        assert patched.seconds.computation == pytest.approx(whole.seconds.computation + 0.125)
        assert planned.baseline(name) == min((whole, patched), key=lambda row: row.seconds.total)
    assert planned.baseline("solon") is None


@pytest.mark.parametrize("downlink", ["full", "delta"])
def test_a_round_that_wakes_all_nodes_computed_by_hand(downlink: DownlinkName) -> None:
    """14 nodes in two groups of 7, of which 5 are asked: twice the batches, all bytes, and four messages in a row."""
    planned = small_plan(
        num_nodes=14,
        dim=1000,
        batch_seconds=0.5,
        network=replace(HOME, server_download=1e9, server_upload=1e9, node_download=1e7, node_upload=1e6, latency=0.25),
        redundancy="reactive",
        downlink=downlink,
    )
    seven = next(choice for choice in planned.choices if (choice.group_size, choice.compression) == (7, 3))
    assert seven.asked_per_group == 5
    model = 4000 if downlink == "full" else 504  # 7 / 5 patches of 360 bytes
    assert seven.bytes_to_node == model
    assert seven.seconds_if_woken == pytest.approx(7.0 + 4 * 0.25 + 8 * model / 1e7 + 8 * 1336 / 1e6)
    full = small_plan(num_nodes=14, downlink=downlink).best
    assert full.seconds_if_woken == full.seconds.total


@pytest.mark.parametrize(
    ("byzantine", "stragglers", "compression", "with_algebra", "with_digests"),
    [(5, 0, 10, 20, 15), (5, 0, 3, 13, 11), (2, 1, 6, 11, 9), (3, 2, 4, 12, 9), (0, 0, 5, 5, 5)],
)
def test_the_smallest_group(
    byzantine: int, stragglers: int, compression: int, with_algebra: int, with_digests: int
) -> None:
    for verification, redundancy in VARIANTS:
        planned = [
            small_plan(
                num_nodes=num_nodes,
                byzantine=byzantine,
                stragglers=stragglers,
                verification=verification,
                redundancy=redundancy,
            )
            for num_nodes in range(2 * byzantine + stragglers + 1, 25)
        ]
        sizes = [choice.group_size for p in planned for choice in p.choices if choice.compression == compression]
        assert min(sizes) == (with_digests if verification == "digest" else with_algebra)


def test_any_ranks_all_variants() -> None:
    settings: dict[str, Any] = {"num_nodes": 60, "byzantine": 3}
    everything = small_plan(**settings, verification="any", redundancy="any")
    parts = [small_plan(**settings, verification=v, redundancy=r) for v, r in VARIANTS]
    assert sorted(map(repr, everything.choices)) == sorted(repr(choice) for part in parts for choice in part.choices)
    totals = [choice.seconds.total for choice in everything.choices]
    assert totals == sorted(totals)
    best_of_parts = {part.best.variant: part.best for part in parts}
    assert everything.best_of_each_variant() == best_of_parts
    assert list(best_of_parts) == [(*variant, "full") for variant in VARIANTS]
    assert everything.best.seconds.total == min(part.best.seconds.total for part in parts)
    # With digests, s + 1 = 4 nodes of a group are enough for k <= 4, and k = 4 sends the fewest bytes.
    thriftiest = everything.thriftiest
    assert (thriftiest.verification, thriftiest.redundancy) == ("digest", "reactive")
    assert (thriftiest.compression, thriftiest.computations) == (4, 4 * 60)
    assert parts[0].best_of_each_variant() == {("algebra", "full", "full"): parts[0].best}


def test_the_server_is_measured_once_for_a_group_size(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[Kind, int]] = []

    def measure(server: MeasuredServer, kind: Kind, size: int) -> tuple[float, float]:
        measured.append((kind, size))
        return 0.001, 1e-9

    monkeypatch.setattr(MeasuredServer, "_measure", measure)
    small_plan(server_seconds=MeasuredServer(byzantine=2), verification="any", redundancy="any")
    assert sorted(measured) == [
        ("bulyan", 20),
        ("draco-cyclic", 20),
        ("draco-repetition", 5),
        ("multikrum", 20),
        ("signum", 20),
        *(("solon", size) for size in (5, 10, 20)),
    ]


def padded_dim(compression: int) -> int:
    """28 * 28 weights and a bias for each of 10 classes; each tensor is padded to a multiple of k."""
    return padded(7840, compression) + padded(10, compression)


@pytest.mark.slow
@pytest.mark.parametrize(("verification", "redundancy"), VARIANTS)
def test_the_prediction_of_a_variant_is_what_a_real_run_reports(
    verification: Verification, redundancy: Redundancy
) -> None:
    config = SolonConfig(
        num_nodes=14, byzantine=2, compression=3, group_size=7, verification=verification, redundancy=redundancy
    )
    outcome = simulate(Scenario(config=config, model="logistic", rounds=2, batch_size=4))
    planned = small_plan(
        num_nodes=14,
        dim=padded_dim(3),
        model_bytes=sum(len(array.data) for array in outcome.arrays.values()),
        verification=verification,
        redundancy=redundancy,
    )
    predicted = variant(planned, verification, redundancy, 7, 3)
    for record in outcome.records[1:]:
        report = record.report
        assert report is not None
        assert (predicted.bytes_out, predicted.bytes_in) == (report.bytes_out, report.bytes_in)
        assert [group.nodes_asked for group in report.groups] == [predicted.asked_per_group] * 2


@pytest.mark.slow
@pytest.mark.parametrize("compression", [3, 9])
def test_the_prediction_is_what_a_real_run_reports(compression: int) -> None:
    config = SolonConfig(num_nodes=14, byzantine=2, compression=compression, group_size=14)
    outcome = simulate(Scenario(config=config, model="logistic", rounds=2, batch_size=4))
    model_bytes = sum(len(array.data) for array in outcome.arrays.values())

    def choose(dim: int = padded_dim(compression), **changes: Any) -> Choice:
        planned = small_plan(num_nodes=14, dim=dim, server_seconds=lambda *_: 0.125, **changes)
        return next(choice for choice in planned.choices if choice.config() == config)

    for record in outcome.records[1:]:
        report = record.report
        assert report is not None
        seconds = round_seconds(
            HOME,
            num_nodes=14,
            batches_per_node=config.batches_per_group,
            batch_seconds=0.01,
            bytes_out=report.bytes_out,
            bytes_in=report.bytes_in,
            server_seconds=0.125,
            waited=False,
        )
        predicted = choose(model_bytes=model_bytes)
        assert (predicted.bytes_out, predicted.bytes_in) == (report.bytes_out, report.bytes_in)
        assert predicted.batches_per_node == config.batches_per_group
        assert predicted.seconds == seconds
        # Without model_bytes, only the headers of the model's arrays are missing.
        assert report.bytes_out - choose(7850).bytes_out == 14 * 128 * len(outcome.arrays)
        assert 0 <= report.bytes_in - choose(7850).bytes_in <= 14 * 4 * len(outcome.arrays)  # of padding


def test_the_assumed_header_is_that_of_an_array() -> None:
    assert len(to_array(torch.zeros(10, 784)).data) - 4 * 7840 == 128


def test_a_void_choice_is_never_the_best() -> None:
    planned = small_plan(num_nodes=50, byzantine=5, batch_seconds=0.0)
    assert planned.choices[0].is_void  # the fastest is void
    assert not planned.best.is_void
    faster = planned.choices[: planned.choices.index(planned.best)]
    assert all(choice.is_void for choice in faster)
    assert [choice.group_size for choice in planned.best_of_each_size()] == [25, 50]
    assert not any(choice.is_void for choice in planned.best_of_each_size())
    with pytest.warns(CertificateWarning, match="should be below 1"):
        SolonConfig(num_nodes=50, byzantine=5, compression=40, group_size=50, rtol=1.5e-6)


def test_no_choice_without_a_promise() -> None:
    with pytest.raises(
        ConfigurationError, match=r"least of all choices is .* at group_size=5, compression=1, rtol=0.1"
    ):
        _ = small_plan(num_nodes=5, rtol=0.1).best


def test_the_longest_deadline_changes_nothing_where_everybody_answers() -> None:
    assert small_plan(network=replace(HOME, deadline=1e6)).choices == small_plan().choices


@pytest.mark.parametrize("name", ["no defence", "draco-repetition", "draco-cyclic"])
@pytest.mark.parametrize(("batch_seconds", "byte_overhead"), [(0.01, 0.0), (0.1, 0.0), (1.0, 0.0), (1.0, 1e-8)])
def test_below_the_break_even_solon_is_faster_and_above_it_is_not(
    name: Kind, batch_seconds: float, byte_overhead: float
) -> None:
    # Three liars among 33 nodes: groups of 11 and 33, and Draco's groups of 8 and 9.
    settings: dict[str, Any] = {"num_nodes": 33, "byzantine": 3, "batch_seconds": batch_seconds}
    network = replace(HOME, byte_overhead=byte_overhead)
    planned = small_plan(**settings, network=network)
    factor = planned.break_even(named(planned, name))
    assert 0 < factor < float("inf")

    def advantage(factor: float) -> float:
        scaled = small_plan(**settings, network=network.scaled(factor))
        return named(scaled, name).seconds.total - scaled.best.seconds.total

    assert advantage(factor) == pytest.approx(0, abs=1e-9)
    assert advantage(0.9 * factor) > 0 > advantage(1.1 * factor)


def test_faster_than_several_baselines_is_faster_than_each() -> None:
    planned = small_plan(batch_seconds=0.1)
    nothing, draco = named(planned, "no defence"), named(planned, "draco-repetition")
    least = min(planned.break_even(nothing), planned.break_even(draco))
    assert planned.break_even(nothing, draco) == least > 0
    assert planned.break_even(nothing) != planned.break_even(draco)


def test_break_even_at_the_ends() -> None:
    free = small_plan(batch_seconds=0.0)
    assert free.break_even(named(free, "no defence")) == float("inf")
    whole = small_plan(num_nodes=5)  # only k = 1: no bytes are saved
    assert whole.break_even(named(whole, "no defence")) == 0
    assert whole.break_even(named(whole, "draco-repetition")) == 0  # a tie
    assert whole.break_even(named(whole, "draco-cyclic")) == float("inf")


def test_the_server_is_asked_for_every_row() -> None:
    asked: list[tuple[str, int, int, int, int]] = []

    def record(kind: Kind, num_nodes: int, group_size: int, compression: int, dim: int) -> float:
        asked.append((kind, num_nodes, group_size, compression, dim))
        return 1.0

    small_plan(num_nodes=7, dim=100, server_seconds=record)
    assert asked == [
        *(("solon", 7, 7, compression, 100) for compression in (1, 2, 3)),
        ("no defence", 7, 1, 1, 100),
        ("signum", 7, 7, 1, 100),
        ("multikrum", 7, 7, 1, 100),  # Bulyan would need 11 nodes
        ("draco-cyclic", 7, 7, 1, 100),
        ("draco-repetition", 7, 7, 1, 100),
    ]


@pytest.mark.slow
def test_the_measured_server_follows_its_laws_and_leaves_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_time, "MEASURED_NODES", 32)  # instead of 128, which takes seconds
    before = torch.get_num_threads()
    of_all = MeasuredServer(byzantine=2)
    for kind in AGGREGATORS:
        seconds = of_all(kind, 20, 20, 1, 10**6)
        assert seconds > 0
        assert of_all(kind, 20, 20, 1, 10**7) > seconds
    assert MeasuredServer(byzantine=2, threads=2)("draco-repetition", 20, 5, 1, 10**6) > 0
    assert torch.get_num_threads() == before
    server = MeasuredServer(byzantine=2)
    assert server("solon", 20, 10, 2, 10**7) > server("solon", 20, 10, 6, 10**7) > 0
    average = server("no defence", 20, 1, 1, 10**6)
    assert average > 0
    assert server("no defence", 20, 1, 1, 2 * 10**6) == pytest.approx(2 * average)
    votes = server("draco-repetition", 20, 5, 1, 10**6)
    assert votes > 0
    assert server("draco-repetition", 40, 5, 1, 10**6) == pytest.approx(2 * votes)
    assert server("draco-cyclic", 20, 20, 1, 10**6) > votes
    assert server("draco-cyclic", 20, 20, 1, 10**7) > server("draco-cyclic", 20, 20, 1, 10**6)
    assert server("draco-cyclic", 512, 512, 1, 10**6) == pytest.approx(2 * server("draco-cyclic", 256, 256, 1, 10**6))
    # Groups of 128 are extrapolated from 64, and cost more per node.
    assert server("solon", 128, 128, 6, 10**6) > server("solon", 128, 64, 6, 10**6)
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_patches_are_measured_once_and_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_time, "MEASURED_PATCH", 400_000)
    made: list[int] = []

    def make(target: list[Tensor], copy: list[Tensor]) -> bytes | None:
        made.append(len(copy[0]))
        return make_patch(target, copy)

    monkeypatch.setattr(server_time, "make_patch", make)
    server = MeasuredServer(byzantine=2)
    seconds = server("patch made", 20, 1, 1, 10**6)
    assert 0 < server("patch applied", 20, 1, 1, 10**6) < seconds
    assert server("patch made", 200, 1, 1, 2 * 10**6) == pytest.approx(2 * seconds)
    assert made == 5 * [400_000], "one to apply, and four to be timed"


@pytest.mark.slow
def test_the_measured_server_predicts_a_decode() -> None:
    server = MeasuredServer(byzantine=2)
    decoder = SolonConfig(num_nodes=10, byzantine=2, compression=6).make_decoder()
    gradient = torch.randn(1_200_000, generator=torch.Generator().manual_seed(0))
    shares = torch.stack([decoder.code.encode(gradient, slot) for slot in range(10)])
    shares[:2] = 1.0
    started = time.perf_counter()
    decoder.decode(shares)
    decoder.decode(shares)
    real = (time.perf_counter() - started) / 2
    predicted = server("solon", 10, 10, 6, 1_200_000)
    assert 0.1 * real < predicted < 10 * real  # test machines are busy


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dim"), [("draco-repetition", 400_000), ("draco-cyclic", 200_000)])
def test_the_measured_server_predicts_a_decode_of_draco(kind: Kind, dim: int) -> None:
    server = MeasuredServer(byzantine=2)
    code: RepetitionCode | CyclicCode = CyclicCode(20, 2) if kind == "draco-cyclic" else RepetitionCode(20, 2)
    vectors = dict(enumerate(torch.zeros(20, 2, dim) if code.is_complex else torch.ones(20, dim)))
    vectors[3] = torch.randn(vectors[3].shape, generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    assert code.decode(vectors).ok
    assert code.decode(vectors).corrupt_nodes == (3,)
    real = (time.perf_counter() - started) / 2
    predicted = server(kind, 20, 20 if code.is_complex else 5, 1, dim)
    assert 0.1 * real < predicted < 10 * real  # test machines are busy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_nodes": 14, "byzantine": 8},
            "got num_nodes=14 with the divisors 1, 2, 7, 14, byzantine=8, stragglers=0, so that group_size must be at "
            "least 17; lower byzantine to at most 6, or use 17 nodes",
        ),
        ({"num_nodes": 7, "stragglers": 7}, "stragglers=7, so that group_size must be at least 12; use 12 nodes"),
        ({"num_nodes": 257}, "at most 128; got num_nodes=257 with the divisors 1, 257.* use 260 nodes"),
        ({"num_nodes": 0}, "num_nodes must be a whole number >= 1; got num_nodes=0"),
        ({"byzantine": -1}, "byzantine=-1"),
        ({"dim": 0}, "dim must be a whole number from 1 to .*; got dim=0"),
        ({"batch_seconds": -0.5}, "batch_seconds=-0.5"),
        ({"code": "hamming"}, "code must be one of exact, fourier; got code='hamming'"),
        ({"rtol": 1.0}, "rtol=1.0"),
        ({"share_bytes": 2}, "share_bytes=2"),
        ({"model_bytes": -1}, "model_bytes=-1"),
        ({"verification": "trust"}, "verification must be one of algebra, digest, any; got verification='trust'"),
        ({"redundancy": "none"}, "redundancy must be one of full, reactive, any; got redundancy='none'"),
        ({"downlink": "half"}, "downlink must be one of full, delta, any; got downlink='half'"),
        ({"server_seconds": lambda *_: -1.0}, "server_seconds=-1.0"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        small_plan(**changes)


def test_threads_must_be_positive() -> None:
    with pytest.raises(ConfigurationError, match="threads=0"):
        MeasuredServer(byzantine=1, threads=0)
