import dataclasses
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord

from solon_fl.config import SolonConfig
from solon_fl.errors import CheckpointError, ConfigurationError
from solon_fl.simulations import ATTACKS, Outcome, RoundRecord, Scenario, simulate
from solon_fl.simulations.run.output import offences_table, plot_run, write_jsonl
from solon_fl.strategies import Checkpoints
from tests.support import vector_of

CONFIG = SolonConfig(num_nodes=14, byzantine=2, compression=3)


def run(**changes: Any) -> Outcome:
    values: dict[str, Any] = {"config": CONFIG, "model": "logistic", "rounds": 4, "batch_size": 8}
    return simulate(Scenario(**{**values, **changes}))


def curve(outcome: Outcome) -> list[float]:
    return [record.accuracy for record in outcome.records]


@pytest.fixture(scope="module")
def honest() -> Outcome:
    return run()


def assert_same_model(first: ArrayRecord, second: ArrayRecord) -> None:
    torch.testing.assert_close(vector_of(first), vector_of(second), rtol=1e-4, atol=1e-6)


NAMED_AS = {
    **dict.fromkeys(("nan", "inf", "malformed", "crash"), "malformed"),
    **dict.fromkeys(("silent", "late"), "silent"),
}


@pytest.fixture(scope="module")
def long_honest() -> Outcome:
    return run(rounds=50)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_under_every_attack_training_ends_where_it_does_without(attack: str, long_honest: Outcome) -> None:
    outcome = run(attack=attack, rounds=50)
    assert_same_model(outcome.arrays, long_honest.arrays)
    assert curve(outcome) == pytest.approx(curve(long_honest), abs=0.003)
    liars = outcome.scenario.liars
    if attack == "bit-flip":  # some bits change less than float noise does; any other makes a lie, or NaN
        assert set(outcome.offences) <= liars
        assert outcome.offences
        return
    if attack == "partial-collusion":  # of two liars of a group the first whispers below the tolerance
        liars = frozenset(max(liar for liar in liars if liar // 7 == group) for group in (0, 1))
    if attack == "below-tolerance":
        liars = frozenset()
    kind = NAMED_AS.get(attack, "lying")
    assert outcome.offences == {liar: {kind: 50} for liar in liars}


def test_training_learns(honest: Outcome) -> None:
    assert honest.accuracy > honest.records[0].accuracy + 0.2
    assert honest.offences == {}


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(honest: Outcome) -> None:
    again = run()
    assert torch.equal(vector_of(again.arrays), vector_of(honest.arrays))
    assert [r.report.groups[0].residual for r in again.records if r.report] == [
        r.report.groups[0].residual for r in honest.records if r.report
    ]
    other = run(config=dataclasses.replace(CONFIG, seed=1))
    assert not torch.equal(vector_of(other.arrays), vector_of(honest.arrays))


def test_a_diverging_run_of_flowers_strategies_is_reproducible_too() -> None:
    runs = [run(strategy="fedavg", attack="reverse") for _ in range(2)]
    assert torch.equal(*(vector_of(outcome.arrays) for outcome in runs))


def test_computing_once_per_group_changes_nothing(honest: Outcome) -> None:
    assert torch.equal(vector_of(run(compute_once=False).arrays), vector_of(honest.arrays))


def test_honest_fedavg_and_solon_see_the_same_batches(honest: Outcome) -> None:
    assert_same_model(run(strategy="fedavg").arrays, honest.arrays)


@pytest.mark.parametrize("attack", ["reverse", "random", "foe", "nan", "inf"])
def test_plain_averaging_collapses(attack: str, honest: Outcome) -> None:
    assert run(strategy="fedavg", attack=attack).accuracy < honest.accuracy - 0.2


def test_flipped_labels_harm_a_plain_average() -> None:
    config = SolonConfig(num_nodes=14, byzantine=3, compression=1)
    poisoned, honest = (run(config=config, strategy="fedavg", attack=attack) for attack in ("label-flip", None))
    assert poisoned.accuracy < honest.accuracy - 0.1


@pytest.mark.parametrize("attack", ["mimic", "sign-flip", "late", "silent", "crash"])
def test_mild_attacks_change_a_plain_average(attack: str, honest: Outcome) -> None:
    outcome = run(strategy="fedavg", attack=attack)
    assert not torch.allclose(vector_of(outcome.arrays), vector_of(honest.arrays), rtol=0.01)


def test_one_odd_reply_aborts_flowers_strategies_and_is_a_result() -> None:
    outcome = run(strategy="multikrum", attack="malformed")
    assert outcome.error
    assert len(outcome.records) == 1


def test_alie_follows_the_rounds_for_strategies_without_groups() -> None:
    first, second = (run(strategy="fedavg", attack="alie", rounds=rounds) for rounds in (1, 2))
    assert curve(first) == curve(second)[:2]
    honest_two = run(strategy="fedavg", rounds=2)
    assert not torch.equal(vector_of(second.arrays), vector_of(honest_two.arrays))


def test_local_steps_train_too() -> None:
    config = dataclasses.replace(CONFIG, mode="update")
    outcome, honest = run(config=config, attack="alie"), run(config=config)
    assert_same_model(outcome.arrays, honest.arrays)
    assert outcome.accuracy > 0.4


@pytest.mark.slow
def test_texts_train_too_while_nodes_lie() -> None:
    texts = {"dataset": "synthetic-reviews", "model": "textcnn", "rounds": 3}
    outcome, honest = run(attack="alie", **texts), run(**texts)
    assert len(outcome.records) == 4
    assert outcome.error is None
    assert_same_model(outcome.arrays, honest.arrays)
    assert set(outcome.offences) == outcome.scenario.liars
    assert honest.records[-1].loss < honest.records[0].loss


def test_a_model_that_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"model='cnn' needs images; .* choose textcnn"):
        run(dataset="synthetic-reviews", model="cnn")
    with pytest.raises(ConfigurationError, match="model='textcnn' needs texts"):
        run(model="textcnn")


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="batch_size=6000, dataset fashion-mnist-6k has 5000"):
        run(batch_size=6000)


