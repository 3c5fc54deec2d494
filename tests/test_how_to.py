"""The code of the how-to pages runs as it stands."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOW_TO = Path(__file__).parent.parent / "docs/how-to"


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (HOW_TO / page).read_text(), flags=re.DOTALL)


def sides(diff: str) -> tuple[str, str]:
    """Return what a diff takes away, and what it puts there."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    return tuple("\n".join(line[1:] for line in lines if not line.startswith(sign)) for sign in "+-")  # type: ignore[return-value]


class TestConvertAnApp:
    page = "convert-an-app.md"

    @pytest.fixture(autouse=True)
    def _leave_no_modules(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        yield
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_app"]:
            del sys.modules[name]

    def run(self, folder: Path, task: str, client: str, server: str, lying: str = "") -> None:
        (folder / "my_app").mkdir()
        for name, text in (("task", task), ("client_app", client), ("server_app", server)):
            (folder / "my_app" / f"{name}.py").write_text(text)
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        exec(blocks(self.page, "python")[2], {})

    @pytest.mark.parametrize("way", ["FedAvg", "mod", "mixin"])
    def test_before_and_after(self, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        task, mixin, _, liar = blocks(self.page, "python")
        data, client, server, optimizer = map(sides, blocks(self.page, "diff"))
        (printed,) = blocks(self.page, "text")
        if way == "FedAvg":
            self.run(tmp_path, task, client[0], server[0])
            assert Path("final_model.pt").is_file()
            return
        for before, after in zip(data[0].split("\n\n\n"), data[1].split("\n\n\n"), strict=True):
            assert before in task
            task = task.replace(before, after)
        if way == "mod":
            function = client[1].replace("mods=[", "mods=[liar, ")
            self.run(tmp_path, task, f"{liar}\n{function}", server[1])
        else:
            assert optimizer[0] in server[1]
            app = f"{liar}\n{mixin}".replace("client_app()", "client_app([liar])")
            self.run(tmp_path, task, app, server[1].replace(*optimizer))
        assert capsys.readouterr().out == printed
        assert Path("final_model.pt").is_file()
