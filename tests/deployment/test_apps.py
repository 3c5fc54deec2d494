"""The examples' apps, in one process: they learn, and name the simulated liar."""

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Context, RecordDict

from solon_fl import SolonConfig
from solon_fl.simulations import InProcessGrid
from solon_fl.strategies import calibrate

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_app(folder: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an app's server with its clients for two rounds."""
    monkeypatch.syspath_prepend(str(EXAMPLES / folder))
    package = folder.replace("-", "_")
    client = importlib.import_module(f"{package}.client_app")
    server = importlib.import_module(f"{package}.server_app")
    project = tomllib.loads((EXAMPLES / folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert project["components"] == {
        "serverapp": f"{package}.server_app:app",
        "clientapp": f"{package}.{'resident' if folder == 'fashion-mnist' else 'client_app'}:app",
    }
    settings: dict[str, Any] = {**project["config"], "num-rounds": 2, **changes}
    grid = InProcessGrid(client.app, settings.get("num-nodes", 8), run_config=settings)
    server.app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "attack"), [("fashion-mnist", "reverse"), ("own-model", "alie"), ("cross-silo", "near-codeword")]
)
def test_the_app_learns_and_names_the_liar(
    folder: str, attack: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_app(folder, {"attack": attack}, monkeypatch)
    output = capsys.readouterr().out
    assert re.findall("lying: (.*)", output) == ["3", "3"]  # the node with partition id 2
    accuracies = [float(percent) for percent in re.findall(r"accuracy ([\d.]+)%", output)]
    assert accuracies[2] > accuracies[0] + 20
    assert re.search(r"^3 +member +2 +2( +0)+$", output, re.MULTILINE)


@pytest.mark.slow
def test_an_examples_nodes_can_be_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "own-model"))
    client = importlib.import_module("own_model.client_app")
    net = importlib.import_module("own_model.task").Net()
    project = tomllib.loads((EXAMPLES / "own-model" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    grid = InProcessGrid(client.app, 5, run_config={**project["config"], "attack": "reverse"})
    config = SolonConfig(num_nodes=5, byzantine=1, compression=3, mode="update")
    found = calibrate(grid, ArrayRecord(net.state_dict()), config, rounds=2)
    assert found.outliers == (3,)  # the node with partition id 2
    assert found.identical


@pytest.mark.slow
def test_with_digests_and_resting_nodes_four_are_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"num-nodes": 4, "verification": "digest", "redundancy": "reactive", "attack": "reverse", "liars": "1"}
    run_app("fashion-mnist", changes, monkeypatch)
    output = capsys.readouterr().out
    caught = re.findall("lying: (.*)", output)
    assert caught in (["2", "nobody"], ["nobody", "2"], ["nobody", "nobody"])  # depends on the drawn nodes
    accuracies = [float(percent) for percent in re.findall(r"accuracy ([\d.]+)%", output)]
    assert accuracies[2] > accuracies[0] + 20
    assert len(re.findall("quarantined", output)) == 2 - caught.count("nobody")
