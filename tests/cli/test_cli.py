import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from solon_fl.cli import main


def solon_fl(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from solon_fl.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_simulate_names_the_liars_and_leaves_files(tmp_path: Path) -> None:
    done = solon_fl(
        *("simulate", "--nodes", "14", "--compression", "3", "--model", "logistic", "--attack", "reverse"),
        *("--rounds", "3", "--batch-size", "8", "--output", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    assert "3 of 3 rounds" in done.stdout
    assert "Accuracy:" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"rounds.jsonl", "plot.png"}


@pytest.mark.slow
def test_simulate_goes_beyond_the_bound_if_told_to(tmp_path: Path) -> None:
    done = solon_fl(
        *("simulate", "--nodes", "14", "--compression", "3", "--model", "logistic", "--attack", "random"),
        *("--num-liars", "6", "--beyond-bound", "accept", "--rounds", "2", "--batch-size", "8"),
        *("--output", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    assert "4 times a group had more faults than s and e" in done.stdout
    assert "could not be decoded" not in done.stdout


@pytest.mark.slow
def test_a_strategy_that_breaks_off_is_told_and_fails(tmp_path: Path) -> None:
    done = solon_fl(
        *("simulate", "--strategy", "fedavg", "--model", "logistic", "--attack", "malformed"),
        *("--rounds", "2", "--output", str(tmp_path)),
    )
    assert done.returncode == 1
    assert "The run broke off" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "23"], "num_nodes=23"),
        (["--attack", "alien"], "attack='alien'"),
        (["--beyond-bound", "perhaps"], "beyond_bound='perhaps'"),
        (["--byzantine", "4", "--group-size", "10"], "raise group_size to 14"),
        (["--dataset", "cifar10"], "--data-dir"),
        (["--verification", "trust"], "verification must be one of algebra, digest; got verification='trust'"),
        (["--redundancy", "none"], "redundancy must be one of full, reactive; got redundancy='none'"),
        (["--regroup", "daily"], "regroup must be one of never, round; got regroup='daily'"),
    ],
)
def test_bad_settings_are_one_plain_message(arguments: list[str], message: str) -> None:
    done = solon_fl("simulate", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_help_teaches() -> None:
    done = solon_fl("simulate", "--help")
    assert done.returncode == 0
    for word in ("--byzantine", "--compression", "alie", "resnet18", "fashion-mnist-6k"):
        assert word in done.stdout


COMPARE = (
    *("compare", "--strategies", "solon,fedavg", "--attacks", "none,reverse", "--nodes", "14", "--byzantine", "2"),
    *("--compression", "3", "--model", "logistic", "--rounds", "2", "--networks", "cluster-1g,home-20m"),
)


@pytest.mark.slow
def test_compare_leaves_a_report_and_runs_nothing_twice(tmp_path: Path) -> None:
    first = solon_fl(*COMPARE, "--output", str(tmp_path / "[out]"))
    assert first.returncode == 0, first.stderr
    assert "was run before" not in first.stdout
    assert "home-20m" in first.stdout
    assert f"Report: {tmp_path / '[out]' / 'report.html'}" in first.stdout
    assert {path.name for path in (tmp_path / "[out]").iterdir()} == {"report.html", "accuracy.png", "runs"}
    assert len(list((tmp_path / "[out]" / "runs").glob("*.jsonl"))) == 4
    second = solon_fl(*COMPARE, "--output", str(tmp_path / "[out]"))
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("was run before") == 4
    title = "A quarter of 20 nodes lie"
    assert second.stdout.partition(title)[2] == first.stdout.partition(title)[2] != ""


@pytest.mark.slow
def test_compare_says_what_it_could_not_run(tmp_path: Path) -> None:
    done = solon_fl(
        *("compare", "--strategies", "bulyan,byzfl-caf", "--attacks", "none", "--nodes", "7", "--byzantine", "2"),
        *("--compression", "3", "--model", "logistic", "--rounds", "1", "--output", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    assert "Bulyan needs at least 11 nodes for 2 liars; got num_nodes=7" in done.stdout
    assert "not possible" in done.stdout


@pytest.mark.slow
def test_compare_lists_what_comes_with_the_package() -> None:
    done = solon_fl("compare", "--list")
    assert done.returncode == 0
    for words in ("demo", "A quarter of 20 nodes lie", "paper-cifar10-small", "paper-mr", "VGG13 on SVHN"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "demo: [scenario] rounds must be at least 1; got rounds=0"),
        (["--strategies", "solon,nosuch"], "strategies: there is no 'nosuch'"),
        (["--networks", "cluster-2g"], "did you mean cluster-1"),
        (["--target-accuracy", "95"], "target_accuracy=95.0"),
        (["--nodes", "23"], "demo: [config] num_nodes must be a multiple of group_size; got num_nodes=23"),
        (["papper-mr"], "there is no 'papper-mr'; did you mean paper-mr?"),
        (["[/red].toml"], "[/red].toml: can't be read"),
    ],
)
def test_bad_settings_of_a_comparison_are_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["solon-fl", "compare", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert told.out == ""


@pytest.mark.slow
def test_bad_settings_of_a_comparison_are_one_line_in_a_process_of_its_own() -> None:
    done = solon_fl("compare", "--threads", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: threads must be from 1 to ")
    assert done.stderr.endswith(" on this machine; got threads=0.\n")


@pytest.mark.parametrize("command", ["simulate", "demo", "compare"])
def test_an_output_that_is_no_folder_is_told_before_anything_is_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr("sys.argv", ["solon-fl", command, "--output", str(file)])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith(
        f"error: output must be a folder that can be written to; got output='{file}'"
    )
    assert list(tmp_path.iterdir()) == [file]


def test_the_version_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["solon-fl", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.strip() == version("solon-fl")


@pytest.mark.slow
def test_the_demo_runs(tmp_path: Path) -> None:
    done = solon_fl("demo", "--rounds", "1", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for words in ("20 nodes, 5 of them liars", "MultiKrum", "reverse", "Report: "):
        assert words in done.stdout
    assert (tmp_path / "report.html").is_file()
