"""User code: finds it by an import path, calls it with what its signature names, and reports its exceptions as such."""

import importlib
import inspect
import random
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solon_fl.checks import closest
from solon_fl.errors import ConfigurationError

__all__ = [
    "OWN",
    "OwnCodeError",
    "arguments_for",
    "call_own",
    "import_path",
    "is_own",
    "is_users",
    "load_own",
    "seeded",
    "seeded_states",
    "theirs",
]

OWN = "module:name of your own"  # for messages
SHOWN_NAMES = 8
_STANDARD = Path(sysconfig.get_path("stdlib"))
_PACKAGE = Path(__file__).parents[1]


class OwnCodeError(ConfigurationError):
    """The user's code cannot be found, raises, or returns something unsuitable."""


def is_own(name: object) -> bool:
    """Return whether a name is an import path, such as "my_package.nets:make"."""
    return isinstance(name, str) and ":" in name


def load_own(what: str, name: str) -> Any:
    """Import the object that an import path names.

    Parameters
    ----------
    what : str
        What the object is for, such as "model", for messages.
    name : str
        ``module:attribute``. Both may have dots. Modules in the current folder can be imported, as with ``python -m``.

    Raises
    ------
    OwnCodeError
        If there is no such module or attribute, or the import raises.
    """
    module_name, _, attribute = name.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if module_name.endswith(".py") or not all(part.isidentifier() for part in parts):
        module = module_name.removesuffix(".py").replace("/", ".")
        raise OwnCodeError(
            f"{what} of your own must be written as module:name, as Python imports it; got {what}={name!r}; did you "
            f"mean {module}:{attribute}?"
        )
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{module_name}.".startswith(f"{missing}."):
            raise _blamed(what, name, error) from error
        raise OwnCodeError(
            f"{what}={name!r} needs a module {missing}; there is none in {folder}, and none is installed; start in the "
            "folder that holds it, or install it."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise OwnCodeError(f"{what}={name!r} needs {part!r} in {module_name}; {_instead(part, found)}")
        found = getattr(found, part)
    return found


def _instead(missing: str, holder: Any) -> str:
    """Return a hint at the names that exist instead of a missing one."""
    if guess := closest(missing, vars(holder)):
        return f"did you mean {guess}?"
    module = getattr(holder, "__name__", None)
    names = [name for name, value in vars(holder).items() if getattr(value, "__module__", None) == module]
    return f"it defines {', '.join(names[:SHOWN_NAMES])}." if names else "it defines nothing."


def import_path(what: str, thing: Any) -> Any:
    """Return the import path of a function or class. Strings and objects that can't be called are returned unchanged.

    Raises
    ------
    ConfigurationError
        If the object can't be imported by that path: a saved result could not say what was run.
    """
    if isinstance(thing, str) or not callable(thing):
        return thing
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "<")
    holder: Any = sys.modules.get(str(module))
    for part in name.split("."):
        holder = getattr(holder, part, None)
    if holder is not thing or module == "__main__":
        raise ConfigurationError(
            f"{what} must be a name, or a function or class that can be imported, so that results can say what it was; "
            f"got {what}={thing!r}; define it at the top level of a module of yours and import it from there."
        )
    return f"{module}:{name}"


def arguments_for(thing: Callable[..., Any], offered: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return those of the offered arguments that a signature names, and the names of others that it requires."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return {}, []
    named, others = {}, []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in offered and parameter.kind != parameter.POSITIONAL_ONLY:
            named[parameter.name] = offered[parameter.name]
        elif parameter.default is parameter.empty:
            others.append(parameter.name)
    return named, others


def call_own(what: str, name: str, make: Callable[..., Any], offered: Mapping[str, Any]) -> Any:
    """Call the user's callable with those of the offered arguments that its signature names.

    Raises
    ------
    OwnCodeError
        If it requires other arguments, or raises.
    """
    arguments, others = arguments_for(make, offered)
    if others:
        raise OwnCodeError(
            f"{what}={name!r} may take {', '.join(offered)}, and nothing else without a default; got one that takes "
            f"{', '.join(others)}; give that a default, or name a function that calls it."
        )
    with theirs(what, name):
        return make(**arguments)


@contextmanager
def theirs(what: str, name: str) -> Iterator[None]:
    """Report an exception as raised in the user's code, and say where.

    Raises
    ------
    OwnCodeError
        In place of any exception that is not a ConfigurationError.
    """
    try:
        yield
    except ConfigurationError:  # its message is enough
        raise
    except Exception as error:
        raise _blamed(what, name, error) from error


def _blamed(what: str, name: str, error: BaseException) -> OwnCodeError:
    told = " ".join(f"{type(error).__name__}: {error}".split())
    where = f", in {place}" if (place := _place(error)) else ""
    return OwnCodeError(
        f"{what}={name!r} must not raise; got {told}{where}; the error is in that code, not in solon_fl."
    )


def _place(error: BaseException) -> str | None:
    """Return file, line and function of the innermost frame in the user's code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_users(Path(frame.filename))]
    return f"{_shown(own[-1].filename)}, line {own[-1].lineno}, {own[-1].name}" if own else None


def is_users(path: Path) -> bool:
    """Return whether a file is the user's: not part of Python, solon_fl or an installed package."""
    is_installed = {"site-packages", "dist-packages"} & set(path.parts)
    return path.is_absolute() and not (is_installed or path.is_relative_to(_STANDARD) or path.is_relative_to(_PACKAGE))


def _shown(filename: str) -> str:
    path, here = Path(filename), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random states like `seeded_states`, and make tensors on the CPU."""
    with seeded_states(seed), torch.device("cpu"):
        yield


@contextmanager
def seeded_states(seed: int) -> Iterator[None]:
    """Seed the random states of Python, numpy and torch's CPU, and restore them afterwards."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002  # the user's code may draw from it
    # devices=[] and the CPU's own generator: torch.manual_seed would also reseed every accelerator.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002
