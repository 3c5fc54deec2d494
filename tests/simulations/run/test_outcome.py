import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import Outcome
from solon_fl.simulations.run import NumberedGroup, load_data
from solon_fl.simulations.run.outcome import Software
from solon_fl.simulations.run.simulation import ScenarioServer
from solon_fl.strategies import GroupReport
from tests.simulations.compare import handmade
from tests.simulations.run.small import CONFIG, REGROUPED, run, scenario


def test_the_jsonl_tells_everything(tmp_path: Path) -> None:
    outcome = run(attack="nan", rounds=2)
    outcome.save(tmp_path / "new folder" / "rounds.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "new folder" / "rounds.jsonl").read_text().splitlines()]
    head, *rounds, summary = lines
    assert all(line["cpu_share"] > 0 for line in rounds)
    assert head["scenario"]["config"]["byzantine"] == 2
    assert head["liars"] == sorted(outcome.scenario.liars)
    assert set(head["versions"]) == {"solon-fl", "flwr", "torch", "numpy"}
    assert [line["round"] for line in rounds] == [0, 1, 2]
    groups = rounds[1]["report"]["groups"]
    assert [group["status"] for group in groups] == ["clean", "clean"]
    loss = outcome.reports[0].unprotected_training_loss
    assert loss is not None
    assert rounds[1]["report"]["unprotected_training_loss"] == loss
    assert sorted(int(number) for group in groups for number in group["malformed_nodes"]) == head["liars"]
    assert summary["final_accuracy"] == outcome.accuracy
    assert summary["bytes_out_median"] == outcome.bytes_out == outcome.reports[0].bytes_out > 0
    assert summary["bytes_in_median"] == outcome.bytes_sent == outcome.reports[0].bytes_in > 0
    assert summary["server_seconds_median"] == outcome.server_seconds > 0
    assert summary["timing_doubts"] == list(outcome.timing_doubts)
    assert summary["timings_scatter"] == bool(outcome.timing_doubts)
    assert summary["offences"] == {str(number): {"malformed": 2} for number in sorted(outcome.scenario.liars)}


def test_the_files_of_a_regrouped_run_number_nodes_not_places(tmp_path: Path) -> None:
    outcome = run(config=REGROUPED, attack="reverse", rounds=2)
    outcome.save(tmp_path / "rounds.jsonl")
    head, _, *rounds, _ = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    for line in rounds:
        named = [number for group in line["report"]["groups"] for number in group["corrupt_nodes"]]
        assert sorted(named) == head["liars"]


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": "alie"},
        {"attack": "malformed", "config": REGROUPED},
        {"attack": "silent", "config": SolonConfig(num_nodes=14, byzantine=2, compression=3, redundancy="reactive")},
        {"attack": "malformed", "strategy": "multikrum"},
        {"strategy": "draco-cyclic", "attack": "crash", "num_liars": 2},
    ],
    ids=["lies", "regrouped", "reactive", "broken off", "draco"],
)
def test_what_is_loaded_is_what_was_saved_but_for_the_model(changes: dict[str, Any], tmp_path: Path) -> None:
    outcome = run(rounds=2, **changes)
    outcome.save(tmp_path / "rounds.jsonl")
    loaded = Outcome.load(tmp_path / "rounds.jsonl")
    assert loaded == outcome
    assert len(loaded.arrays) == 0
    assert (loaded.offences, loaded.accuracies, loaded.bytes_sent) == (
        outcome.offences,
        outcome.accuracies,
        outcome.bytes_sent,
    )
    loaded.save(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "rounds.jsonl").read_text()


def test_memory_and_file_number_nodes_alike(tmp_path: Path) -> None:
    outcome = run(attack="reverse", rounds=1)
    outcome.save(tmp_path / "rounds.jsonl")
    _, _, line, _ = map(json.loads, (tmp_path / "rounds.jsonl").read_text().splitlines())
    assert [group["corrupt_nodes"] for group in line["report"]["groups"]] == [
        list(group.corrupt_nodes) for group in outcome.reports[0].groups
    ]
    assert set(outcome.reports[0].corrupt_nodes) == outcome.liars


GROUP = GroupReport(
    group=1,
    nodes=(11, 5, None, 7),
    status="undecodable",
    corrupt_nodes=(5,),
    silent_nodes=(7,),
    malformed_nodes={11: "no share"},
    residual=math.inf,
    tolerance=math.nan,
    error_bound=math.inf,
    escalated=True,
    escalated_by=(11,),
)


