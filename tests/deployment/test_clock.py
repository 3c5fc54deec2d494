"""Measuring the running times of strategies, without Flower's processes."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import pytest
from flwr.app import Context, RecordDict
from flwr.common.config import parse_config_args
from typer.testing import CliRunner

from deployment import clock
from deployment.clocked import Clocked, measured_network, read_record, table
from solon_fl import SolonConfig
from solon_fl.launch.errors import FederationError
from solon_fl.launch.superlink import key_values
from solon_fl.simulations import Scenario
from solon_fl.simulations.network import Network
from solon_fl.simulations.run import InProcessGrid, jsonable
from tests.simulations.compare.handmade import SLOW, cell

ACCURACIES = [0.1, 0.2, 0.5, 0.6, 0.8, 0.7]
HONEST = Scenario(config=SolonConfig(num_nodes=3, byzantine=1, compression=1), model="logistic", batch_size=8)


def run(
    seconds: Sequence[float], strategy: str = "fedavg", bytes_in: int = 1_000_000, accuracies: Sequence[float] = ()
) -> Clocked:
    """Return rounds that took these seconds, with nodes that take half a second for a batch."""
    outcome = cell(strategy, "reverse", accuracies or ACCURACIES, bytes_in=bytes_in).outcome
    assert outcome is not None
    outcome = replace(outcome, scenario=replace(outcome.scenario, strategy=strategy, attack="reverse"))
    records = [
        replace(record, seconds=100 + sum(seconds[:number]))
        for number, record in enumerate(outcome.records[: len(seconds) + 1])
    ]
    return Clocked(network=SLOW, simulated=outcome, records=records, batch_seconds=0.5)


def test_the_first_round_is_not_in_the_mean_but_in_the_time_to_the_accuracy() -> None:
    clocked = run([9, 2, 4])
    assert clocked.seconds == [9, 2, 4]
    assert clocked.round_seconds == 3
    assert clocked.sent == 3_000_000
    assert (clocked.rounds_to(0.75), clocked.seconds_to(0.75), clocked.ran_to(0.75)) == (4, 9 + 2 + 4 + 3, False)
    assert (clocked.rounds_to(0.6), clocked.seconds_to(0.6), clocked.ran_to(0.6)) == (3, 15, True)
    assert (clocked.rounds_to(0.4), clocked.seconds_to(0.4), clocked.ran_to(0.4)) == (2, 11, True)
    assert (clocked.rounds_to(0.9), clocked.seconds_to(0.9), clocked.ran_to(0.9)) == (None, None, False)
    assert clocked.modelled_to(0.9, SLOW) is None


def test_the_model_is_asked_of_the_rounds_in_the_mean() -> None:
    whole = run([9, 2, 4])
    records = list(whole.simulated.records)
    for number in (1, 4):  # the first round, and one that was not measured
        report = records[number].report
        assert report is not None
        records[number] = replace(records[number], report=replace(report, bytes_out=10**9))
    patched = replace(whole, simulated=replace(whole.simulated, records=records))
    assert patched.modelled_round(SLOW) == pytest.approx(whole.modelled_round(SLOW))
    assert patched.modelled_to(0.75, SLOW) > 1000  # type: ignore[operator]


def test_what_two_runs_show_of_overheads_predicts_a_third() -> None:
    # 3 batches take 1.5 s, two latencies 1 s, 2 MB out 20 s / 10 nodes, and the server 0.25 s.
    alone = run([0, 0, 0], bytes_in=0).modelled_round(SLOW)
    assert alone == pytest.approx(1.5 + 1 + 8 * 2_000_000 / 8e5 / 10 + 0.25)
    true = replace(SLOW, round_overhead=4.0, byte_overhead=2e-6)

    def clocked(strategy: str, bytes_in: int) -> Clocked:
        seconds = run([0, 0, 0], strategy, bytes_in).modelled_round(true)
        return run([50, seconds, seconds], strategy, bytes_in)

    network = measured_network(clocked("fedavg", 0), clocked("fedavg", 5_000_000))
    assert network.round_overhead == pytest.approx(4.0)
    assert network.byte_overhead == pytest.approx(2e-6)
    third = clocked("solon", 1_000_000)
    assert third.modelled_round(network) == pytest.approx(third.round_seconds)
    assert third.modelled_to(0.75, network) == pytest.approx(4 * third.round_seconds)


def test_overheads_are_never_negative() -> None:
    network = measured_network(run([9, 0.1, 0.1], bytes_in=0), run([9, 0.1, 0.1]))
    assert (network.round_overhead, network.byte_overhead) == (0, 0)


def test_too_little_is_told() -> None:
    with pytest.raises(FederationError, match="at least 2 rounds must be measured; got 1"):
        run([9])
    with pytest.raises(FederationError, match="the large model must send more; got 3000000 and 3000000 bytes"):
        measured_network(run([9, 2, 4]), run([9, 2, 4]))


def test_a_table_has_the_clock_and_the_model() -> None:
    alone = run([9, 5, 5]).modelled_round(SLOW)
    measured = replace(SLOW, round_overhead=10 - alone)
    rows = table([(run([9, 8, 8]), measured), (run([9, 8, 8], accuracies=[0.1] * 6), measured)], 0.6).splitlines()
    assert len({row.count("|") for row in rows}) == 1
    assert [cell.strip() for cell in rows[2].split("|")[1:-1]] == [
        *("0.8 Mbit/s", "FedAvg", "whole", "2", "3.0", "8.0", f"{alone:.1f}", f"{alone / 8 - 1:+.0%}"),
        *("10.0", "+25%", "3", "25 *", "30"),
    ]
    assert rows[3].endswith("| never | - | - |")


def test_fedavg_is_the_reference_without_and_with_a_liar() -> None:
    reference, others = clock.scenarios(replace(HONEST, strategy="fedavg"), ["fedavg", "solon"], "alie")
    assert [(s.strategy, s.model, s.attack, s.config.downlink) for s in reference] == [
        ("fedavg", "logistic", None, "full"),
        ("fedavg", "logistic", None, "full"),
    ]
    assert [(s.strategy, s.attack, s.config.downlink) for s in others] == [
        ("fedavg", None, "delta"),
        ("fedavg", "alie", "full"),
        ("solon", "alie", "full"),
        ("solon", "alie", "delta"),
    ]


def test_a_batch_takes_longer_if_nodes_share_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "measure_batch_seconds", lambda scenario: 2.0)
    for cores, seconds in ((1, 6.0), (2, 3.0), (3, 2.0), (8, 2.0)):
        monkeypatch.setattr("os.sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        assert clock.seconds_of_a_batch(HONEST) == seconds


def test_flowers_command_line_takes_a_scenario() -> None:
    text = json.dumps(jsonable(asdict(HONEST)))
    assert parse_config_args([key_values({"scenario": text, "rounds": 2, "name": "it's"})]) == {
        "scenario": text,
        "rounds": 2,
        "name": "it's",
    }


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["solon", "draco-repetition", "signum", "multikrum"])
def test_the_app_tells_of_every_round(
    strategy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(clock.APP))
    client = importlib.import_module("clock_app.client_app")
    server = importlib.import_module("clock_app.server_app")
    config = SolonConfig(num_nodes=6, byzantine=1, compression=4)
    scenario = Scenario(config=config, strategy=strategy, attack="reverse", num_liars=1, model="logistic", rounds=2)
    settings: dict[str, bool | float | int | str] = {
        "scenario": json.dumps(jsonable(asdict(replace(scenario, compute_once=False)))),
        "round-timeout": 0.01,
    }
    grid = InProcessGrid(client.app, 6, run_config=settings)
    server.app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings))
    read = [read_record(line) for line in capsys.readouterr().out.splitlines()]
    records = [record for record in read if record is not None]
    assert [record.round for record in records] == [0, 1, 2]
    assert records[2].accuracy > records[0].accuracy + 0.2
    report = records[2].report
    assert report is not None
    assert report.bytes_in > 0
    if strategy in ("solon", "draco-repetition"):
        assert report.corrupt_nodes == tuple(scenario.liars)


@pytest.mark.slow
def test_a_run_that_breaks_off_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(clock.APP))
    client = importlib.import_module("clock_app.client_app")
    server = importlib.import_module("clock_app.server_app")
    config = SolonConfig(num_nodes=6, byzantine=1, compression=4)
    crashing = replace(HONEST, config=config, strategy="multikrum", attack="crash", rounds=1)
    settings: dict[str, bool | float | int | str] = {
        "scenario": json.dumps(jsonable(asdict(crashing))),
        "round-timeout": 0.01,
    }
    monkeypatch.setattr(client, "nodes", lambda scenario: 1 / 0)
    grid = InProcessGrid(client.app, 6, run_config=settings)
    with pytest.raises(RuntimeError, match="Error"):
        server.app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings))


def test_mistakes_are_told_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "seconds_of_a_batch", lambda scenario: 0.1)
    monkeypatch.setattr(clock, "expected", lambda scenario, accuracy: run([1, 1, 1]).simulated)
    for arguments, words in (
        (["--nodes", "7"], "num_nodes must be a multiple of group_size; got num_nodes=7"),
        (["--attack", "nosuch"], "got attack='nosuch'"),
        (["--strategy", "nosuch"], "got strategy='nosuch'"),
        (["--link", "5"], "bandwidth must be a number with one of kbit, mbit, gbit; got bandwidth='5'."),
        (
            ["--to-the-end", "20mbit:nosuch"],
            "to_the_end must be LINK:STRATEGY, with a LINK among 20mbit, 100mbit and a STRATEGY among fedavg, ",
        ),
        (
            ["--to-the-end", "5mbit:solon"],
            "to_the_end must be LINK:STRATEGY, with a LINK among 20mbit, 100mbit and a STRATEGY among fedavg, ",
        ),
    ):
        done = CliRunner().invoke(clock.program, arguments)
        assert done.exit_code == 1
        assert words in done.output, done.output
        assert "Traceback" not in done.output


def test_only_the_strategies_named_are_clocked_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of rounds that each scenario runs, without a deployment."""
    asked: list[tuple[str, int]] = []

    class Federation:
        network: Network = SLOW

        def __init__(self, **options: object) -> None: ...
        def __enter__(self) -> "Federation":
            return self

        def __exit__(self, *error: object) -> None: ...
        def start_nodes(self, nodes: dict[str, dict[str, int]]) -> None:
            assert nodes["node-3"] == {"partition-id": 2, "num-partitions": 10}

    def clocked_run(federation: Federation, scenario: Scenario, rounds: int) -> object:
        asked.append((scenario.strategy, rounds))
        return run([1.0] * rounds).records

    monkeypatch.setattr(clock, "NamespacedFederation", Federation)
    monkeypatch.setattr(clock, "run", clocked_run)
    curve = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    outcomes = [
        run([1, 1, 1], strategy, bytes_in=sent, accuracies=curve).simulated
        for strategy, sent in (("fedavg", 0), ("fedavg", 1_000_000), ("solon", 0), ("signum", 0))
    ]
    # The measured runs have the same bytes for any strategy, so they give no overheads.
    monkeypatch.setattr(clock, "measured_network", lambda small, large: replace(SLOW, round_overhead=1.0))
    yielded = list(clock.clocked("5mbit", outcomes, 0.5, 0.7, {"solon"}))
    assert asked == [("fedavg", 4), ("fedavg", 4), ("solon", 6), ("signum", 4)]
    assert [(each.simulated, network.round_overhead) for each, network in yielded] == [
        (outcome, 1.0) for outcome in outcomes[1:]
    ]
