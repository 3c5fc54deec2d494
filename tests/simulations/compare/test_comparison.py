import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import ATTACKS, STRATEGIES, Scenario
from solon_fl.simulations.compare import Comparison, load_comparison, parse_comparison, shipped_comparisons
from solon_fl.simulations.network import NETWORKS, Network

GOOD = """
title = "Mine"
description = "Two strategies at home"
strategies = ["solon", "fedavg"]
attacks = ["none", "reverse"]
networks = ["barn", "cluster-1g"]
batch_seconds = 1
target_accuracy = 0.5

[config]
num_nodes = 14
byzantine = 2
compression = 3
on_group_failure = "skip"

[scenario]
rounds = 7
model = "logistic"
learning_rate = 1
data_dir = "somewhere"
num_liars = 3

[network.barn]
server_download = 1e8
server_upload = 1e8
node_download = 16_000_000
node_upload = 1e6
latency = 0.1
deadline = 5
"""


def test_a_file_says_everything() -> None:
    assert parse_comparison(GOOD, "mine.toml") == Comparison(
        title="Mine",
        description="Two strategies at home",
        strategies=("solon", "fedavg"),
        attacks=(None, "reverse"),
        networks=(
            Network(
                name="barn",
                server_download=1e8,
                server_upload=1e8,
                node_download=1.6e7,
                node_upload=1e6,
                latency=0.1,
                deadline=5.0,
            ),
            NETWORKS["cluster-1g"],
        ),
        batch_seconds=1.0,
        target_accuracy=0.5,
        scenario=Scenario(
            config=SolonConfig(num_nodes=14, byzantine=2, compression=3, on_group_failure="skip"),
            rounds=7,
            model="logistic",
            learning_rate=1.0,
            data_dir=Path("somewhere"),
            num_liars=3,
        ),
    )


def test_numbers_have_the_types_that_they_have_in_code() -> None:
    comparison = parse_comparison(GOOD, "mine.toml")
    assert type(comparison.scenario.learning_rate) is float
    assert type(comparison.batch_seconds) is float
    assert type(comparison.networks[0].node_download) is float


def test_only_title_strategies_attacks_and_three_numbers_are_needed() -> None:
    comparison = parse_comparison(
        'title = "t"\nstrategies = ["solon"]\nattacks = ["none"]\n[config]\n'
        "num_nodes = 5\nbyzantine = 1\ncompression = 3",
        "mine.toml",
    )
    assert comparison.networks == (NETWORKS["cluster-1g"],)
    assert comparison.scenario == Scenario(config=SolonConfig(num_nodes=5, byzantine=1, compression=3))


