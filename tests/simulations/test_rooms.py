"""Which room of the simulation may import which."""

import ast
from pathlib import Path

import pytest

import solon_fl.simulations

ROOT = Path(solon_fl.simulations.__file__).parent
MAY_IMPORT: dict[str, set[str]] = {
    "attacks": {"own"},
    "datasets": {"extras", "own"},
    "extras": set(),
    "network": set(),
    "own": set(),
    "run": {"attacks", "datasets", "extras", "own"},
    "settings": set(),
    "sources": {"own"},
    "compare": {"attacks", "extras", "network", "own", "run", "settings", "sources", "threads"},
    "plan": {"network", "run", "settings", "threads"},
    "threads": {"extras"},
}


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms that a file imports from, at any level."""
    statements = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    names = [node.module.split(".") for node in statements if node.module and not node.level]
    return {name[2] for name in names if name[:2] == ["solon_fl", "simulations"] and len(name) > 2}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_one_way(room: str) -> None:
    files = sorted((ROOT / room).glob("**/*.py")) or [ROOT / f"{room}.py"]
    for path in files:
        assert imported_rooms(path) - {room} <= MAY_IMPORT[room], path.name


def test_every_room_is_listed() -> None:
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(MAY_IMPORT)
