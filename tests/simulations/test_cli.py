import subprocess
import sys
from pathlib import Path

import pytest


def solon_fl(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from solon_fl.simulations.cli import main; main()"
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
        (["--byzantine", "4", "--group-size", "10"], "raise group_size to 14"),
        (["--dataset", "cifar10"], "--data-dir"),
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
