from dataclasses import replace
from pathlib import Path

import pytest

from solon_fl.cli import demo
from solon_fl.simulations.compare import load_comparison
from tests.cli.command import solon_fl

DEMO = load_comparison("demo")


@pytest.mark.slow
def test_the_demo_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smaller = replace(DEMO, strategies=("solon", "fedavg"), attacks=(None, "foe"))
    smaller = replace(smaller, scenario=replace(DEMO.scenario, rounds=1))
    monkeypatch.setattr(demo, "usable_cores", lambda: 1)  # new processes take seconds to import torch
    monkeypatch.setattr(demo, "load", lambda name, overrides, typed: smaller)
    done = solon_fl("demo", "--output", str(tmp_path))
    assert done.exit_code == 0, done.output
    for words in ("5 of 24 nodes lie", "FedAvg", "foe", "Report: "):
        assert words in done.stdout
    assert (tmp_path / "report.html").is_file()


def test_all_runs_of_the_demo_are_possible() -> None:
    for strategy in DEMO.strategies:
        for attack in DEMO.attacks:
            assert DEMO.cell(strategy, attack).liars == ({3, 5, 7, 12, 20} if attack else set())


def test_an_output_that_is_no_folder_is_told_before_anything_is_run(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = solon_fl("demo", "--output", str(file))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: output must be a writable folder; got output='{file}'")
    assert list(tmp_path.iterdir()) == [file]