def change(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


BAD = {
    "no TOML": ("title = ?", r"mine.toml: not valid TOML: .*line 1, column 9"),
    "no TOML, further down": (GOOD + "oops\n", r"mine.toml: not valid TOML: .*line \d\d, column \d"),
    "a number that Python refuses": ("a = " + "9" * 5000, "mine.toml: not valid TOML: .*4300"),
    "too many brackets": ("a = " + "[" * 100_000, "mine.toml: not valid TOML: .*recursion"),
    "nothing": ("", r"mine.toml: \[config\] needs num_nodes, byzantine, compression; add num_nodes = "),
    "unknown key": (change("batch_seconds", "batch_secs"), "key: there is no 'batch_secs'; did you mean batch_seconds"),
    "unknown table": (change("[config]", "[confg]"), "key: there is no 'confg'; did you mean config"),
    "nothing like it": ("zzz = 1", "key: there is no 'zzz'; choose from title, strategies, .*scenario, network"),
    "unknown key of config": (
        change("num_nodes", "nodes"),
        r"\[config\] key: there is no 'nodes'; did you mean num_no",
    ),
    "unknown key of scenario": (
        change("rounds", "round"),
        r"\[scenario\] key: there is no 'round'; did you mean rounds",
    ),
    "unknown key of a network": (
        change("latency", "latenzy"),
        r"\[network.barn\] key: there is no 'latenzy'; did you mean latency",
    ),
    "what the grid decides": (change("rounds = 7", 'attack = "alie"'), r"\[scenario\] key: there is no 'attack'"),
    "text for number": (change("rounds = 7", 'rounds = "7"'), r"\[scenario\] rounds must be a whole number; got '7'"),
    "fraction for whole number": (change("byzantine = 2", "byzantine = 2.0"), r"\[config\] byzantine must .*got 2\.0"),
    "truth for number": (
        change("learning_rate = 1", "learning_rate = true"),
        "learning_rate must be a number; got True",
    ),
    "number for text": (change('title = "Mine"', "title = 3"), "title must be a string; got 3"),
    "number for list": (change('["solon", "fedavg"]', "3"), r'strategies must be a list, such as \["a", "b"\]; got 3'),
    "text for list": (change('["solon", "fedavg"]', '"solon"'), "strategies must be a list, .*; got 'solon'"),
    "number in a list": (change('"solon", "fedavg"', '"solon", 3'), "strategies must be a string; got 3"),
    "number in networks": (change('"barn", "cluster-1g"', "3"), "networks must be a string; got 3"),
    "number in attacks": (change('"none", "reverse"', "3"), "attacks must be a string; got 3"),
    "number for a table": ("config = 3", r"config must be a table, \[config\]; got config = 3"),
    "table missing": ("scenario = []", r"scenario must be a table, \[scenario\]; got scenario = \[\]"),
    "network is no table": (
        change("[network.barn]", "[network]"),
        r"network must hold tables, \[network\.server_downlo",
    ),
    "title missing": (change('title = "Mine"', ""), r"mine.toml: needs title; add title = "),
    "number missing": (change("compression = 3", ""), r"\[config\] needs compression; add compression = "),
    "rate missing": (change("deadline = 5", ""), r"\[network.barn\] needs deadline; add deadline = "),
    "unknown strategy": (change('"fedavg"', '"fedagv"'), "strategies: there is no 'fedagv'; did you mean fedavg"),
    "unknown attack": (change('"reverse"', '"alien"'), "attacks: there is no 'alien'; did you mean alie"),
    "unknown network": (change('"barn", ', '"burn", '), "networks: there is no 'burn'; did you mean barn"),
    "no strategy": (change('["solon", "fedavg"]', "[]"), "strategies must name at least one; got none"),
    "no attack": (change('["none", "reverse"]', "[]"), "attacks must name at least one; got none"),
    "no network": (change('["barn", "cluster-1g"]', "[]"), "networks must name at least one; got none"),
    "strategy twice": (change('"fedavg"', '"solon"'), "strategies must name each once; got solon, solon"),
    "no attack twice": (change('"reverse"', '"none"'), "attacks must name each once; got none, none"),
    "network twice": (change('"cluster-1g"', '"barn"'), "networks must name each once; got barn, barn"),
    "group too small": (
        change("byzantine = 2", "byzantine = 2\ngroup_size = 5"),
        r"\[config\] group_size must be at least .*; raise group_size to 7",
    ),
    "nodes that fill no group": (
        change("num_nodes = 14", "num_nodes = 15"),
        r"\[config\] num_nodes .*got num_nodes=15",
    ),
    "a policy of another name": (
        change('"skip"', '"ignore"'),
        r"\[config\] on_group_failure must be one of .*'ignore'",
    ),
    "no rounds": (change("rounds = 7", "rounds = 0"), r"\[scenario\] rounds must be at least 1; got rounds=0"),
    "no such model": (change('"logistic"', '"vgg"'), r"\[scenario\] model must be one of .*; got model='vgg'"),
    "too many liars": (change("num_liars = 3", "num_liars = 5"), r"\[scenario\] num_liars .*; got num_liars=5; raise"),
    "latency below 0": (change("latency = 0.1", "latency = -1"), r"\[network.barn\] latency must be .*got latency=-1"),
    "accuracy of 0": (change("accuracy = 0.5", "accuracy = 0"), "target_accuracy must be between 0 and 1; got .*=0.0"),
    "accuracy in percent": (change("accuracy = 0.5", "accuracy = 90"), "target_accuracy=90.0"),
    "accuracy that is none": (change("accuracy = 0.5", "accuracy = nan"), "target_accuracy=nan"),
    "time before 0": (
        change("batch_seconds = 1", "batch_seconds = -1"),
        "batch_seconds must not be negative; got .*-1",
    ),
    "a number beyond floats": (change("learning_rate = 1", f"learning_rate = {10**400}"), "a number is too large: int"),
    "a hostile name": (
        change("[network.barn]", '[network."a\\nb\\u001b[31m"]').replace("latency", "latenzy"),
        r"\[network.a b \[31m\] key: there is no 'latenzy'",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_that_says_what_is_wrong(kind: str) -> None:
    text, message = BAD[kind]
    with pytest.raises(ConfigurationError, match=message) as caught:
        parse_comparison(text, "mine.toml")
    assert str(caught.value).startswith("mine.toml: ")
    assert str(caught.value).isprintable()


def test_a_file_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load_comparison(str(path)) == parse_comparison(GOOD, "mine.toml")
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_comparison(str(path)) == parse_comparison(GOOD, "mine.toml")


def test_what_is_no_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.toml: can't be read: .*No such file.*; check the path"):
        load_comparison(str(tmp_path / "missing.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigurationError, match=r"folder\.toml: can't be read: "):
        load_comparison(str(tmp_path / "folder.toml"))
    (tmp_path / "garbage.toml").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ConfigurationError, match=r"garbage\.toml: can't be read: .*utf-8"):
        load_comparison(str(tmp_path / "garbage.toml"))
    with pytest.raises(ConfigurationError, match=r"there is no 'dmeo'; did you mean demo\? .*must end in \.toml"):
        load_comparison("dmeo")
    with pytest.raises(ConfigurationError, match=r"there is no 'mine\.json'; choose from demo, .*must end in \.toml"):
        load_comparison("mine.json")


def test_overrides_take_the_place_of_entries_and_leave_the_others() -> None:
    overrides: dict[str, dict[str, Any]] = {
        "": {"attacks": ["alie", "none"], "networks": ["home-20m"], "target_accuracy": 0.7},
        "config": {"num_nodes": 21, "seed": 5},
        "scenario": {"rounds": 2, "data_dir": Path("elsewhere")},
    }
    changed, before = parse_comparison(GOOD, "mine.toml", overrides), parse_comparison(GOOD, "mine.toml")
    assert changed.attacks == ("alie", None)
    assert changed.networks == (NETWORKS["home-20m"],)
    assert changed.target_accuracy == 0.7
    assert (changed.scenario.config.num_nodes, changed.scenario.config.seed) == (21, 5)
    assert (changed.scenario.rounds, changed.scenario.data_dir) == (2, Path("elsewhere"))
    assert (changed.title, changed.strategies, changed.batch_seconds) == ("Mine", before.strategies, 1.0)
    assert changed.scenario.config.compression == before.scenario.config.compression
    assert changed.scenario.learning_rate == before.scenario.learning_rate


def test_a_bad_override_is_refused_as_a_bad_entry_is() -> None:
    with pytest.raises(ConfigurationError, match=r"mine: \[scenario\] rounds must be at least 1; got rounds=0"):
        parse_comparison(GOOD, "mine", {"scenario": {"rounds": 0}})
    with pytest.raises(ConfigurationError, match="mine: strategies: there is no 'sollon'; did you mean solon"):
        parse_comparison(GOOD, "mine", {"": {"strategies": ["sollon"]}})


NAMES = [
    *("title", "strategies", "attacks", "networks", "batch_seconds", "target_accuracy", "config", "scenario"),
    *("network", "num_nodes", "byzantine", "compression", "group_size", "rounds", "learning_rate", "model", "a\nb"),
]
leaves = st.one_of(
    st.integers(-2, 30),
    st.sampled_from([10**19, 10**400]),
    st.floats(),
    st.booleans(),
    st.sampled_from(["solon", "none", "alie", "barn", "cluster-1g", "line\nbreak", "\x1b[31m", ""]),
    st.lists(st.sampled_from(["solon", "fedavg", "none", "reverse", "cluster-1g", "x\ny"]), max_size=3),
)
tables = st.dictionaries(st.sampled_from(NAMES), leaves, max_size=6)
documents = st.dictionaries(
    st.sampled_from(NAMES),
    st.one_of(leaves, tables, st.dictionaries(st.sampled_from(["x", "y\nz"]), tables)),
    max_size=6,
)


def toml(value: object) -> str:
    """Return a value as TOML. JSON strings are TOML strings; TOML also has nan and inf."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def parses_or_says_why_not(text: str) -> None:
    message = ""
    try:
        parse_comparison(text, "drawn.toml")
    except ConfigurationError as error:
        message = str(error)
    assert message.isprintable()
    assert message == "" or message.startswith("drawn.toml: ")


@given(documents)
def test_whatever_a_file_holds_there_is_a_comparison_or_one_line(document: dict[str, Any]) -> None:
    parses_or_says_why_not("".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in document.items()))


@pytest.mark.filterwarnings("ignore::solon_fl.coding.CertificateWarning")
@given(tables, tables, tables)
def test_whatever_its_tables_hold_there_is_a_comparison_or_one_line(
    config: dict[str, Any], scenario: dict[str, Any], network: dict[str, Any]
) -> None:
    config = {"num_nodes": 14, "byzantine": 2, "compression": 3, **config}
    parses_or_says_why_not(
        'title = "t"\nstrategies = ["solon"]\nattacks = ["none"]\n'
        f"config = {toml(config)}\nscenario = {toml(scenario)}\nnetwork = {toml({'x': network})}\n"
    )


@pytest.mark.slow
@given(st.text())
def test_any_text_is_a_comparison_or_one_line(text: str) -> None:
    parses_or_says_why_not(text)


@pytest.mark.parametrize("name", shipped_comparisons())
def test_comparisons_that_come_with_the_package_load_and_all_their_cells_can_be(name: str) -> None:
    comparison = load_comparison(name)
    assert comparison.title == shipped_comparisons()[name]
    assert comparison.description
    for attack in comparison.attacks:
        for strategy in comparison.strategies:
            cell = comparison.cell(strategy, attack)
            assert (cell.strategy, cell.attack, cell.rounds) == (strategy, attack, comparison.scenario.rounds)
    if name.startswith("paper-"):
        assert comparison.scenario.expected_liars == 5


def test_each_version_of_solon_can_have_its_own_smallest_groups() -> None:
    comparison = load_comparison("past-the-bound")
    cells = {strategy: comparison.cell(strategy, "alie") for strategy in comparison.strategies}
    configs = {strategy: cell.config for strategy, cell in cells.items()}
    assert {strategy: config.group_size for strategy, config in configs.items()} == {
        "solon": 20,
        "solon-digest": 15,
        "solon-reactive": 20,
        "solon-reactive-digest": 15,
        "solon-referee": 15,
        "solon-referee-digest": 10,
        "draco-repetition": 20,
    }
    for strategy, cell in cells.items():
        assert len(cell.liars) == 15, "as many liars"
        assert cell.config.batches_per_group * cell.config.num_groups == 60, "and as many batches"
        assert cell.config.referee == ("referee" in strategy)
    same = replace(comparison, group_sizes="same")
    assert {same.cell(strategy, "alie").config.group_size for strategy in comparison.strategies} == {20}


def test_smallest_groups_need_as_many_batches_as_nodes() -> None:
    config = SolonConfig(num_nodes=14, byzantine=2, compression=3, batches_per_group=2)
    settings: dict[str, Any] = {"title": "t", "strategies": ("solon",), "attacks": (None,)}
    Comparison(scenario=Scenario(config=config), **settings)
    with pytest.raises(ConfigurationError, match="got batches_per_group=2, group_size=7; leave out batches_per_group"):
        Comparison(scenario=Scenario(config=config), group_sizes="smallest", **settings)
    with pytest.raises(ConfigurationError, match="group_sizes must be one of same, smallest; got group_sizes='small'"):
        parse_comparison('group_sizes = "small"\n' + GOOD, "mine.toml")


def test_groups_that_do_not_divide_the_nodes_are_a_refusal_of_that_strategy() -> None:
    comparison = parse_comparison('group_sizes = "smallest"\n' + GOOD, "mine.toml")
    assert comparison.cell("solon", None).config.group_size == 7
    with pytest.raises(ConfigurationError, match="got num_nodes=14, group_size=5; use 10 or 15 nodes"):
        comparison.cell("solon-digest", None)


def test_titles_tell_the_comparisons_apart() -> None:
    titles = shipped_comparisons()
    assert {"demo", "quarter-lies"} < set(titles)
    assert len(set(titles.values())) == len(titles)
    assert {f"paper-{data}{size}" for data in ("cifar10", "svhn", "mr") for size in ("", "-small")} < set(titles)


def test_a_comparison_in_code_is_checked_too() -> None:
    scenario = Scenario(config=SolonConfig(num_nodes=14, byzantine=2, compression=3))
    with pytest.raises(ConfigurationError, match="attacks: there is no 'none2'"):
        Comparison(title="t", scenario=scenario, strategies=tuple(STRATEGIES), attacks=(None, *ATTACKS, "none2"))
