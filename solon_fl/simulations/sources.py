"""Digests of the user's code and folders of data, so that a changed file never passes for the old one."""

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
    """Return a digest of what stands behind a name, in hexadecimal digits; None if that is part of this package.

    Of an import path: the source of its module, of the packages around it, and of the modules that these import,
    directly or not, but for what is installed. Of a folder: the names, sizes and times of its files, also behind links.
    What code reads from elsewhere is not looked at. All is read once in a process.
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
    """Yield path, size in bytes and time in ns of all files in a folder, also behind links to other folders."""
    for root, folders, names in os.walk(folder, followlinks=True):
        here = Path(root)
        around = {os.path.realpath(place) for place in (here, *here.parents)}
        # A link to a folder that holds it would lead round for ever.
        folders[:] = [name for name in folders if os.path.realpath(here / name) not in around]
        for path in (here / name for name in names):
            if path.is_file():
                yield str(path), path.stat().st_size, path.stat().st_mtime_ns


def _sources(modules: Iterable[str]) -> set[Path]:
    """Return the user's files among those of modules, of the packages around them, and of all that they import."""
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
    """Return the file of a module if it is the user's; a package that is not theirs is not even imported."""
    for name in (module.partition(".")[0], module):
        try:
            spec = importlib.util.find_spec(name)
        except Exception:  # no module, but something in one; or a package that raises
            return None
        path = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
        if spec is None or (path is not None and not is_users(path)):
            return None
    return path if path is not None and path.suffix == ".py" else None


def _imported(path: Path, module: str) -> Iterator[str]:
    """Return the names of modules, and perhaps of what is in them, that a file imports."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
