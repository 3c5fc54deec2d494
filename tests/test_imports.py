"""Imports point one way, never in a circle, and don't import packages that only the command line and reports need."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "solon_fl"
# Each room may import from itself and from the lines above it; rooms in one line must not import each other.
ROOMS = [
    ["errors"],
    ["checks", "downlink", "epochs", "pages", "parts", "wire"],
    ["coding", "resident"],
    ["config"],
    ["task"],
    ["clients", "strategies"],
    ["baselines", "monitoring"],
    ["simulations"],
    ["launch"],
    ["cli"],
]
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
ONLY_FOR_REPORTS = ["PIL", "jinja2", "matplotlib", "threadpoolctl", "typer"]
Graph = dict[str, set[str]]  # the modules that each module imports


def modules_in(folder: Path, package: str) -> dict[str, Path]:
    """Return the files of a package's modules by dotted name; the name of a package is its own."""
    found = {}
    for path in sorted((folder / package).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def graph_of(modules: dict[str, Path], *, deferred: bool) -> Graph:
    """Return the graph of imports; `deferred` includes imports inside functions."""
    return {
        name: {
            imported
            for node in statements(ast.parse(path.read_text()), deferred)
            for imported in imported_by(node, name, path.name == "__init__.py", modules)
        }
        for name, path in modules.items()
    }


def statements(tree: ast.AST, deferred: bool) -> Iterator[ast.AST]:
    """Return all statements, including those under `if TYPE_CHECKING` and `try`, and if `deferred` in functions."""
    for child in ast.iter_child_nodes(tree):
        if deferred or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from statements(child, deferred)


def imported_by(node: ast.AST, module: str, is_package: bool, modules: dict[str, Path]) -> set[str]:
    """Return the modules that a statement imports, and the packages that Python runs to reach them.

    The packages of the importing module are left out, because they are being imported already and `__init__` may import
    its own submodules. They count if a name is imported from them, because it may not exist yet.
    """
    targets: set[str] = set()
    if isinstance(node, ast.Import):
        targets = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = module.split(".")[: len(module.split(".")) - node.level + is_package]
            base = ".".join([*package, base] if base else package)
        names = {f"{base}.{alias.name}" for alias in node.names}
        targets = (names & modules.keys()) | ({base} if names - modules.keys() else set())
    on_the_way = {parent for target in targets for parent in parents(target) if parent not in parents(module)}
    return ((targets | on_the_way) & modules.keys()) - {module}


def parents(module: str) -> list[str]:
    """Return the packages that contain a module; a package contains itself."""
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def circle_in(graph: Graph) -> list[str]:
    """Return modules that each import the next one, the last one importing the first; [] if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def wrong_ways(graph: Graph) -> list[str]:
    """Return the imports that are not allowed between rooms."""
    return [
        f"{module} imports {imported}"
        for module, all_imported in sorted(graph.items())
        for imported in sorted(all_imported)
        if not may_import(module, imported)
    ]


def may_import(module: str, imported: str) -> bool:
    """Return whether a module's room may import another's room; the package itself re-exports up to the config."""
    own, other = room_of(module), room_of(imported)
    if other == PACKAGE:
        return False
    if own == PACKAGE:
        return LEVELS[other] <= LEVELS["config"]
    return own == other or LEVELS[other] < LEVELS[own]


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


MODULES = modules_in(ROOT, PACKAGE)


def test_every_module_is_in_a_room() -> None:
    assert len(MODULES) > 80
    assert {room_of(module) for module in MODULES} == {PACKAGE, *LEVELS}


def test_no_modules_import_each_other_in_a_circle() -> None:
    circle = circle_in(graph_of(MODULES, deferred=False))
    assert not circle, "a circle: " + " imports ".join(circle)


def test_imports_point_one_way() -> None:
    found = wrong_ways(graph_of(MODULES, deferred=True))
    assert not found, "\n".join(found)


# Imports that the two tests above detect


def made_up(folder: Path, files: dict[str, str]) -> dict[str, Path]:
    for name, text in {f"{PACKAGE}/__init__.py": "", **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return modules_in(folder, PACKAGE)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("from solon_fl.coding.two import b", "from solon_fl.coding.one import a"),
        ("from .two import b", "from solon_fl.coding import one"),
        ("import solon_fl.coding.two", "if TYPE_CHECKING:\n    from .one import a"),
        ("try:\n    from . import two\nexcept ImportError:\n    pass", "class Two:\n    from .one import a"),
    ],
)
def test_a_circle_is_noticed(one: str, other: str, tmp_path: Path) -> None:
    folder = f"{PACKAGE}/coding"
    modules = made_up(tmp_path, {f"{folder}/__init__.py": "", f"{folder}/one.py": one, f"{folder}/two.py": other})
    assert sorted(set(circle_in(graph_of(modules, deferred=False)))) == ["solon_fl.coding.one", "solon_fl.coding.two"]


def test_a_circle_through_a_package_on_the_way_is_noticed(tmp_path: Path) -> None:
    files = {
        "baselines/__init__.py": "from .one import a",
        "baselines/one.py": "from solon_fl.simulations.two import b",
        "simulations/__init__.py": "from .three import c",
        "simulations/two.py": "",
        "simulations/three.py": "import solon_fl.baselines.one",
    }
    modules = made_up(tmp_path, {f"{PACKAGE}/{name}": text for name, text in files.items()})
    circle = set(circle_in(graph_of(modules, deferred=False)))
    assert {"solon_fl.baselines.one", "solon_fl.simulations", "solon_fl.simulations.three"} <= circle


def test_a_package_may_name_its_submodules_but_they_must_not_ask_it(tmp_path: Path) -> None:
    files = {f"{PACKAGE}/coding/__init__.py": "from .one import a", f"{PACKAGE}/coding/one.py": "from .two import b"}
    files[f"{PACKAGE}/coding/two.py"] = ""
    assert circle_in(graph_of(made_up(tmp_path, files), deferred=False)) == []
    files[f"{PACKAGE}/coding/two.py"] = "from solon_fl.coding import a"
    assert len(set(circle_in(graph_of(made_up(tmp_path, files), deferred=False)))) == 3


@pytest.mark.parametrize(
    ("module", "text", "shown"),
    [
        ("coding/one", "from solon_fl.config import a", "solon_fl.coding.one imports solon_fl.config"),
        ("clients/one", "from ..strategies import a", "solon_fl.clients.one imports solon_fl.strategies"),
        ("strategies/one", "import solon_fl.clients", "solon_fl.strategies.one imports solon_fl.clients"),
        ("task", "def f():\n    from solon_fl.clients import a", "solon_fl.task imports solon_fl.clients"),
        ("baselines/one", "from solon_fl import SolonConfig", "solon_fl.baselines.one imports solon_fl"),
        ("__init__", "from .strategies import a", "solon_fl imports solon_fl.strategies"),
    ],
)
def test_a_wrong_way_is_noticed(module: str, text: str, shown: str, tmp_path: Path) -> None:
    files = {f"{PACKAGE}/{name}.py": "" for name in ("config", "clients/__init__", "strategies/__init__", "task")}
    modules = made_up(tmp_path, {**files, f"{PACKAGE}/{module}.py": text})
    assert wrong_ways(graph_of(modules, deferred=True)) == [shown]


# Indirect imports

ADDED = """
import importlib, sys
import numpy, scipy.linalg, torch
import flwr.app, flwr.clientapp, flwr.serverapp
before = set(sys.modules)
for module in sys.argv[1:]:
    importlib.import_module(module)
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


@pytest.mark.slow
def test_nodes_and_server_load_nothing_that_only_reports_need() -> None:
    modules = ["solon_fl.coding", "solon_fl.clients", "solon_fl.strategies", "solon_fl.baselines"]
    done = subprocess.run(
        [sys.executable, "-c", ADDED, *modules], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    added = done.stdout.split()
    assert PACKAGE in added
    assert not set(added) & set(ONLY_FOR_REPORTS), added
