from pathlib import Path

from solon_fl.simulations.run.plots import plot_run
from tests.simulations.run.small import run


def test_plots_of_runs_are_made(tmp_path: Path) -> None:
    plot_run(run(attack="alie", rounds=2), tmp_path / "run.png")
    plot_run(run(), tmp_path / "honest.png")
    for name in ("run.png", "honest.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
