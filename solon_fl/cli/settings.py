"""`--set KEY=VALUE`: a command's settings that have no option of their own."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import click
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.settings import choices_of, defaults_of, from_text, text_of, typed, unknown

__all__ = ["Key", "Keys", "SetOption", "help_with"]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any setting of the table below. Repeat the option for each setting."
    ),
]


OPTIONS = {"num_nodes": "nodes"}  # options that are not named like their keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One field of a dataclass that `--set` can set."""

    owner: type
    name: str
    hint: Any
    default: Any
    meaning: str

    def read(self, given: object) -> Any:
        """Return the value of an option or a text in the type of the field."""
        value = from_text(given, self.hint) if isinstance(given, str) else given
        try:
            return typed(self.name, value, self.hint)
        except ConfigurationError as error:
            example = text_of(self.default) if self.default is not None else "1"
            message = str(error).removesuffix(".")
            raise ConfigurationError(f"{message}; write it like --set {self.name}={example}.") from error

    def line(self) -> str:
        """Return the meaning, followed by the choices if there are any."""
        choices = choices_of(self.hint)
        return f"{self.meaning} ({', '.join(choices)})" if choices else self.meaning


class Keys:
    """The keys that `--set` of one command accepts.

    Parameters
    ----------
    owners : mapping
        Dataclasses, each with the meanings of the fields that are keys.
    options : collection of str
        Keys that have an option of their own. `--set` accepts them too, but `--help` does not list them again.
    """

    def __init__(self, owners: Mapping[type, Mapping[str, str]], options: Collection[str]) -> None:
        self._keys: dict[str, Key] = {}
        for owner, meanings in owners.items():
            hints = get_type_hints(owner)
            defaults = defaults_of(owner)
            for name, meaning in meanings.items():
                self._keys[name] = Key(
                    owner=owner, name=name, hint=hints[name], default=defaults.get(name), meaning=meaning
                )
        self._owners = tuple(owners)
        self._options = frozenset(options)

    def __iter__(self) -> Iterator[Key]:
        """Iterate over all keys."""
        return iter(self._keys.values())

    def read(self, texts: Sequence[str] | None, options: Mapping[str, Any]) -> dict[type, dict[str, Any]]:
        """Return the given values, as arguments of each dataclass.

        Parameters
        ----------
        texts : sequence of str, optional
            The arguments of each ``--set``.
        options : mapping
            Values of the commands' own options, by key. None means that the option was not given.

        Raises
        ------
        ConfigurationError
            If a key is unknown or given twice, or a value has the wrong type.
        """
        given = {name: ("", value) for name, value in options.items() if value is not None}
        for text in texts or ():
            name, value = self._split(text)
            if name in given:
                before, now = (f"{how}{name}={what}" for how, what in (given[name], ("--set ", value)))
                raise ConfigurationError(f"{name} must be given once; got {before} and {now}; leave one out.")
            given[name] = ("--set ", value)
        result: dict[type, dict[str, Any]] = {owner: {} for owner in self._owners}
        for name, (_, value) in given.items():
            key = self._keys[name]
            result[key.owner][name] = key.read(value)
        return result

    def typed(self, texts: Sequence[str] | None, options: Mapping[str, Any]) -> dict[str, str]:
        """Return each option that was given as the user typed it, by key; the arguments are those of `read`."""
        own = {key: OPTIONS.get(key, key) for key, value in options.items() if value is not None}
        result = {key: f"--{option} {options[key]}" for key, option in own.items()}
        return result | {self._split(text)[0]: f"--set {text}" for text in texts or ()}

    def _split(self, text: str) -> tuple[str, str]:
        written, equals, value = text.partition("=")
        name = written.strip().replace("-", "_")
        if not equals:
            raise ConfigurationError(f"--set must be followed by KEY=VALUE; got --set {text}; add = and the value.")
        if name not in self._keys:
            raise ConfigurationError(unknown("--set", written.strip(), self._keys))
        return name, value.strip()

    def table(self, *, defaults: bool = True) -> Table:
        """Return a table of the keys without an option of their own."""
        table = Table(title="Keys of --set KEY=VALUE", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in ("key", *(("default",) if defaults else ()), "meaning"):
            table.add_column(heading, no_wrap=heading == "key")
        for key in self.listed():
            table.add_row(key.name, *((text_of(key.default),) if defaults else ()), escape(key.line()))
        return table

    def listed(self) -> list[Key]:
        """Return the keys that `--help` lists."""
        return [key for key in self if key.name not in self._options]


def help_with(keys: Keys, *, defaults: bool = True) -> type[TyperCommand]:
    """Return the class of a command whose `--help` ends with the keys of its `--set`."""

    class Command(TyperCommand):
        def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            super().format_help(ctx, formatter)
            Console().print(keys.table(defaults=defaults))

    return Command
