import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from solon_fl.errors import CheckpointError, ConfigurationError
from solon_fl.simulations import Outcome, RoundRecord, Scenario, simulate
from solon_fl.strategies import Checkpoints, RoundReport
from solon_fl.strategies.checkpoint import Checkpoint
from tests.simulations.run.small import CONFIG, EXACT, REGROUPED, curve, run
from tests.support import vector_of


@pytest.mark.parametrize("attack", [None, "alie"])
def test_a_run_that_broke_off_goes_on_as_if_nothing_had_happened(attack: str | None, tmp_path: Path) -> None:
    whole = run(attack=attack, rounds=6)

    def interrupt(record: RoundRecord) -> None:
        if record.round == 5:
            raise KeyboardInterrupt

    scenario = Scenario(config=CONFIG, model="logistic", rounds=6, batch_size=8, attack=attack)
    checkpoints = Checkpoints(tmp_path, every=2)
    with pytest.raises(KeyboardInterrupt):
        simulate(scenario, interrupt, checkpoints)
    seen: list[int] = []
    resumed = simulate(scenario, lambda record: seen.append(record.round), checkpoints)
    assert seen == [5, 6], "the last checkpoint is that of round 4"
    assert vector_of(resumed.arrays).equal(vector_of(whole.arrays))
    assert curve(resumed) == curve(whole)
    assert resumed.offences == whole.offences
    assert resumed.ledger == whole.ledger
    assert [record.report.round for record in resumed.records if record.report] == [1, 2, 3, 4, 5, 6]
    again = simulate(scenario, lambda record: pytest.fail("nothing is left to do"), checkpoints)
    assert vector_of(again.arrays).equal(vector_of(whole.arrays))
    assert curve(again) == curve(whole)


def test_going_on_for_more_rounds_and_with_other_settings(tmp_path: Path) -> None:
    scenario = Scenario(config=CONFIG, model="logistic", rounds=2, batch_size=8)
    checkpoints = Checkpoints(tmp_path)
    simulate(scenario, checkpoints=checkpoints)
    longer = simulate(dataclasses.replace(scenario, rounds=3), checkpoints=checkpoints)
    assert curve(longer) == curve(run(rounds=3))
    with pytest.raises(CheckpointError, match="has reached round 3, beyond num_rounds=2"):
        simulate(scenario, checkpoints=checkpoints)
    with pytest.raises(CheckpointError, match=r"scenario.learning_rate is .0\.05. there and .0\.1. here"):
        simulate(dataclasses.replace(scenario, learning_rate=0.1), checkpoints=checkpoints)
    with pytest.raises(ConfigurationError, match="checkpoints need strategy='solon'; got strategy='fedavg'"):
        simulate(dataclasses.replace(scenario, strategy="fedavg"), checkpoints=checkpoints)


def test_records_of_another_format_are_refused_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = Scenario(config=CONFIG, model="logistic", rounds=2, batch_size=8)
    simulate(scenario, checkpoints=Checkpoints(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Checkpoints, "_read", with_old_records(Checkpoints._read))
    with pytest.raises(CheckpointError, match=r"are not from this version of solon_fl .*or another folder"):
        simulate(scenario, checkpoints=Checkpoints(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def with_old_records(read: Callable[..., Checkpoint]) -> Callable[..., Checkpoint]:
    """Return a reader of checkpoints whose records have an old format, with Flower's node ids."""

    def reading(self: Checkpoints, path: Path, run: Mapping[str, Any]) -> Checkpoint:
        checkpoint = read(self, path, run)
        for record in checkpoint.notes["records"]:
            for group in record["report"]["groups"] if record["report"] else ():
                group["nodes"] = [1, 2, 3]
        return checkpoint

    return reading


KILLED = """
import sys
from pathlib import Path
import torch
from solon_fl import SolonConfig
from solon_fl.simulations import Scenario, simulate
from solon_fl.strategies import Checkpoints

torch.set_num_threads(1)
folder = Path(sys.argv[1])
scenario = Scenario(
    config=SolonConfig(num_nodes=14, byzantine=2, compression=3, code="exact"),
    model="logistic",
    rounds=30,
    batch_size=8,
    attack="alie",
)
print("ready", flush=True)
outcome = simulate(scenario, lambda record: print(record.round, flush=True), Checkpoints(folder, every=3))
outcome.save(folder / "done.jsonl")
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    """Nodes lie, and the server is killed several times at random moments."""
    random = torch.Generator().manual_seed(0)
    kills = 0
    while not (tmp_path / "done.jsonl").exists():
        process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline(), "the run continues"
        if kills < 2:
            time.sleep(0.25 * float(torch.rand((), generator=random)))
            process.kill()
            kills += process.wait() != 0
        process.stdout.read()
        process.stdout.close()
        assert process.wait() == 0 or kills
    assert kills >= 2
    whole = run(config=EXACT, rounds=30)
    assert Outcome.load(tmp_path / "done.jsonl").model_sha256 == whole.model_sha256, (
        "the same model as in an honest, uninterrupted run"
    )
    lines = [json.loads(line) for line in (tmp_path / "done.jsonl").read_text().splitlines()]
    assert [line["accuracy"] for line in lines[1:-1]] == curve(whole)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("attack", [None, "alie"])
def test_a_regrouped_run_that_broke_off_goes_on_as_if_nothing_had_happened(
    attack: str | None, tmp_path: Path, seats: list[RoundReport]
) -> None:
    scenario = Scenario(config=REGROUPED, model="logistic", rounds=6, batch_size=8, attack=attack)
    whole = simulate(scenario)

    def interrupt(record: RoundRecord) -> None:
        if record.round == 5:
            raise KeyboardInterrupt

    checkpoints = Checkpoints(tmp_path, every=2)
    with pytest.raises(KeyboardInterrupt):
        simulate(scenario, interrupt, checkpoints)
    resumed = simulate(scenario, checkpoints=checkpoints)
    assert vector_of(resumed.arrays).equal(vector_of(whole.arrays))
    assert curve(resumed) == curve(whole)
    assert resumed.offences == whole.offences
    assert resumed.ledger == whole.ledger
    groups = [[record.report.groups for record in outcome.records if record.report] for outcome in (resumed, whole)]
    assert groups[0] == groups[1]
    *_, fifth, sixth = seats
    assert [report.groups for report in (fifth, sixth)] == [report.groups for report in seats[4:6]], "also by node id"
