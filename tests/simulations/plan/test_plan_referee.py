"""Plans with a referee: smaller groups, the duration of a round in which it is asked, and the lines to paste."""

import time
from typing import Any

import pytest
import torch

from solon_fl.coding import Decoded, Decoder
from solon_fl.config import Redundancy, SolonConfig, Verification, make_decoder
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import Scenario, simulate
from solon_fl.simulations.network import NETWORKS, round_seconds
from solon_fl.simulations.plan import server_time
from solon_fl.simulations.plan.choices import Choice, Plan
from solon_fl.simulations.plan.planner import plan
from solon_fl.simulations.plan.regrouping import Regrouping
from solon_fl.simulations.plan.server_time import MeasuredServer
from solon_fl.simulations.plan.verdict import verdict_of
from solon_fl.simulations.plan.workload import Workload

HOME = NETWORKS["home-20m"]
DIM = 1_000_000


def small_plan(**changes: Any) -> Plan:
    """Six nodes, five of which may lie."""
    how = {name: changes.pop(name) for name in ("verification", "redundancy", "downlink") if name in changes}
    settings: dict[str, Any] = {"num_nodes": 6, "byzantine": 5, "dim": DIM, "batch_seconds": 0.5, "network": HOME}
    workload = Workload(**{**settings, "referee": True, "code": "exact", **changes})
    return plan(workload, server_seconds=lambda *_: 0.125, **how)


@pytest.mark.filterwarnings("ignore::solon_fl.coding.CertificateWarning")
@pytest.mark.parametrize("redundancy", ["full", "reactive"])
@pytest.mark.parametrize("verification", ["algebra", "digest"])
@pytest.mark.parametrize("stragglers", [0, 1])
@pytest.mark.parametrize(("num_nodes", "byzantine"), [(6, 0), (6, 3), (8, 3), (12, 2)])
def test_what_is_listed_is_what_can_be_configured(
    num_nodes: int, byzantine: int, stragglers: int, verification: Verification, redundancy: Redundancy
) -> None:
    possible = set()
    for group_size in range(1, num_nodes + 1):
        for compression in range(1, num_nodes + 1):
            settings = {"num_nodes": num_nodes, "byzantine": byzantine, "stragglers": stragglers}
            settings |= {"group_size": group_size, "compression": compression}
            try:
                config = SolonConfig(**settings, referee=True, verification=verification, redundancy=redundancy)  # type: ignore[arg-type]
            except ConfigurationError:
                continue
            possible.add(config)
    settings = {"num_nodes": num_nodes, "byzantine": byzantine, "stragglers": stragglers}
    choices = small_plan(**settings, code="fourier", verification=verification, redundancy=redundancy).choices
    assert {choice.config() for choice in choices} == possible != set()
    assert len(choices) == len(possible)


def test_a_round_in_which_the_referee_is_asked_computed_by_hand() -> None:
    choice = small_plan(verification="digest").best
    assert (choice.group_size, choice.compression, choice.asked_per_group, choice.computations) == (6, 6, 6, 36)
    honest = round_seconds(
        HOME,
        num_nodes=6,
        batches_per_node=6,
        batch_seconds=0.5,
        bytes_out=6 * 4 * DIM,
        bytes_in=choice.bytes_in,
        server_seconds=0.125,
        waited=False,
    )
    assert choice.seconds.transfer == honest.transfer
    assert choice.seconds_if_woken == choice.seconds.total, "nobody rests"
    assert choice.seconds_if_asked == pytest.approx(choice.seconds.total + 6 * 0.5)
    assert choice.seconds.referee == 0, "of honest rounds"


def test_the_referee_is_asked_after_all_nodes_have_been() -> None:
    planned = small_plan(num_nodes=12, byzantine=2, verification="algebra", redundancy="reactive")
    choice = next(choice for choice in planned.choices if (choice.group_size, choice.compression) == (12, 3))
    assert choice.asked_per_group == 5
    assert choice.seconds_if_asked == pytest.approx(choice.seconds_if_woken + 12 * 0.5)
    assert choice.seconds_if_woken > choice.seconds.total + 5


def test_large_groups_in_which_not_every_lie_is_located_are_not_void() -> None:
    settings: dict[str, Any] = {"num_nodes": 36, "code": "fourier", "rtol": 1e-12, "verification": "algebra"}
    void = [
        next(
            choice.is_void
            for choice in small_plan(**settings, referee=referee).choices
            if (choice.group_size, choice.compression) == (36, 18)
        )
        for referee in (True, False)
    ]
    assert void == [False, True]


def test_without_a_referee_there_is_no_such_round() -> None:
    planned = small_plan(referee=False, byzantine=2)
    assert {(choice.referee, choice.seconds_if_asked) for choice in planned.choices} == {(False, None)}
    assert not any("referee" in text for text in (*verdict_of(planned).lines, *verdict_of(planned).caveats))


