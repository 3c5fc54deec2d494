import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from rich.progress import Progress

from solon_fl.cli import terminal
from solon_fl.cli.meanings import CONFIG, SCENARIO
from solon_fl.simulations.run import RoundRecord, Scenario
from tests.cli.command import is_refused, solon_fl

SMALL = ("--nodes", "14", "--compression", "3", "--model", "logistic", "--set", "batch_size=8")


@pytest.mark.slow
def test_simulate_names_the_liars_and_leaves_files(tmp_path: Path) -> None:
    done = solon_fl("simulate", *SMALL, "--attack", "reverse", "--rounds", "3", "--output", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert "3 of 3 rounds" in done.stdout
    assert "Accuracy:" in done.stdout
    told = " ".join(done.stdout.split())
    assert re.search(
        r"the server sends 0\.443 MB and receives 0\.147 MB, for all nodes together, and works for [\d.]+ ms", told
    )
    assert "Training loss of the last round, as reported by the nodes (unprotected):" in told
    assert "Too few rounds (3) to show" in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"rounds.jsonl", "plot.png"}


@pytest.mark.slow
def test_a_run_that_is_stopped_leaves_what_there_is_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show_and_stop(scenario: Scenario, progress: Progress) -> Callable[[RoundRecord], None]:
        def on_round(record: RoundRecord) -> None:
            if record.round == 2:
                raise KeyboardInterrupt

        return on_round

    command = ("simulate", *SMALL, "--rounds", "4", "--output", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(terminal, "show_rounds", show_and_stop)
        unsaved = solon_fl(*command)
        assert unsaved.exit_code == 130
        told = " ".join(unsaved.stdout.split())
        assert (
            "Stopped after 2 of 4 rounds. It was not saved. With --set checkpoint_every=10 a stopped run can be" in told
        )
        saved = solon_fl(*command, "--set", "checkpoint_every=1")
        assert "Run the same command to continue after round 2, the last one saved." in " ".join(saved.stdout.split())
    _, *rounds, summary = map(json.loads, (tmp_path / "rounds.jsonl").read_text().splitlines())
    assert [line["round"] for line in rounds] == [0, 1, 2]
    assert summary["error"] == "stopped in round 3 of 4"
    assert (tmp_path / "plot.png").stat().st_size > 1000
    (tmp_path / "plot.png").unlink()
    resumed = solon_fl(*command, "--set", "checkpoint_every=1")
    assert resumed.exit_code == 0, resumed.output
    _, *rounds, summary = map(json.loads, (tmp_path / "rounds.jsonl").read_text().splitlines())
    assert [line["round"] for line in rounds] == [0, 1, 2, 3, 4]
    assert summary["error"] is None
    assert (tmp_path / "plot.png").exists()
    assert not (tmp_path / "rounds-1.jsonl").exists()  # the new file includes the first two rounds
    again = solon_fl(*command, "--set", "checkpoint_every=1")
    assert "Already finished: all 4 rounds were loaded" in " ".join(again.stdout.split())
    assert "0/4" not in again.stdout
    assert "Already finished" not in resumed.stdout


@pytest.mark.slow
def test_an_earlier_run_of_other_settings_keeps_its_files(tmp_path: Path) -> None:
    command = ("simulate", *SMALL, "--output", str(tmp_path), "--rounds")
    first = solon_fl(*command, "2")
    assert "An earlier run" not in first.stdout
    before = (tmp_path / "rounds.jsonl").read_bytes()
    other = solon_fl(*command, "2", "--seed", "5")
    assert "are now rounds-1.jsonl, plot-1.png." in " ".join(other.stdout.split())
    assert (tmp_path / "rounds-1.jsonl").read_bytes() == before
    shorter = solon_fl(*command, "1", "--seed", "5")
    assert "are now rounds-2.jsonl, plot-2.png." in " ".join(shorter.stdout.split())
    longer = solon_fl(*command, "2", "--seed", "5")
    assert longer.exit_code == 0
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"rounds.jsonl", "rounds-1.jsonl", "rounds-2.jsonl"}


@pytest.mark.slow
def test_a_strategy_that_breaks_off_is_told_and_fails(tmp_path: Path) -> None:
    done = solon_fl(
        *("simulate", "--strategy", "fedavg", "--model", "logistic", "--attack", "malformed"),
        *("--rounds", "2", "--output", str(tmp_path)),
    )
    assert done.exit_code == 1
    assert "The run broke off" in done.stdout


