"""User code, written into a folder from which it can be imported."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[[str], str]
_numbers = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes a module into the current folder and returns the module's unique name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write_module(text: str) -> str:
        name = f"users_{next(_numbers)}"
        Path(f"{name}.py").write_text(text)
        return name

    return write_module
