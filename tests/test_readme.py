"""The README's code runs as it stands, with a model and data of the test's."""

import re
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict
from torch import Tensor, nn

from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod

README = (Path(__file__).parent.parent / "README.md").read_text()


class MyModel(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def my_data(chosen: Tensor) -> tuple[Tensor, Tensor]:
    assert len(set(chosen.tolist())) == 32
    return torch.sin(torch.outer(chosen, torch.arange(1.0, 4.0))), chosen % 2


def test_every_link_leads_to_a_file() -> None:
    root = Path(__file__).parent.parent
    for page in [*root.glob("*.md"), *root.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_apps_of_the_readme_train_and_catch_a_liar(capsys: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    server_code, client_code, mod_code = blocks
    names: dict[str, Any] = {"MyModel": MyModel, "my_data": my_data, "liar": attack_mod(Reverse(), {3})}
    exec(client_code.replace("client_app()", "client_app([liar])"), names)
    grid = InProcessGrid(names["app"], 20)
    exec(server_code.replace("num_rounds=100", "num_rounds=2"), names)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    names["app"](grid, context)
    assert capsys.readouterr().out == "1 lying: (4,)\n2 lying: (4,)\n"

    names["my_mean_gradient"] = lambda arrays, batches: {
        name: torch.ones(array.shape) for name, array in arrays.items() if array.dtype.startswith("float")
    }
    exec(mod_code, names)
    names["app"](InProcessGrid(names["mod_app"], 20), context)
    assert capsys.readouterr().out == "1 lying: ()\n2 lying: ()\n"