def test_ray_that_is_not_installed_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"solon-fl\[ray\]"):
        run(engine="ray")


def test_the_jsonl_tells_everything(tmp_path: Path) -> None:
    outcome = run(attack="nan", rounds=2)
    write_jsonl(outcome, tmp_path / "new folder" / "rounds.jsonl")
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


def test_plot_and_table_of_a_run_are_made(tmp_path: Path, honest: Outcome) -> None:
    attacked = run(attack="alie", rounds=2)
    plot_run(attacked, tmp_path / "run.png")
    plot_run(honest, tmp_path / "honest.png")
    for name in ("run.png", "honest.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert offences_table(attacked).row_count == 4


@pytest.mark.slow
def test_flowers_own_engine_gives_the_same_curve(tmp_path: Path) -> None:
    """In a process of its own: Ray starts others, and warns about its future."""
    pytest.importorskip("ray")
    outcome = run(attack="reverse", rounds=3)
    command = [sys.executable, "-c", "from solon_fl.cli import main; main()", "simulate"]
    options = "--nodes 14 --compression 3 --model logistic --attack reverse --rounds 3 --batch-size 8 --engine ray"
    done = subprocess.run(
        [*command, *options.split(), "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, *rounds, summary = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [line["accuracy"] for line in rounds] == pytest.approx(curve(outcome), abs=0.003)
    # Replies trickle in here: a group may be decoded before a slow node, liar or not, was heard.
    lying = {int(number) for number, kinds in summary["offences"].items() if "lying" in kinds}
    assert lying
    assert lying <= outcome.scenario.liars


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
    assert seen == [5, 6], "the last checkpoint was that of round 4"
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
    with pytest.raises(CheckpointError, match="has come to round 3, beyond num_rounds=2"):
        simulate(scenario, checkpoints=checkpoints)
    with pytest.raises(CheckpointError, match=r"scenario.learning_rate is .0\.05. there and .0\.1. here"):
        simulate(dataclasses.replace(scenario, learning_rate=0.1), checkpoints=checkpoints)
    with pytest.raises(ConfigurationError, match="checkpoints are for strategy='solon'; got strategy='fedavg'"):
        simulate(dataclasses.replace(scenario, strategy="fedavg"), checkpoints=checkpoints)


KILLED = """
import sys
from pathlib import Path
import torch
from solon_fl import SolonConfig
from solon_fl.simulations import Scenario, simulate
from solon_fl.simulations.run.output import write_jsonl
from solon_fl.strategies import Checkpoints

torch.set_num_threads(1)
folder = Path(sys.argv[1])
scenario = Scenario(
    config=SolonConfig(num_nodes=14, byzantine=2, compression=3),
    model="logistic",
    rounds=60,
    batch_size=8,
    attack="alie",
)
print("ready", flush=True)
outcome = simulate(scenario, lambda record: print(record.round, flush=True), Checkpoints(folder, every=3))
write_jsonl(outcome, folder / "done.jsonl")
torch.save({name: array.numpy() for name, array in outcome.arrays.items()}, folder / "model.pt")
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    """The server is killed again and again, at moments of no round in particular, until it is through."""
    random = torch.Generator().manual_seed(0)
    kills = 0
    while not (tmp_path / "model.pt").exists():
        process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline(), "it goes on"
        if kills < 3:
            time.sleep(0.25 * float(torch.rand((), generator=random)))
            process.kill()
            kills += process.wait() != 0
        process.stdout.read()
        process.stdout.close()
        assert process.wait() == 0 or kills
    assert kills >= 2
    whole = run(rounds=60, attack="alie")
    model = torch.load(tmp_path / "model.pt", weights_only=False)
    for name, array in whole.arrays.items():
        assert (model[name] == array.numpy()).all(), "bit by bit"
    lines = [json.loads(line) for line in (tmp_path / "done.jsonl").read_text().splitlines()]
    assert [line["accuracy"] for line in lines[1:-1]] == curve(whole)
    assert not list(tmp_path.glob("*.part"))


REGROUPED = dataclasses.replace(CONFIG, regroup="round")


def test_regrouping_changes_no_bit_of_an_honest_run(honest: Outcome) -> None:
    outcome = run(config=REGROUPED)
    assert vector_of(outcome.arrays).equal(vector_of(honest.arrays))
    assert curve(outcome) == curve(honest)
    assert outcome.offences == {}
    groups = [record.report.groups[0].nodes for record in outcome.records if record.report]
    assert len(set(groups)) == 4


@pytest.mark.parametrize("attack", ["reverse", "other-gradient", "alie", "near-codeword", "late", "nan"])
def test_regrouped_liars_change_nothing_and_are_named_in_the_ledger_as_nodes(attack: str, honest: Outcome) -> None:
    """Two liars in all: no grouping has more than s = 2 of them in a group."""
    outcome = run(config=REGROUPED, attack=attack)
    liars = outcome.scenario.liars
    assert len(liars) == 2
    assert_same_model(outcome.arrays, honest.arrays)
    assert curve(outcome) == curve(honest)
    kind = NAMED_AS.get(attack, "lying")
    assert outcome.offences == {liar: {kind: 4} for liar in liars}
    counts = {int(record.identity.removeprefix("id:")) - 1: getattr(record, kind) for record in outcome.ledger}
    assert counts == {number: 4 if number in liars else 0 for number in range(14)}
    assert {record.rounds for record in outcome.ledger} == {4}


def test_regrouped_colluders_know_each_other_wherever_they_are() -> None:
    """Four liars among 14: the lies of those that meet in a group fit together, and one too many is not survived."""
    outcome = run(config=REGROUPED, attack="other-gradient", num_liars=4, rounds=20)
    for record in outcome.records[1:]:
        assert record.report is not None
        for group in record.report.groups:
            lying = {node for node in group.nodes if node is not None and node - 1 in outcome.scenario.liars}
            if len(lying) <= 2:
                assert (group.decoded, set(group.corrupt_nodes)) == (True, lying)
            else:
                assert set(group.corrupt_nodes).isdisjoint(lying), "they pass, or the group fails"
    placed = [
        sum(node is not None and node - 1 in outcome.scenario.liars for node in record.report.groups[0].nodes)
        for record in outcome.records
        if record.report
    ]
    assert {2, 3} <= set(placed) | {4 - count for count in placed}


def test_groups_larger_than_2s_and_k_need_more_colluders_to_be_misled() -> None:
    """With r = 10, k = 2, three or four of them are more than s = 2, and no more than t = (r - k) / 2."""
    config = SolonConfig(num_nodes=20, byzantine=2, compression=2, group_size=10, regroup="round")
    honest, outcome = run(config=config), run(config=config, attack="other-gradient", num_liars=4, rounds=8)
    met = 0
    for record in outcome.records[1:]:
        assert record.report is not None
        for group in record.report.groups:
            lying = {node for node in group.nodes if node is not None and node - 1 in outcome.scenario.liars}
            assert set(group.corrupt_nodes) == lying
            met = max(met, len(lying))
    assert met > 2
    assert curve(outcome)[:5] == curve(honest)


def test_a_quarantined_liar_stays_out_of_every_group(honest: Outcome) -> None:
    config = dataclasses.replace(REGROUPED, quarantine_after=2)
    outcome = run(config=config, attack="reverse")
    assert_same_model(outcome.arrays, honest.arrays)
    assert outcome.offences == {liar: {"lying": 2} for liar in outcome.scenario.liars}
    states = {int(record.identity.removeprefix("id:")) - 1: record.state for record in outcome.ledger}
    assert {number for number, state in states.items() if state == "quarantined"} == outcome.scenario.liars


@pytest.mark.parametrize("attack", [None, "alie"])
def test_a_regrouped_run_that_broke_off_goes_on_as_if_nothing_had_happened(attack: str | None, tmp_path: Path) -> None:
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


def test_the_files_of_a_regrouped_run_number_nodes_not_places(tmp_path: Path) -> None:
    outcome = run(config=REGROUPED, attack="reverse", rounds=2)
    write_jsonl(outcome, tmp_path / "rounds.jsonl")
    head, _, *rounds, _ = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    for line in rounds:
        named = [number for group in line["report"]["groups"] for number in group["corrupt_nodes"]]
        assert sorted(named) == head["liars"]
    table = offences_table(outcome)
    assert list(table.columns[1].cells) == ["-", "-"]
