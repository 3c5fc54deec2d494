"""The README's code runs unchanged, with the test's model and data."""

import re
import sys
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from flwr.app import ArrayRecord, Context, RecordDict
from PIL import Image
from torch import Tensor, nn

from solon_fl import SolonConfig
from solon_fl.cli import calibrate, compare, plan, simulate
from solon_fl.cli.app import app
from solon_fl.simulations import InProcessGrid, Outcome, load_dataset
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.simulations.compare.comparison import Comparison, parse_comparison, shipped_comparisons
from solon_fl.strategies import SolonStrategy, buffer_names
from tests.cli.command import solon_fl

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


class MyModel(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def my_data(chosen: Tensor) -> tuple[Tensor, Tensor]:
    assert len(set(chosen.tolist())) == 32
    return torch.sin(torch.outer(chosen, torch.arange(1.0, 4.0))), chosen % 2


def test_every_link_leads_to_a_file() -> None:
    root = Path(__file__).parent.parent
    for page in [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("examples/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_apps_of_the_readme_train_and_catch_a_liar(capsys: Any) -> None:
    server_code, client_code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, Any] = {"MyModel": MyModel, "my_data": my_data, "liar": attack_mod(Reverse(), {3})}
    exec(client_code.replace("client_app()", "client_app([liar])"), names)
    grid = InProcessGrid(names["app"], 20)
    exec(server_code.replace("num_rounds=100", "num_rounds=2"), names)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    names["app"](grid, context)
    assert capsys.readouterr().out == "1 lying: (4,)\n2 lying: (4,)\n"


def test_the_baselines_of_the_how_to_train() -> None:
    page = (Path(__file__).parent.parent / "docs/how-to/compare-strategies.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    client_code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    model = MyModel()
    names: dict[str, Any] = {"MyModel": MyModel, "my_data": my_data, "buffers": buffer_names(model)}
    exec(client_code, names)
    exec(code, names)
    arrays = ArrayRecord(dict(model.state_dict()))
    result = names["draco"].start(InProcessGrid(names["draco_nodes"], 20), arrays, num_rounds=1, timeout=1)
    assert result.train_metrics_clientapp[1]["stepped"] == 1


@pytest.mark.slow
def test_a_strangers_photos_and_model_are_compared_as_in_the_how_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/how-to/own-model-and-data.md").read_text()
    model, rules, attack = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (command,) = re.findall(r"^solon-fl (compare .*)$", page, re.M)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine.py").write_text("\n".join((model, rules, attack)))
    data = load_dataset("fashion-mnist-6k")
    for number, (image, label) in enumerate(zip(data.train_inputs[:120, 0], data.train_labels.tolist(), strict=False)):
        folder = Path("photos", f"kind-{label}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((60 * (image + 1)).clamp(0, 255).byte().numpy()).save(folder / f"{number}.png")
    few = "--rounds 1 --strategies solon,mine:median,mine:trimmed_mean --attacks mine:Opposite --output out"
    done = solon_fl(*command.split(), *few.split())
    assert done.exit_code == 0, done.output
    outcomes = [Outcome.load(path) for path in Path("out/runs").glob("*mine.Opposite*.jsonl")]
    assert {outcome.scenario.strategy for outcome in outcomes} == {"solon", "mine:median", "mine:trimmed_mean"}
    assert all(outcome.scenario.model == "mine:make" and outcome.error is None for outcome in outcomes)
    assert solon_fl(*command.split(), *few.split()).stdout.count("already finished") == 3
    sys.modules.pop("mine")


def test_all_strategies_that_the_how_to_compares_are_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Comparison] = []
    monkeypatch.setattr(compare, "compare", lambda comparison, *_, **__: told.append(comparison))
    page = (ROOT / "docs/how-to/compare-strategies.md").read_text()
    commands = re.findall(r"^solon-fl (compare (?!--list)[^#\n]*)", page, re.M)
    monkeypatch.chdir(tmp_path)
    Path("my-case.toml").write_text(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0])
    for command in commands:
        solon_fl(*command.split())
    assert len(told) == len(commands) > 3
    for comparison in told:
        for strategy, attack in product(comparison.strategies, comparison.attacks):
            comparison.cell(strategy, attack)


def test_the_calibration_of_the_how_to_runs(capsys: Any) -> None:
    page = (Path(__file__).parent.parent / "docs/how-to/calibrate.md").read_text()
    code, option = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    client_code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    names: dict[str, Any] = {"MyModel": MyModel, "my_data": my_data}
    exec(client_code, names)
    grid = InProcessGrid(names["app"], 20)
    exec(code, names)
    names["app"](grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))
    assert capsys.readouterr().out.splitlines()[-1].startswith("all nodes compute the same bits: code='exact' suits")
    config = SolonConfig(num_nodes=20, byzantine=2, compression=6)
    exec(option, {"SolonStrategy": SolonStrategy, "config": config, "optimizer": torch.optim.SGD})


def test_the_monitors_of_the_how_to_watch_a_run(tmp_path: Path, monkeypatch: Any) -> None:
    page = (Path(__file__).parent.parent / "docs/how-to/watch-a-run.md").read_text()
    client_code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    names: dict[str, Any] = {"MyModel": MyModel, "my_data": my_data}
    names["SolonStrategy"] = partial(SolonStrategy, buffers=buffer_names(MyModel()))
    names |= {"config": SolonConfig(num_nodes=20, byzantine=2, compression=6), "optimizer": torch.optim.SGD}
    exec(client_code, names)
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(code, names)
    names["strategy"].start(InProcessGrid(names["app"], 20), ArrayRecord(dict(MyModel().state_dict())), num_rounds=1)
    assert (tmp_path / "run.html").is_file()
    assert list((tmp_path / "logs").iterdir())


KEYS = {"simulate": simulate.KEYS, "plan": plan.KEYS, "compare": compare.KEYS, "calibrate": calibrate.KEYS}
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def test_every_comparison_file_shown_is_one_that_can_be_read() -> None:
    shown = [(page.name, text) for page in PAGES for text in re.findall(r"```toml\n(.*?)```", page.read_text(), re.S)]
    assert shown
    for name, text in shown:
        assert parse_comparison(text, name).strategies


def test_every_command_shown_has_the_options_that_it_is_shown_with() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a click Group
    shown = [line for page in PAGES for line in re.findall(r"^.*solon-fl (\w+ .*)$", page.read_text(), re.M)]
    assert len(shown) > 5
    for line in shown:
        name, *words = re.split("[#`]", line)[0].split()
        options = {option for parameter in commands[name].params for option in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= options, line
        texts = [value.rstrip("`.,)") for option, value in pairwise(words) if option == "--set"]
        assert not texts or KEYS[name].read(texts, {}), line


def test_every_comparison_named_is_shipped() -> None:
    shown = [name for page in PAGES for name in re.findall(r"solon-fl compare ([\w-]+)(?= |$)", page.read_text(), re.M)]
    assert {name for name in shown if not name.startswith("-")} <= set(shipped_comparisons())
