"""User code is found and called, its errors are reported as such, and changed files are noticed."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.own import call_own, import_path, load_own, seeded, theirs
from solon_fl.simulations.sources import _files_in, digest_of
from tests.simulations.own import Write, write
from tests.simulations.run.small import scenario

__all__ = ["write"]


def test_what_an_import_path_leads_to_is_found_in_the_current_folder(write: Write) -> None:
    name = write("class Net:\n    small = staticmethod(lambda: 7)\n")
    assert load_own("model", f"{name}:Net.small")() == 7


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nosuch_module:make", "model='nosuch_module:make' needs a module nosuch_module; there is none in "),
        ("json.nosuch:make", "needs a module json.nosuch; there is none in "),
        ("{}:mke", "needs 'mke' in {}; did you mean make?"),
        ("{}:other", "needs 'other' in {}; it defines make."),
        ("{}.py:make", "must be written as module:name, as Python imports it; got model='{}.py:make'"),
        ("folder/{}:make", "must be written as module:name"),
        ("{}:", "must be written as module:name"),
    ],
)
def test_what_is_not_there_is_said(path: str, message: str, write: Write) -> None:
    name = write("from math import pi\ndef make(): ...\n")
    with pytest.raises(ConfigurationError) as raised:
        load_own("model", path.format(name))
    assert message.format(name) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "\nimport nosuch_module\n",
            "ModuleNotFoundError: No module named 'nosuch_module', in {}.py, line 2, <mod",
        ),
        ("def f(:\n", "SyntaxError: invalid syntax ({0}.py, line 1), in {0}.py, line 1;"),
        ("raise SystemExit(1)\n", "SystemExit: 1, in {}.py, line 1"),
    ],
)
def test_what_an_import_raises_is_blamed_on_its_line(text: str, message: str, write: Write) -> None:
    name = write(text)
    with pytest.raises(ConfigurationError) as raised:
        load_own("model", f"{name}:f")
    assert f"model='{name}:f' must not raise; got {message.format(name)}" in str(raised.value)


def test_the_innermost_line_that_is_the_users_is_blamed(write: Write) -> None:
    name = write("import torch\ndef outer():\n    inner()\ndef inner():\n    torch.nn.Linear(2, 2)(torch.zeros(3))\n")
    outer = load_own("dataset", f"{name}:outer")
    with pytest.raises(ConfigurationError, match=rf"RuntimeError: .*, in {name}.py, line 5, inner; the error"):
        call_own("dataset", f"{name}:outer", outer, {})
    with pytest.raises(ConfigurationError, match=r"^says enough$"), theirs("dataset", name):
        raise ConfigurationError("says enough")


def test_a_function_gets_what_its_signature_names() -> None:
    def make(seed: int, other: int = 3) -> tuple[int, int]:
        return seed, other

    offered = {"seed": 1, "decoder": 2}
    assert call_own("attack", "a:make", make, offered) == (1, 3)
    with pytest.raises(ConfigurationError, match=r"may take seed, decoder, and nothing else .* that takes size"):
        call_own("attack", "a:make", lambda size: size, offered)


def test_a_function_is_given_by_its_import_path() -> None:
    assert import_path("model", Path.exists) == "pathlib:Path.exists"
    assert import_path("attack", None) is None
    unreachable: list[Callable[[], None]] = [lambda: None, test_a_function_is_given_by_its_import_path.__get__(1)]
    for thing in unreachable:
        with pytest.raises(ConfigurationError, match="define it at the top level of a module of yours"):
            import_path("model", thing)


def test_random_states_are_seeded_and_left_alone() -> None:
    def draw() -> tuple[float, ...]:
        return float(torch.rand(())), random.random(), float(np.random.rand())  # noqa: NPY002

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    drawn = []
    for seed in (5, 5, 6):
        with seeded(seed):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_digest_follows_imports_and_files(write: Write) -> None:
    helper = write("SCALE = 1\n")
    name = write(f"import torch\ndef f():\n    from {helper} import SCALE\n")
    bystander = Path(write("X = 1\n") + ".py")

    def digest(what: str) -> str | None:
        digest_of.cache_clear()
        return digest_of(what)

    first = digest(f"{name}:f")
    bystander.write_text("X = 2\n")
    assert first == digest(f"{name}:f") is not None
    Path(f"{helper}.py").write_text("SCALE = 2\n")
    assert first != digest(f"{name}:f")
    Path("photos/cat").mkdir(parents=True)
    Path("photos/cat/1.png").write_bytes(b"1")
    empty = digest("photos")
    Path("photos/cat/1.png").write_bytes(b"12")
    assert empty != digest("photos") is not None
    Path("linked").mkdir()
    for link in ("cat", "tiger"):
        Path("linked", link).symlink_to(Path("photos/cat").resolve())
    Path("linked/loop").symlink_to(Path("linked").resolve())
    assert sorted(path for path, *_ in _files_in("linked")) == ["linked/cat/1.png", "linked/tiger/1.png"]
    linked = digest("linked")
    Path("photos/cat/2.png").write_bytes(b"2")
    assert linked != digest("linked") is not None
    Path("nest").mkdir()
    Path("nest/__init__.py").write_text("")
    Path("nest/eggs.py").write_text("def f(): pass\n")
    plain = digest("nest.eggs:f")
    Path("nest/__init__.py").write_text("X = 1\n")
    assert plain != digest("nest.eggs:f") is not None
    assert digest("cnn") is None


@pytest.mark.parametrize(
    ("field", "name", "guess"),
    [
        ("strategy", "multikrumm", "multikrum"),
        ("attack", "revers", "reverse"),
        ("engine", "rai", "ray"),
        ("dataset", "fashion-mnist6k", "fashion-mnist-6k"),
        ("model", "resnet", "resnet18"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_right_one(field: str, name: str, guess: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"got {field}='{name}'; did you mean {guess}\?$"):
        scenario(**{field: name})
