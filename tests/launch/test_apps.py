"""Errors in the folder of a Flower app are reported before anything is started."""

from pathlib import Path

import pytest

from solon_fl.launch.apps import check_app, read_app, read_node_config
from solon_fl.launch.errors import FederationError

PROJECT = """
[tool.flwr.app.components]
serverapp = "my_app.server:app"
clientapp = "my_app.client:app"
[tool.flwr.app.config]
rounds = 3
rate = 0.1
name = "x"
[tool.flwr.app.config.model]
deep = true
"""


def folder_with(folder: Path, **files: str) -> Path:
    (folder / "my_app").mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    for name, text in files.items():
        (folder / "my_app" / f"{name}.py").write_text(text)
    return folder


def test_settings_are_read_as_what_they_are(tmp_path: Path) -> None:
    app = read_app(folder_with(tmp_path))
    assert app.settings(["rounds=5", "rate=1", "name=5", "model.deep=false"]) == {
        "rounds": 5,
        "rate": 1.0,
        "name": "5",
        "model.deep": False,
    }
    for change, words in (
        ("round=5", r"with a KEY among rounds, rate, name, model.deep; got 'round=5'; did you mean rounds\?"),
        ("rounds", "setting must be KEY=VALUE"),
        ("rounds=1.5", "rounds must be a number, like 3; got '1.5'"),
        ("model.deep=yes", "model.deep must be true or false; got 'yes'"),
    ):
        with pytest.raises(FederationError, match=words):
            app.settings([change])


def test_only_whole_numbers_become_numbers() -> None:
    for text in ("--5", "-", "\u00b2", "\u0663", "007", "-0", "1.5", "9" * 5000, "a=b"):
        assert read_node_config([f"x={text}"]) == {"x": text}
    assert read_node_config(["x=-5", "y=0", "z=1234"]) == {"x": -5, "y": 0, "z": 1234}


def test_a_folder_without_an_app_is_told(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"a folder with a pyproject.toml; got .* \(No such file or directory\)"):
        read_app(tmp_path)
    for text, words in (
        ("[tool", "pyproject.toml must be TOML; got: "),
        ('[tool.flwr.app.components]\nserverapp = "a:b"', 'with clientapp = "my_app.client_app:app"; got {"serverapp"'),
    ):
        (tmp_path / "pyproject.toml").write_text(text)
        with pytest.raises(FederationError) as raised:
            read_app(tmp_path)
        assert words in str(raised.value)


@pytest.mark.slow
def test_an_app_that_is_broken_or_none_is_told_before_anything_is_started(tmp_path: Path) -> None:
    app = read_app(folder_with(tmp_path, server="import nosuch", client="app = 5", __init__=""))
    with pytest.raises(FederationError, match=r"(?s)my_app.server:app can't be imported \(Mod.*No module.*line 1"):
        check_app(app)
    (tmp_path / "my_app" / "server.py").write_text("from flwr.serverapp import ServerApp\napp = ServerApp()")
    with pytest.raises(FederationError, match=r"my_app.client:app must be a ClientApp; got int; see "):
        check_app(app)
