"""Digests of the user's code and data folders, which reveal changed files."""

import ast
import hashlib
import importlib.util
import inspect
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from solon_fl.simulations.own import is_own, is_users, load_own

__all__ = ["digest_of"]


@cache
def digest_of(name: str) -> str | None:
    """Return a digest of the code or data behind a name, in hexadecimal digits, or None if the package provides it.

    For an import path, the digest covers the source of its module, of the packages that contain it, and of all modules
    that these import, directly or not, except installed ones. For a folder, it covers the names, sizes and modification
    times of its files, also behind links. Files that code reads elsewhere are not covered. Each name is read once per
    process.
    """
    if is_own(name):
        found = load_own("code", name)
        modules = {name.partition(":")[0], str(getattr(inspect.getmodule(found), "__name__", ""))}
        content: object = {str(path): path.read_bytes() for path in sorted(_sources(modules))}
    elif Path(name).is_dir():
        content = sorted(_files_in(name))
    else:
        return None
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _files_in(folder: str) -> Iterator[tuple[str, int, int]]:
    """Yield path, size in bytes and modification time in ns of all files in a folder, also behind links."""
    for root, folders, names in os.walk(folder, followlinks=True):
        here = Path(root)
        around = {os.path.realpath(place) for place in (here, *here.parents)}
        # A link to one of its parent folders would never end.
        folders[:] = [name for name in folders if os.path.realpath(here / name) not in around]
        for path in (here / name for name in names):
            if path.is_file():
                yield str(path), path.stat().st_size, path.stat().st_mtime_ns


def _sources(modules: Iterable[str]) -> set[Path]:
    """Return the user's files among modules, the packages that contain them, and everything that they import."""
    files: set[Path] = set()
    waiting, seen = list(modules), set(modules)
    while waiting:
        module = waiting.pop()
        if (package := module.rpartition(".")[0]) and package not in seen:
            seen.add(package)
            waiting.append(package)
        path = _users_file(module)
        if path is not None:
            files.add(path)
            new = set(_imported(path, module)) - seen
            seen |= new
            waiting += new
    return files


def _users_file(module: str) -> Path | None:
    """Return the file of a module if it is the user's. Other packages are not even imported."""
    for name in (module.partition(".")[0], module):
        try:
            spec = importlib.util.find_spec(name)
        except Exception:  # an attribute of a module rather than a module, or a package that raises
            return None
        path = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
        if spec is None or (path is not None and not is_users(path)):
            return None
    return path if path is not None and path.suffix == ".py" else None


def _imported(path: Path, module: str) -> Iterator[str]:
    """Yield the names of modules, and of their attributes, that a file imports."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
