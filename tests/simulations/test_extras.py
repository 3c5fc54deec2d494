"""The simulation needs only what a node has installed. Packages of the extra are asked for where they are needed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from solon_fl.errors import ConfigurationError
from solon_fl.simulations import load_dataset
from solon_fl.simulations.compare.plots import plot_accuracy
from solon_fl.simulations.compare.report import write_report
from solon_fl.simulations.extras import simulation_extra
from solon_fl.simulations.run.plots import plot_run
from solon_fl.simulations.threads import limited_threads
from tests.simulations.compare import handmade
from tests.simulations.datasets.test_datasets import write_image_folder
from tests.simulations.run.small import run

BARE = """
import sys

import flwr.app, flwr.clientapp, flwr.serverapp, flwr.serverapp.strategy, flwr.supercore.run

BLOCKED = {"matplotlib", "jinja2", "PIL"} | {"typer", "rich"} - sys.modules.keys()  # Flower itself imports the last two

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
before = set(sys.modules)

from solon_fl import SolonConfig
from solon_fl.simulations import Scenario, simulate
from solon_fl.simulations.attacks import Reverse, attack_mod
from solon_fl.simulations.compare import Comparison, run_comparison

config = SolonConfig(num_nodes=7, byzantine=2, compression=3)
outcome = simulate(Scenario(config=config, attack="alie", model="logistic", rounds=1, batch_size=4))
assert set(outcome.offences) == outcome.liars
roots = {name.partition(".")[0] for name in sys.modules.keys() - before}
assert not roots & {"matplotlib", "jinja2", "PIL", "typer", "rich"}, roots
"""


@pytest.mark.slow
def test_running_and_comparing_need_no_extra() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("package", "what"),
    [
        ("matplotlib", "plots"),
        ("jinja2", "reports"),
        ("PIL", "folders of images"),
        ("threadpoolctl", "limits of threads"),
    ],
)
def test_a_missing_package_is_a_sentence_that_names_the_extra(
    package: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image_folder(tmp_path / "images")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    results = handmade.results(handmade.SOLON)
    needing: dict[str, list[Callable[[], object]]] = {
        "matplotlib": [lambda: plot_run(run(rounds=1), tmp_path / "run.png"), lambda: plot_accuracy(results)],
        "jinja2": [lambda: write_report(results, tmp_path / "report.html")],
        "PIL": [lambda: load_dataset("cifar10", tmp_path / "images")],
        "threadpoolctl": [lambda: limited_threads(1).__enter__()],
    }
    message = rf"^{what} need {package}, which can't be imported \(.*\); pip install 'solon-fl\[simulation\]'\.$"
    for call in needing[package]:
        with pytest.raises(ConfigurationError, match=message):
            call()


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError), simulation_extra("plots"):
        _ = 1 / 0
