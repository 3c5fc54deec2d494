"""Reads and checks folders with Flower apps."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon_fl.launch.errors import FederationError, did_you_mean

__all__ = ["FlowerApp", "Setting", "check_app", "check_key", "read_app", "read_node_config"]

Setting = str | int | float | bool
COMPONENTS = {"serverapp": "flwr.serverapp:ServerApp", "clientapp": "flwr.clientapp:ClientApp"}
IMPORT = """
import sys, traceback
from importlib import import_module
from pkgutil import resolve_name
sys.path.insert(0, sys.argv[1])
for pair in sys.argv[2:]:
    reference, wanted = pair.split("=")
    try:
        found = resolve_name(reference)
    except BaseException as error:
        traceback.print_exc()
        sys.exit(f"solon: {reference} can't be imported ({type(error).__name__}: {error})")
    if not isinstance(found, resolve_name(wanted)):
        sys.exit(f"solon: {reference} must be a {wanted.rpartition(':')[2]}; got {type(found).__name__}")
"""


@dataclass(frozen=True, kw_only=True)
class FlowerApp:
    """An app, as described by the pyproject.toml in its folder.

    Attributes
    ----------
    folder : Path
        The app's folder.
    components : dict
        "serverapp" and "clientapp", each as "module:attribute".
    config : dict
        The settings of the app's runs.
    """

    folder: Path
    components: Mapping[str, str]
    config: Mapping[str, Any]

    def settings(self, changes: Iterable[str]) -> dict[str, Setting]:
        """Return all settings, with changes applied.

        Parameters
        ----------
        changes : iterable of str
            Each is KEY=VALUE. The value is parsed as the type of the current value: a number, true or false, or text.

        Raises
        ------
        FederationError
            If there is no such setting, or the value has another type.
        """
        settings: dict[str, Setting] = dict(self.config)
        for change in changes:
            key, equals, value = change.partition("=")
            if not equals or key not in settings:
                known = f"with a KEY among {', '.join(settings)}" if settings else "but the app has no settings"
                raise FederationError(
                    f"setting must be KEY=VALUE, {known}; got {change!r}{did_you_mean(key, settings)}"
                )
            settings[key] = _as(type(settings[key]), key, value, settings[key])
        return settings


def read_app(folder: Path) -> FlowerApp:
    """Read the app in a folder.

    Raises
    ------
    FederationError
        If there is no pyproject.toml, if it is not TOML, or if it names no app.
    """
    path = folder / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text())
    except OSError as error:
        raise FederationError(
            f"an app must be a folder with a pyproject.toml; got {str(folder)!r} ({error.strerror})."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FederationError(f"{path} must be TOML; got: {error}.") from None
    found = project.get("tool", {}).get("flwr", {}).get("app", {})
    components = found.get("components", {})
    for name in COMPONENTS:
        if not isinstance(components.get(name), str):
            raise FederationError(
                f'{path} must name the app: [tool.flwr.app.components] with {name} = "my_app.{name[:6]}_app:app"; '
                f"got {json.dumps(components)}."
            )
    return FlowerApp(folder=folder, components=components, config=_flat(found.get("config", {})))


def check_app(app: FlowerApp) -> None:
    """Import an app in a separate process.

    Raises
    ------
    FederationError
        If the app can't be imported, or is not a Flower app.
    """
    pairs = [f"{app.components[name]}={wanted}" for name, wanted in COMPONENTS.items()]
    command = [sys.executable, "-c", IMPORT, str(app.folder.resolve()), *pairs]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=app.folder)
    if done.returncode:
        *words, verdict = done.stderr.rstrip().splitlines() or ["it ended without any output"]
        shown = "".join(f"\n    {line}" for line in words[-8:])
        raise FederationError(f"{verdict.removeprefix('solon: ')}; see {app.folder}.{shown}")


def read_node_config(pairs: list[str]) -> dict[str, str | int]:
    """Parse KEY=VALUE pairs: integers of at most 18 digits become numbers, anything else, such as 007, stays text.

    Raises
    ------
    FederationError
        If one is not such a pair.

    Examples
    --------
    >>> read_node_config(["silo=a", "gpus=2"])
    {'silo': 'a', 'gpus': 2}
    """
    config: dict[str, str | int] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise FederationError(f"node-config must be KEY=VALUE, such as data=/srv/data; got {pair!r}.")
        check_key(key)
        config[key] = int(value) if re.fullmatch("0|-?[1-9][0-9]{0,17}", value) else value
    return config


def check_key(key: str) -> None:
    """Check that Flower's commands accept a setting's key unquoted.

    Raises
    ------
    FederationError
        If the key has characters other than English letters, digits, _ and -, with dots between.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key) is None:
        raise FederationError(
            "the key of a setting must consist of English letters, digits, _ and -, with dots between; "
            f"got {key!r}; rename it."
        )


def _as(kind: type, key: str, value: str, now: Setting) -> Setting:
    try:
        return {"true": True, "false": False}[value] if kind is bool else kind(value)
    except KeyError:
        raise FederationError(f"{key} must be true or false; got {value!r}.") from None
    except ValueError:
        raise FederationError(f"{key} must be a number, like {now}; got {value!r}.") from None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted keys, as in Flower's run configuration."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
