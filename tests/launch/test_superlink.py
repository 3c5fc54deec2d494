"""The arguments of a SuperLink and of Flower's commands."""

import math

import pytest
from flwr.common.config import parse_config_args

from solon_fl.launch.errors import FederationError
from solon_fl.launch.programs import Programs
from solon_fl.launch.superlink import SuperLink, key_values


def test_flowers_commands_read_settings_as_they_are() -> None:
    texts = ["", "\U0001f600 caf\u00e9", 'it\'s "x"', '\\"', "a\n\t\x01\x7f", "C:\\new", "b = c # d", "' b='", '" b="']
    settings: dict[str, str | int | float] = {f"text-{number}": text for number, text in enumerate(texts)}
    settings |= {"a.b": math.inf, "c": -math.inf, "d": 1e-5, "e": 1e22, "f": -3, "g": True}
    read = parse_config_args([key_values({**settings, "nan": math.nan})])
    assert math.isnan(read.pop("nan"))
    assert read == settings
    for key in ("a b", "", "a..b", "a=b", "\u00e9"):
        with pytest.raises(FederationError, match=f"got {key!r}; rename it"):
            key_values({key: 1})


def test_a_host_is_an_address_of_ipv4_or_a_name() -> None:
    for host in ("127.0.0.1", "node_1", "c001.example.org", "a" * 63):
        assert SuperLink(Programs("tag"), host).address == f"{host}:0"
    for host in ("::1", "n\u00f6de", "", "x y", "*.example", "a" * 64, "a..b"):
        with pytest.raises(FederationError, match="must be an IPv4 address or a name of"):
            SuperLink(Programs("tag"), host)
