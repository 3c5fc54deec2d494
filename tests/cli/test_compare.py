from pathlib import Path

import pytest

from solon_fl.cli.meanings import CONFIG, SCENARIO
from tests.cli.command import is_refused, solon_fl

COMPARE = (
    *("compare", "--strategies", "solon,fedavg", "--attacks", "none,reverse", "--nodes", "14", "--byzantine", "2"),
    *("--compression", "3", "--set", "model=logistic", "--rounds", "2", "--networks", "cluster-1g,home-20m"),
)


@pytest.mark.slow
def test_compare_leaves_a_report_and_runs_nothing_twice(tmp_path: Path) -> None:
    first = solon_fl(*COMPARE, "--output", str(tmp_path / "[out]"))
    assert first.exit_code == 0, first.output
    assert "already finished" not in first.stdout
    assert "home-20m" in first.stdout
    assert f"Report: {tmp_path / '[out]' / 'report.html'}" in first.stdout
    assert {path.name for path in (tmp_path / "[out]").iterdir()} == {
        "report.html",
        "accuracy.png",
        "comparison.json",
        "runs",
    }
    assert len(list((tmp_path / "[out]" / "runs").glob("*.jsonl"))) == 4
    second = solon_fl(*COMPARE, "--output", str(tmp_path / "[out]"))
    assert second.exit_code == 0, second.output
    assert second.stdout.count("already finished") == 4
    title = "Strategies under attack"  # the demo's own title gives other numbers of nodes
    assert second.stdout.partition(title)[2] == first.stdout.partition(title)[2] != ""
    before = (tmp_path / "[out]" / "report.html").read_bytes()
    other = solon_fl(*COMPARE, "--set", "target_accuracy=0.3", "--output", str(tmp_path / "[out]"))
    assert "are now report-1.html, accuracy-1.png, comparison-1.json." in " ".join(other.stdout.split())
    assert (tmp_path / "[out]" / "report-1.html").read_bytes() == before


def test_compare_says_what_it_could_not_run(tmp_path: Path) -> None:
    done = solon_fl(
        *("compare", "--strategies", "bulyan", "--attacks", "none", "--nodes", "7", "--byzantine", "2"),
        *("--compression", "3", "--set", "model=logistic", "--rounds", "1", "--output", str(tmp_path)),
    )
    assert done.exit_code == 0, done.output
    assert "Bulyan needs at least 11 nodes for 2 liars; got num_nodes=7" in done.stdout
    assert "not possible" in done.stdout


def test_compare_lists_what_comes_with_the_package() -> None:
    done = solon_fl("compare", "--list")
    assert done.exit_code == 0
    for words in ("demo", "Five of 24 nodes lie", "paper-cifar10-small", "paper-mr", "VGG13 on SVHN"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "error: --rounds 0: rounds must be at least 1; got rounds=0."),
        (["--strategies", "solon,nosuch"], "error: --strategies solon,nosuch: there is no 'nosuch'; "),
        (["--networks", "cluster-2g"], "did you mean cluster-1"),
        (["--set", "networks=cluster-2g"], "did you mean cluster-1"),
        (["--set", "target-accuracy=95"], "error: --set target-accuracy=95: target_accuracy must be "),
        (["--nodes", "23"], "error: --nodes 23: num_nodes must be a multiple of group_size; got num_nodes=23"),
        (["papper-mr"], "there is no 'papper-mr'; did you mean paper-mr?"),
        (["[/red].toml"], "[/red].toml: can't be read"),
        (["--set", "threads=0"], "; got threads=0."),
        (["--set", "strategy=solon"], "--set: there is no 'strategy'; did you mean strategies?"),
        (
            ["--set", "batch_seconds=soon"],
            "batch_seconds must be a number; got 'soon'; write it like --set batch_seconds=",
        ),
        (
            ["--attacks", "none", "--set", "attacks=alie"],
            "attacks must be given once; got attacks=none and --set attacks",
        ),
    ],
)
def test_bad_settings_of_a_comparison_are_one_line(arguments: list[str], message: str) -> None:
    done = solon_fl("compare", *arguments)
    assert is_refused(done), done.output
    assert message in done.stderr


def test_help_explains_the_argument_and_lists_every_key() -> None:
    told = solon_fl("compare", "--help").stdout
    assert "A name from --list, or your own .toml file." in told
    _, _, table = told.partition("Keys of --set KEY=VALUE")
    keys = {line.split()[0] for line in table.splitlines() if line[1:2].isalpha()}
    own_option = {"num_nodes", "byzantine", "compression", "rounds", "seed", "strategy", "attack", "dataset", "model"}
    others = {"title", "description", "batch_seconds", "target_accuracy", "group_sizes", "threads", "processes", "key"}
    assert keys == ({*CONFIG, *SCENARIO} - own_option) | others


def test_an_output_that_is_no_folder_is_told_before_anything_is_run(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = solon_fl("compare", "--output", str(file))
    assert is_refused(done)
    assert done.stderr.startswith(f"error: output must be a writable folder; got output='{file}'")
    assert list(tmp_path.iterdir()) == [file]
