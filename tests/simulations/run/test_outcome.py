import json
from pathlib import Path

from tests.simulations.run.small import REGROUPED, run


def test_the_jsonl_tells_everything(tmp_path: Path) -> None:
    outcome = run(attack="nan", rounds=2)
    outcome.save(tmp_path / "new folder" / "rounds.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "new folder" / "rounds.jsonl").read_text().splitlines()]
    head, *rounds, summary = lines
    assert head["scenario"]["config"]["byzantine"] == 2
    assert head["liars"] == sorted(outcome.scenario.liars)
    assert set(head["versions"]) == {"solon-fl", "flwr", "torch", "numpy"}
    assert [line["round"] for line in rounds] == [0, 1, 2]
    groups = rounds[1]["report"]["groups"]
    assert [group["status"] for group in groups] == ["clean", "clean"]
    assert sorted(int(number) for group in groups for number in group["malformed_nodes"]) == head["liars"]
    assert summary["final_accuracy"] == outcome.accuracy
    assert summary["offences"] == {str(number): {"malformed": 2} for number in sorted(outcome.scenario.liars)}


def test_the_files_of_a_regrouped_run_number_nodes_not_places(tmp_path: Path) -> None:
    outcome = run(config=REGROUPED, attack="reverse", rounds=2)
    outcome.save(tmp_path / "rounds.jsonl")
    head, _, *rounds, _ = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    for line in rounds:
        named = [number for group in line["report"]["groups"] for number in group["corrupt_nodes"]]
        assert sorted(named) == head["liars"]
