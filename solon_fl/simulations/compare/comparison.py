"""Describes a comparison, strategies x attacks x networks, in a TOML file or in code."""

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from solon_fl.checks import check_between, check_one_of
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.attacks import ATTACKS
from solon_fl.simulations.network import NETWORKS, Network
from solon_fl.simulations.own import OwnCodeError, import_path, is_own
from solon_fl.simulations.run import STRATEGIES, Scenario, strategy_named
from solon_fl.simulations.settings import NONE, read_table, unknown

__all__ = ["NO_ATTACK", "Comparison", "GroupSizes", "load_comparison", "parse_comparison", "shipped_comparisons"]

NO_ATTACK = NONE
REFERENCE = "fedavg"  # the strategy whose attack-free run the others are compared with
GroupSizes = Literal["same", "smallest"]
_CHOSEN_PER_CELL = ("strategy", "attack")
_TABLES = ("config", "scenario", "network")
SPOKEN_OF = {"strategies", "attacks", "num_nodes", "byzantine", "num_liars", "dataset", "model", "data_dir"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A grid of runs that differ only in strategy and attack, and the networks for which their times are computed.

    Parameters
    ----------
    title, description : str
        Heading of the report, and the text below it.
    scenario : Scenario
        The settings that all runs share.
    strategies : tuple of str
        Keys of `STRATEGIES`, or your own; see `Scenario`.
    attacks : tuple of str or None
        Keys of `ATTACKS`, your own, or None for no attack.
    networks : tuple of Network
        Networks for which the times of each run are computed. They need no runs of their own.
    batch_seconds : float, optional
        Seconds that a node takes for one batch. Default: measured on this machine at the start.
    target_accuracy : float, optional
        Accuracy in (0, 1). Strategies are compared by the time that they need to reach it. Default: 95 % of the
        accuracy of attack-free training.
    group_sizes : "same" or "smallest"
        Whether all versions of Solon have groups of the scenario's size, or each has the smallest groups that its own
        bound allows. In both cases a round has as many different batches as the scenario says, so nodes of smaller
        groups compute fewer. Set the scenario's ``num_liars`` to keep the number of liars the same as well.

    Raises
    ------
    ConfigurationError
        If a name is unknown, a number is out of range, or your own code does not behave as required.
    """

    title: str
    scenario: Scenario
    strategies: tuple[str, ...]
    attacks: tuple[str | None, ...]
    networks: tuple[Network, ...] = (NETWORKS["cluster-1g"],)
    description: str = ""
    batch_seconds: float | None = None
    target_accuracy: float | None = None
    group_sizes: GroupSizes = "same"

    def __post_init__(self) -> None:
        for name in ("strategies", "attacks"):
            object.__setattr__(self, name, tuple(import_path(name, value) for value in getattr(self, name)))
        for name, values, known in (
            ("strategies", self.strategies, tuple(STRATEGIES)),
            ("attacks", self.attacks, (None, *ATTACKS)),
        ):
            if not values:
                raise ConfigurationError(f"{name} must name at least one; got none.")
            for value in values:
                if value not in known and not is_own(value):
                    raise ConfigurationError(unknown(name, value, [item or NO_ATTACK for item in known]))
            if len(set(values)) < len(values):
                got = ", ".join(value or NO_ATTACK for value in values)
                raise ConfigurationError(f"{name} must name each once; got {got}.")
        if not self.networks:
            raise ConfigurationError("networks must name at least one; got none.")
        names = [network.name for network in self.networks]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"networks must name each once; got {', '.join(names)}.")
        if self.batch_seconds is not None and not 0 <= self.batch_seconds < float("inf"):
            raise ConfigurationError(f"batch_seconds must not be negative; got batch_seconds={self.batch_seconds}.")
        if self.target_accuracy is not None:
            check_between("target_accuracy", self.target_accuracy, 0, 1)
        check_one_of("group_sizes", self.group_sizes, get_args(GroupSizes))
        config = self.scenario.config
        if self.group_sizes == "smallest" and config.batches_per_group != config.group_size:
            raise ConfigurationError(
                "group_sizes='smallest' needs groups that compute as many batches as they have nodes, so that a round "
                f"has the same batches for all group sizes; got batches_per_group={config.batches_per_group}, "
                f"group_size={config.group_size}; leave out batches_per_group."
            )
        self._try_own()

    def _try_own(self) -> None:
        """Make the user's own code fail now, and not after the runs before it."""
        for strategy, attack in product(self.strategies, self.attacks):
            if is_own(strategy) or is_own(attack):
                try:
                    self.cell(strategy, attack)
                except OwnCodeError:
                    raise
                except ConfigurationError:  # the report says that this run is not possible
                    continue

    def cell(self, strategy: str, attack: str | None) -> Scenario:
        """Return the scenario of one run.

        Raises
        ------
        ConfigurationError
            If the strategy or the attack is impossible in this scenario.
        """
        config = self.scenario.config
        if self.group_sizes == "smallest":
            config = replace(config, **strategy_named(strategy).settings, group_size=0, batches_per_group=0)
        return replace(self.scenario, config=config, strategy=strategy, attack=attack)


def shipped_comparisons() -> dict[str, str]:
    """Return the titles of the comparisons that come with the package, by name."""
    return {name: str(tomllib.loads(_shipped(name))["title"]) for name in _shipped_names()}


def load_comparison(name: str, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Comparison:
    """Return a comparison that comes with the package, or one that your own TOML file describes.

    Parameters
    ----------
    name : str
        A key of `shipped_comparisons`, or a path that ends in .toml.
    overrides : mapping, optional
        Entries that replace those of the file, by table, such as ``{"scenario": {"rounds": 10}, "": {...}}``. "" stands
        for the top level of the file.

    Raises
    ------
    ConfigurationError
        If there is no such comparison, or it can't be read. The message is one line that says what is wrong, and where.
    """
    path = Path(name)
    if name in _shipped_names():
        given = overrides or {}
        return parse_comparison(_shipped(name), name, {**given, "": {**_told_anew(given), **given.get("", {})}})
    if path.suffix != ".toml":
        raise ConfigurationError(
            unknown("comparison", name, _shipped_names()) + " The name of your own file must end in .toml."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except (OSError, ValueError) as error:
        raise ConfigurationError(_printable(f"{path}: can't be read: {error}; check the path.")) from error
    return parse_comparison(text, str(path), overrides)


def parse_comparison(text: str, source: str, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Comparison:
    """Return the comparison that a TOML text describes. Error messages call the text by its `source`."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(_printable(f"{source}: not valid TOML: {error}.")) from error
    try:
        return _build(document, overrides or {})
    except ConfigurationError as error:
        raise ConfigurationError(_printable(f"{source}: {error}")) from error
    except (ArithmeticError, ValueError, MemoryError) as error:
        raise ConfigurationError(_printable(f"{source}: a number is too large: {error}; lower it.")) from error


def _build(document: dict[str, Any], overrides: Mapping[str, Mapping[str, Any]]) -> Comparison:
    top_level = [field.name for field in fields(Comparison) if field.name not in _TABLES]
    for name in document:
        if name not in (*top_level, *_TABLES):
            raise ConfigurationError(unknown("key", name, [*top_level, *_TABLES]))
    tables = {name: document.pop(name, {}) for name in _TABLES}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigurationError(f"{name} must be a table, [{name}]; got {name} = {table!r}.")
    document |= overrides.get("", {})
    settings = tables["config"] | dict(overrides.get("config", {}))
    settings = read_table(SolonConfig, settings, table="config", complete=True)
    with _in_table("config"):
        config = SolonConfig(**settings)
    settings = tables["scenario"] | dict(overrides.get("scenario", {}))
    settings = read_table(Scenario, settings, table="scenario", excluded=("config", *_CHOSEN_PER_CELL))
    if settings.get("dirichlet") is not None:
        settings["strategy"] = REFERENCE  # Solon, the default, excludes dirichlet
    with _in_table("scenario"):
        scenario = Scenario(config=config, **settings)
    networks = dict(NETWORKS)
    for name, table in tables["network"].items():
        if not isinstance(table, dict):
            raise ConfigurationError(f"network must hold tables, [network.{name}]; got {name} = {table!r}.")
        rates = read_table(Network, table, table=f"network.{name}", excluded=("name",), complete=True)
        with _in_table(f"network.{name}"):
            networks[name] = Network(name=name, **rates)
    top = read_table(Comparison, document, excluded=("scenario",), complete=True)
    if "attacks" in top:
        top["attacks"] = tuple(None if attack == NO_ATTACK else attack for attack in top["attacks"])
    if "networks" in top:
        for name in top["networks"]:
            if name not in networks:
                raise ConfigurationError(unknown("networks", name, networks))
        top["networks"] = tuple(networks[name] for name in top["networks"])
    return Comparison(scenario=scenario, **top)


def _told_anew(overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a general heading for a shipped comparison if an override makes its own heading wrong."""
    changed = {name for table in overrides.values() for name in table} & SPOKEN_OF
    return {"title": "Strategies under attack", "description": ""} if changed else {}


@contextmanager
def _in_table(table: str) -> Iterator[None]:
    """Name the table in errors."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"[{table}] {error}") from error


def _printable(message: str) -> str:
    """Return a message as one printable line, as files may hold any characters."""
    return "".join(character if character.isprintable() else " " for character in message)


def _shipped_names() -> list[str]:
    folder = resources.files("solon_fl.simulations.compare") / "comparisons"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def _shipped(name: str) -> str:
    return (resources.files("solon_fl.simulations.compare") / "comparisons" / f"{name}.toml").read_text(
        encoding="utf-8"
    )