@pytest.mark.parametrize(("regrouped", "numbers"), [(False, (4, 5, 7)), (True, (10, 4, 6))])
def test_a_node_is_numbered_by_place_or_regrouped_by_partition(regrouped: bool, numbers: tuple[int, ...]) -> None:
    first, second, fourth = numbers
    group = NumberedGroup.of(GROUP, regrouped=regrouped)
    assert (group.corrupt_nodes, group.silent_nodes, group.escalated_by) == ((second,), (fourth,), (first,))
    assert group.malformed_nodes == {first: "no share"}
    assert (group.residual, group.tolerance, group.error_bound) == (None, None, None)
    assert (group.nodes_asked, group.decoded) == (3, False)
    assert list(group.named()) == [(second, "lying"), (fourth, "silent"), (first, "malformed")]


def test_the_numbers_of_a_run_that_never_began() -> None:
    outcome = Outcome.of(scenario(attack="alie"))
    assert math.isnan(outcome.accuracy)
    assert (outcome.accuracies, outcome.offences, outcome.reports) == ([], {}, [])
    assert (outcome.bytes_out, outcome.bytes_sent) == (0, 0)
    assert (outcome.server_seconds, outcome.timings_scatter, outcome.batches_of_all) == (0, False, 0)
    assert (outcome.batches_per_node, outcome.liars) == (CONFIG.group_size, outcome.scenario.liars)
    assert outcome.software == Software.here()


@pytest.mark.parametrize(
    ("seconds", "scatter"),
    [
        ([1.0, 1.0, 1.0, 1.0, 100.0], False),  # one round in five does not matter
        ([0.8, 1.0, 1.2, 1.2, 0.8], False),  # quartiles 0.8 and 1.2
        ([0.7, 1.0, 1.25, 1.25, 0.7], True),  # 0.7 and 1.25
        ([0.1, 10.0, 10.0], False),  # too few rounds to tell
    ],
)
def test_timings_scatter_if_the_quartiles_are_half_the_median_apart(seconds: list[float], scatter: bool) -> None:
    rounds = [0.0] * (len(seconds) + 1)
    outcome = handmade.cell("fedavg", None, rounds, aggregating=[value - 0.05 for value in seconds]).outcome
    assert outcome is not None
    assert outcome.server_seconds == pytest.approx(median(seconds))
    assert outcome.timing_doubts == (("the rounds' timings scatter",) if scatter else ())
    assert outcome.timings_scatter == scatter


@pytest.mark.parametrize(
    ("shares", "doubts"), [([0.3, 0.3, 0.9], ("the run had 30% of a CPU",)), ([0.9, 0.3, 1.9], ())]
)
def test_a_run_that_was_kept_waiting_from_start_to_end_says_so(shares: list[float], doubts: tuple[str, ...]) -> None:
    outcome = handmade.cell("fedavg", None, [0.0] * 4).outcome
    assert outcome is not None
    assert (outcome.cpu_share, outcome.timing_doubts) == (None, ())
    records = [replace(record, cpu_share=share) for record, share in zip(outcome.records, [0.01, *shares], strict=True)]
    assert replace(outcome, records=records).timing_doubts == doubts


@pytest.mark.parametrize(("engine", "share"), [("in-process", 0.3), ("ray", None)])
def test_the_share_of_the_cpu_is_that_since_the_record_before(
    engine: str, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = scenario(engine=engine)
    clocks = iter([(100.0, 50.0), (110.0, 53.0), (112.0, 55.0)])
    monkeypatch.setattr(ScenarioServer, "_clocks", staticmethod(lambda: next(clocks)))
    server = ScenarioServer(Outcome.of(chosen), load_data(chosen))
    assert [server._cpu_share(), server._cpu_share()] == [share, share and 1.0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "\n".join(text.splitlines()[1:]),
        lambda text: "\n".join(text.splitlines()[:-1]),
        lambda text: text.replace('"nodes_asked"', '"asked"'),
        lambda text: text.replace('"num_nodes": 14', '"num_nodes": 15'),
        lambda text: text.replace('"rounds": 1', '"rounds": "many"'),
        lambda text: text.replace('"ledger": [', '"ledger": [3, '),
        lambda text: "[]\n[]",
    ],
    ids=["empty", "half", "no head", "no summary", "an older format", "a setting", "a type", "the ledger", "others"],
)
def test_a_file_that_holds_anything_else_is_refused(damage: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    run(rounds=1).save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ConfigurationError, match=r"rounds\.jsonl must hold a finished run.*; got .*; repeat the run"):
        Outcome.load(path)
    with pytest.raises(ConfigurationError, match="got FileNotFoundError"):
        Outcome.load(tmp_path / "missing.jsonl")