@pytest.mark.slow
def test_what_is_set_is_what_is_run(tmp_path: Path) -> None:
    wanted = {
        "local_learning_rate": 0.125,
        "momentum": 0.5,
        "data_dir": None,
        "compute_once": False,
        "sign_learning_rate": 0.25,
    }
    config = {
        "stragglers": 1,
        "group_size": 14,
        "mode": "gradient",
        "code": "exact",
        "rtol": 2e-6,
        "redundancy": "reactive",
        "quarantine_after": 3,
        "group_weights": [2.0],
    }
    texts = [
        "local-learning-rate=0.125",
        "momentum=.5",
        "data_dir=none",
        "compute_once=False",
        "sign_learning_rate=0.25",
    ]
    texts += ["stragglers=1", "group-size=14", "mode=gradient", "code=exact", "rtol=2e-6"]
    texts += ["redundancy=reactive", "quarantine_after=3", "group_weights=2", "checkpoint_every=1", "threads=1"]
    options = [argument for text in texts for argument in ("--set", text)]
    done = solon_fl("simulate", *SMALL, *options, "--rounds", "1", "--output", str(tmp_path))
    assert done.exit_code == 0, done.output
    head = json.loads((tmp_path / "rounds.jsonl").read_text().splitlines()[0])
    scenario = head["scenario"]
    assert {name: scenario[name] for name in wanted} == wanted
    assert {name: scenario["config"][name] for name in config} == config
    assert (scenario["batch_size"], scenario["rounds"], scenario["config"]["num_nodes"]) == (8, 1, 14)
    assert list((tmp_path / "checkpoints").glob("round-000001.*"))


def summary_of(done: Result, folder: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return the first and the last line of a run's file, and its printed output as one line."""
    assert done.exit_code == 0, done.output
    head, *_, summary = map(json.loads, (folder / "rounds.jsonl").read_text().splitlines())
    return head, summary, " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_referee_finds_five_liars_of_six_nodes(tmp_path: Path) -> None:
    options = "--nodes 6 --byzantine 5 --compression 5 --referee --model logistic --rounds 3 --attack reverse"
    settings = "attack_from=2 verification=digest code=exact batch_size=8"
    given = [*options.split(), *(word for setting in settings.split() for word in ("--set", setting))]
    head, summary, told = summary_of(solon_fl("simulate", *given, "--output", str(tmp_path)), tmp_path)
    assert head["scenario"]["config"]["group_size"] == 6
    assert summary["convicted"] == head["liars"] == [0, 1, 2, 3, 5]
    expected = (
        r"In 3 rounds nodes computed their group's batches 13 times. The referee computed them 1 time "
        r"\(shares disagree: 1\) and took "
    )
    assert re.search(expected + r"[\d.]+ s\. It convicted nodes 0, 1, 2, 3, 5\.", told), told
    honest = solon_fl("simulate", *given, "--set", "num_liars=0", "--output", str(tmp_path / "honest"))
    _, other, told = summary_of(honest, tmp_path / "honest")
    assert other["model_sha256"] == summary["model_sha256"]
    assert "The referee was not asked in any of 3 rounds." in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "nodes", "group_size"),
    [
        ((), 20, 10),
        (("--referee",), 24, 8),
        (("--referee", "--set", "verification=digest"), 24, 6),
        (("--set", "verification=digest"), 24, 8),
        (("--byzantine", "3"), 24, 12),
        (("--set", "group_size=11"), 22, 11),
    ],
)
def test_without_a_number_of_nodes_there_are_enough_for_whole_groups(
    arguments: tuple[str, ...], nodes: int, group_size: int, tmp_path: Path
) -> None:
    quick = ("--rounds", "1", "--model", "logistic", "--set", "batch_size=1", "--output", str(tmp_path))
    head, _, _ = summary_of(solon_fl("simulate", *arguments, *quick), tmp_path)
    config = head["scenario"]["config"]
    assert (config["num_nodes"], config["group_size"]) == (nodes, group_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "23"], "num_nodes=23"),
        (["--attack", "alien"], "attack='alien'"),
        (["--set", "on-group-failure=perhaps"], "on_group_failure='perhaps'"),
        (["--byzantine", "4", "--set", "group-size=10"], "raise group_size to 14"),
        (
            ["--set", "verification=trust"],
            "verification must be one of algebra, digest; got verification='trust'",
        ),
        (["--set", "redundancy=none"], "redundancy must be one of full, reactive; got redundancy='none'"),
        (["--set", "regroup=daily"], "regroup must be one of never, round; got regroup='daily'"),
        (["--set", "audit=0.1"], "audit=0.1 needs a referee; got referee=False; set referee=True."),
        (
            ["--referee", "--set", "referee=false"],
            "referee must be given once; got referee=True and --set referee=false",
        ),
        (
            ["--referee", "--set", "group_size=7"],
            "byzantine + stragglers + compression with a referee; got group_size=7",
        ),
        (["--referee", "--strategy", "fedavg"], "a referee needs strategy=solon; got --referee and strategy=fedavg"),
        (["--set", "attack_from=0"], "attack_from must be at least 1; got attack_from=0"),
        (["--set", "checkpoint_every=0"], "checkpoint_every must be a whole number >= 1; got checkpoint_every=0"),
        (["--set", "threads=0"], "threads must be from 1 to "),
        (["--set", "strategies=solon"], "--set: there is no 'strategies'; did you mean strategy?"),
        (["--set", "bacth-size=8"], "--set: there is no 'bacth-size'; did you mean batch_size?"),
        (
            ["--set", "batch_size=many"],
            "batch_size must be a whole number; got 'many'; write it like --set batch_size=32.",
        ),
        (["--set", "rtol=small"], "rtol must be a number; got 'small'; write it like --set rtol=1e-06."),
        (["--set", "num_liars=two"], "num_liars must be a whole number; got 'two'; write it like --set num_liars=1."),
        (["--set", "compute_once=maybe"], "compute_once must be true or false; got 'maybe'; write it like "),
        (["--set", "batch_size"], "--set must be followed by KEY=VALUE; got --set batch_size; add = and the value."),
        (["--rounds", "3", "--set", "rounds=4"], "rounds must be given once; got rounds=3 and --set rounds=4"),
        (["--set", "rtol=1e-5", "--set", "rtol=1e-4"], "got --set rtol=1e-5 and --set rtol=1e-4; leave one out."),
    ],
)
def test_bad_settings_are_one_plain_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = solon_fl("simulate", "--output", str(tmp_path), *arguments)
    assert is_refused(done), done.output
    assert message in done.stderr


