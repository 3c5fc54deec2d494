"""The code of the how-to pages runs as it stands."""

import ast
import importlib
import logging
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord

from solon_fl import CertificateWarning, ConfigurationError, GroupFailedError, SolonConfig
from solon_fl.errors import CheckpointError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import NotFinite, Reverse
from solon_fl.simulations.attacks.mods import attack_mod, crash_mod, from_round, malformed_mod, silent_mod
from solon_fl.strategies import SolonStrategy

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


def printed_by(page: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], dict[str, Any]]:
    """Execute all code of a page, and return what each block prints, if anything, and all names."""
    names: dict[str, Any] = {}
    outputs = []
    for code in blocks(page, "python"):
        exec(code, names)
        outputs.append(capsys.readouterr().out)
    return [output for output in outputs if output], names


def test_settings_of_the_smallest_groups(capsys: pytest.CaptureFixture[str]) -> None:
    page = "choose-s-k-r.md"
    outputs, names = printed_by(page, capsys)
    assert outputs == blocks(page, "text")[:1]
    text = (HOW_TO / page).read_text()
    for settings in ({"num_nodes": 21}, {"num_nodes": 9, "group_size": 9}):
        with pytest.raises(ConfigurationError) as caught:
            names["SolonConfig"](**{"byzantine": 2, "compression": 6, **settings})
        assert str(caught.value).split(";")[0].split(" 2*")[0] in text
    with pytest.warns(CertificateWarning, match=re.escape(re.findall(r"is \.\.\., (but .*?)`", text)[0])):
        names["SolonConfig"](num_nodes=44, byzantine=11, compression=22)


@pytest.mark.slow
def test_why_groups_fail(capsys: pytest.CaptureFixture[str]) -> None:
    page = "undecodable-groups.md"
    (differ, same), names = printed_by(page, capsys)
    wrong, right = blocks(page, "text")
    assert re.split(r"\d", wrong.removeprefix("... "))[1] in differ
    assert right.strip() in same

    text = (HOW_TO / page).read_text()
    client = names["MyFixedClient"]()
    start = ArrayRecord(client.build_model(None).state_dict())
    logged: list[str] = []
    logger = logging.getLogger("flwr")
    logger.addHandler(handler := logging.Handler())
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]

    def run(mods: list[Any], first: int = 1, **settings: Any) -> None:
        config = SolonConfig(num_nodes=10, byzantine=1, compression=3, group_size=5, **settings)
        strategy = SolonStrategy(config, partial(torch.optim.SGD, lr=0.0), on_round=names["tell"])
        later = [from_round(mod, first) for mod in mods]
        try:
            strategy.start(InProcessGrid(client.client_app(later), 10), start, num_rounds=first, timeout=0.2)
        except GroupFailedError as error:
            logged.append(str(error))

    two = {1, 3}
    try:
        run([attack_mod(Reverse(), two)])
        run([attack_mod(Reverse())], verification="digest")
        run([attack_mod(Reverse(), two)], 2, on_group_failure="stop")
        run([attack_mod(Reverse(), {3})], code="exact")
        run([attack_mod(Reverse(), two)], redundancy="reactive", on_group_failure="skip")
        run([silent_mod(two)])
        run([malformed_mod(two)])
        run([crash_mod()])
        run([attack_mod(NotFinite())])
    finally:
        logger.removeHandler(handler)
    assert "round 1, group 0: too-few-shares, ()\nsilent: (2, 4), malformed: {}\n" in capsys.readouterr().out
    quoted = [line.removeprefix("### `").removesuffix("`") for line in text.splitlines() if line.startswith("### `")]
    for heading in quoted:
        pattern = re.sub(r"\d+", r"\\d+", re.escape(heading).replace(r"\.\.\.", ".*"))
        assert "referee" in heading or any(re.match(pattern, line) for line in logged), heading


@pytest.mark.parametrize("page", ["after-a-crash.md", "read-the-ledger.md"])
def test_pages_print_what_they_show(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs, names = printed_by(page, capsys)
    digits = [re.findall(r"\b[0-9a-f]{16}\b", output) for output in outputs]
    shown = [re.sub(r"\b[0-9a-f]{16}\b", "x", text) for text in blocks(page, "text")]
    assert [re.sub(r"\b[0-9a-f]{16}\b", "x", output) for output in outputs] == shown
    assert all(len(set(found)) <= 1 for found in digits)
    if page == "after-a-crash.md":
        text = " ".join((HOW_TO / page).read_text().split())
        setup = blocks(page, "python")[0]
        for folder, before, after in (("run-1", "num_rounds=4", "num_rounds=3"), ("run-2", "lr=0.1", "lr=0.2")):
            exec(setup.replace(before, after), names)
            with pytest.raises(CheckpointError) as caught:
                names["train"](folder)
            assert str(caught.value).partition(";")[0].partition(" (")[0].replace("run-2", "run-1") in text


OTHERS = ("Expected all tensors", "ModuleNotFoundError", "batch_sampler option", "late", "report.", "stalled", "zip()")
VARYING = re.compile(r"dtype |:|\.\.\.|\(.*?\)|\[.*?\]|'.*?'|\w*=\d+|(?:run|server)-\d|\d+|\w+Error:")


def test_messages_quoted_are_those_of_the_program() -> None:
    """Only of the places where a message is explained: at the start of an item, a heading or a table's row."""
    root = HOW_TO.parent.parent
    files = [file for room in ("strategies", "clients") for file in (root / "solon_fl" / room).glob("*.py")]
    files += [root / "solon_fl" / name for name in ("config.py", "task.py", "coding/real/decoder.py")]
    trees = [ast.walk(ast.parse(file.read_text())) for file in files]
    texts = [node.value for tree in trees for node in tree if isinstance(node, ast.Constant)]
    program = "\n".join(text for text in texts if isinstance(text, str))
    count = 0
    for page in [HOW_TO.parent / "tutorial.md", *HOW_TO.glob("*.md")]:
        sections = page.read_text().split("\n## ")
        told = [part for part in sections if part.startswith(("If it goes wrong", "3. Find your message"))]
        for quoted in re.findall(r"^(?:- \*\*(?:A )?|### |\| )`([^`]{12,})`", "\n".join(told), re.M):
            if not quoted.startswith(OTHERS):
                count += 1
                for piece in VARYING.split(quoted):
                    assert piece.strip(" :,") in program, f"{page.name}: {quoted}"
    assert count > 30
