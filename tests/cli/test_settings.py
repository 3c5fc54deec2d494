from dataclasses import fields

import pytest

from solon_fl.cli import calibrate, compare, plan, simulate
from solon_fl.cli.meanings import CONFIG, SCENARIO
from solon_fl.cli.settings import Keys
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import Scenario
from solon_fl.simulations.compare.comparison import Comparison
from solon_fl.simulations.network import NETWORKS
from solon_fl.simulations.settings import text_of

KEYS = Keys({SolonConfig: CONFIG, Scenario: SCENARIO}, options=("num_nodes",))


def names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def test_every_field_has_a_meaning() -> None:
    assert CONFIG.keys() == names(SolonConfig)
    assert SCENARIO.keys() == names(Scenario) - {"config"}
    assert {key.name for key in compare.KEYS if key.owner is Comparison} == names(Comparison) - {"scenario"}


@pytest.mark.parametrize("module", [simulate, plan, compare, calibrate])
def test_every_default_is_read_as_itself(module: object) -> None:
    keys: Keys = module.KEYS  # type: ignore[attr-defined]  # one of the four
    texts = [key for key in keys.listed() if key.default is not None and key.name != "networks"]
    assert texts
    for key in texts:
        assert key.read(text_of(key.default)) == key.default


def test_values_are_sorted_by_what_they_belong_to() -> None:
    assert KEYS.read(["batch-size=8", "rtol=1e-5", "attack=none"], {"num_nodes": 7, "rounds": None}) == {
        SolonConfig: {"num_nodes": 7, "rtol": 1e-5},
        Scenario: {"batch_size": 8, "attack": None},
    }
    assert KEYS.read(None, {}) == {SolonConfig: {}, Scenario: {}}


def test_lists_are_read_between_commas() -> None:
    assert KEYS.read(["group_weights=1, 2.5"], {})[SolonConfig] == {"group_weights": (1.0, 2.5)}
    read = compare.KEYS.read(["attacks=none,alie", f"networks={','.join(NETWORKS)}"], {})[Comparison]
    assert read == {"attacks": (None, "alie"), "networks": tuple(NETWORKS)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("momentun=1", "--set: there is no 'momentun'; did you mean momentum?"),
        ("=1", "--set: there is no ''; choose from num_nodes, "),
        ("group_weights=1,b", "group_weights must be a number; got 'b'; write it like --set group_weights=1."),
        ("num-nodes=8", "num_nodes must be given once; got num_nodes=7 and --set num_nodes=8; leave one out."),
    ],
)
def test_what_can_not_be_set_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        KEYS.read([text], {"num_nodes": 7})
    assert message in str(caught.value)