@pytest.mark.slow
def test_the_prediction_is_what_a_real_run_reports() -> None:
    config = SolonConfig(num_nodes=6, byzantine=2, compression=1, code="exact", referee=True)
    outcome = simulate(Scenario(config=config, model="logistic", rounds=1, batch_size=4))
    planned = small_plan(
        byzantine=2,
        dim=7850,
        model_bytes=sum(len(array.data) for array in outcome.arrays.values()),
        verification="algebra",
    )
    choice = next(choice for choice in planned.choices if choice.config() == config)
    (report,) = outcome.reports
    assert (choice.bytes_out, choice.bytes_in) == (report.bytes_out, report.bytes_in)
    assert choice.num_asked == report.nodes_asked


def test_draco_needs_more_nodes_and_is_left_out() -> None:
    assert not any("draco" in row.name for row in small_plan().baselines)
    assert small_plan(num_nodes=11).baseline("draco-repetition") is not None
    verdict = verdict_of(small_plan())
    assert not any("Draco" in text for text in (verdict.sentence, *verdict.caveats))


def test_the_verdict_has_the_code_to_paste() -> None:
    planned = small_plan(verification="digest")
    verdict = verdict_of(planned)
    assert isinstance(verdict.use, Choice)
    assert verdict.sentence.startswith("Use Solon with a referee and digests, in groups of r = 6 nodes that send 1/6")
    config, strategy, command = verdict.lines
    assert eval(config.strip(), {"SolonConfig": SolonConfig}) == verdict.use.config()  # what users would paste
    assert verdict.use.config().referee
    assert strategy.strip() == "SolonStrategy(config, ..., referee=MyClient())"
    assert command.endswith(" --set group_size=6 --set code=exact --set verification=digest --referee")
    (told,) = (caveat for caveat in verdict.caveats if caveat.startswith("The referee is"))
    assert "in no group. It must compute the same bits as the nodes. If" in told
    assert f"group's 6 batches itself. Such a round takes about {verdict.use.seconds_if_asked:.2f} s" in told


def test_a_referee_of_a_real_code_needs_no_equal_bits() -> None:
    verdict = verdict_of(small_plan(code="fourier", verification="algebra", downlink="full"))
    (told,) = (caveat for caveat in verdict.caveats if caveat.startswith("The referee is"))
    assert "same bits" not in told


def test_what_cannot_be_planned_is_refused() -> None:
    message = "at least byzantine .* group_size must be at least 7; lower byzantine to at most 5, or use 7 nodes"
    with pytest.raises(ConfigurationError, match=message):
        small_plan(byzantine=6)


def test_regrouped_groups_bear_more_with_a_referee() -> None:
    asked = Regrouping(liars=3, rounds=1)
    with_referee, without = (small_plan(num_nodes=4, byzantine=1, referee=referee) for referee in (True, False))
    assert asked.enough(with_referee) == (3, [4])
    assert asked.enough(without) is None
    tables = [asked.table(planned.workload, planned.choices) for planned in (with_referee, without)]
    least = [[str(cell) for cell in table.columns[-1].cells] for table in tables]
    assert least == [["2 (needs larger r)".replace("2 (", "[dim]2 (") + "[/]", "3"], ["[dim]3 (needs larger r)[/]"]]


@pytest.mark.parametrize(("referee", "lies", "status"), [(True, 5, "clean"), (False, 2, "corrected")])
def test_the_server_is_measured_in_rounds_in_which_it_has_something_to_do(
    referee: bool, lies: int, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a referee, shares are honest. Without one, the server locates liars."""
    statuses: list[str] = []

    def recording(*arguments: Any) -> Decoder:
        assert arguments[1:] == (lies, 0, 1e-6, referee)
        return make_decoder(*arguments)

    decode = Decoder.decode

    def noting(self: Decoder, *arguments: Any, **named: Any) -> Decoded:
        decoded = decode(self, *arguments, **named)
        statuses.append(decoded.status.value)
        return decoded

    monkeypatch.setattr(server_time, "MEASURED_COLUMNS", (10, 100))
    monkeypatch.setattr(server_time, "make_decoder", recording)
    monkeypatch.setattr(Decoder, "decode", noting)
    MeasuredServer(byzantine=5, code="exact", referee=referee)("solon", 6, 6, 1, 600)
    assert set(statuses) == {status}


@pytest.mark.slow
def test_the_measured_server_predicts_a_round_in_which_nobody_lies() -> None:
    server = MeasuredServer(byzantine=5, referee=True)
    code = SolonConfig(num_nodes=11, byzantine=5, compression=6, referee=True).make_code()
    decoder = make_decoder(code, 5, 0, 1e-6, True)
    gradient = torch.randn(1_200_000, generator=torch.Generator().manual_seed(0))
    shares = torch.stack([code.encode(gradient, slot) for slot in range(11)])
    decoder.decode(shares)
    started = time.perf_counter()
    assert decoder.decode(shares).ok
    real = time.perf_counter() - started
    assert 0.1 * real < server("solon", 11, 11, 6, 1_200_000) < 10 * real  # test machines are busy
    assert server("solon", 6, 6, 6, 1_200_000) > 0, "where nothing could be located"