def test_a_data_set_that_is_not_there_is_one_plain_message(tmp_path: Path) -> None:
    done = solon_fl("simulate", "--output", str(tmp_path), "--dataset", "cifar10")
    assert done.exit_code == 2
    assert "set data_dir to the folder that holds train/<class>/" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_misspelt_folder_or_data_set_gets_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for option, suggestion in (
        ("phots", "or module:name of your own; got dataset='phots'; did you mean photos?"),
        ("./phots", "got dataset='phots'; did you mean photos?"),
        ("fashion-mnist-6", "did you mean fashion-mnist-6k?"),
    ):
        done = solon_fl("simulate", "--dataset", option)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
        assert suggestion in done.stderr
    done = solon_fl("simulate", "--dataset", "svhn", "--set", "data_dir=phots")
    assert "data_dir must exist; got data_dir='phots'; did you mean photos?" in done.stderr


def test_help_teaches() -> None:
    done = solon_fl("simulate", "--help")
    assert done.exit_code == 0
    for word in ("--byzantine", "--compression", "alie", "resnet18", "fashion-mnist-6k", "--referee", "attack_from"):
        assert word in done.stdout


def test_help_lists_every_key_with_its_default() -> None:
    told = solon_fl("simulate", "--help").stdout
    _, _, table = told.partition("Keys of --set KEY=VALUE")
    rows = dict(line.split()[:2] for line in table.splitlines() if line[1:2].isalpha())
    own_option = {
        "num_nodes",
        "byzantine",
        "compression",
        "attack",
        "strategy",
        "referee",
        "rounds",
        "dataset",
        "model",
    }
    own_option |= {"seed"}
    assert rows.pop("key") == "default"
    assert rows.keys() == {*CONFIG, *SCENARIO, "threads", "checkpoint_every"} - own_option
    assert (rows["batch_size"], rows["rtol"], rows["num_liars"], rows["compute_once"]) == (
        "32",
        "1e-06",
        "none",
        "true",
    )
    assert rows["verification"] == "algebra"


def test_an_output_that_is_no_folder_is_told_before_anything_is_run(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = solon_fl("simulate", "--output", str(file))
    assert is_refused(done)
    assert done.stderr.startswith(f"error: output must be a writable folder; got output='{file}'")
    assert list(tmp_path.iterdir()) == [file]
