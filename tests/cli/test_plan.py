import json
import re

import pytest
from click.testing import Result

from solon_fl.cli.plan import parse_quantity
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.network import NETWORKS
from solon_fl.simulations.plan.overflow import overflow_in_run, overflow_probability
from solon_fl.simulations.plan.server_time import Kind, MeasuredServer
from tests.cli.command import is_refused, solon_fl

ADDED = ("variants", "thriftiest")
REQUIRED = ("--nodes", "20", "--byzantine", "2", "--model-size", "200k", "--batch-seconds", "0.01")


def solon_fl_plan(*arguments: str) -> Result:
    return solon_fl("plan", *arguments)


@pytest.fixture(autouse=True)
def _server_of_made_up_speed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Spare the measuring in all tests that do not say that they measure."""

    def seconds(
        server: MeasuredServer, kind: Kind, num_nodes: int, group_size: int, compression: int, dim: int
    ) -> float:
        return num_nodes * dim * (1e-9 / compression if kind == "solon" else 2e-9)

    if "measures" not in request.node.name:
        monkeypatch.setattr(MeasuredServer, "__call__", seconds)


@pytest.mark.parametrize(
    ("text", "value"),
    [("11000000", 11_000_000), ("1.1e7", 11_000_000), ("11M", 11_000_000), ("200k", 200_000), ("2.5G", 2.5e9)],
)
def test_quantities(text: str, value: float) -> None:
    assert parse_quantity("--model-size", text) == value


@pytest.mark.parametrize("text", ["", "M", "11m", "-3", "0", "nan", "1e999", "eleven"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"got --bandwidth {text!r}")):
        parse_quantity("--bandwidth", text)


def test_the_plan_fits_a_terminal_and_says_what_to_use() -> None:
    done = solon_fl_plan(*REQUIRED, "--network", "home-20m")
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    assert "home-20m" in done.stdout
    assert "draco-repetition" in done.stdout
    line = re.search(r"SolonConfig\((.*)\)", done.stdout)
    assert line is not None
    settings = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", line[1])}
    config = SolonConfig(**settings)  # type: ignore[arg-type]  # whole numbers only
    assert f"Best: r = {config.group_size}, k = {config.compression}," in done.stdout
    command = f"--nodes 20 --byzantine 2 --compression {config.compression} --set group_size={config.group_size}"
    assert f"solon-fl simulate {command}\n" in done.stdout
    assert "regroup" not in done.stdout.lower()


@pytest.mark.slow
def test_json_has_every_number_and_the_server_measures() -> None:
    done = solon_fl_plan(
        *(*REQUIRED, "--bandwidth", "100M", "--set", "latency=0.02", "--set", "stragglers=1", "--set", "rtol=2e-6"),
        *("--all", "--json"),
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["network"]["node_upload"] == 1e8
    assert result["network"]["latency"] == 0.02
    assert {(row["group_size"], row["compression"]) for row in result["choices"]} == {
        (size, compression) for size in (10, 20) for compression in range(1, size - 4)
    }
    best = result["best"]
    assert best in result["choices"]
    assert (best["stragglers"], best["rtol"]) == (1, 2e-6)
    assert best["certificate"] < 1
    assert best["seconds"]["total"] == pytest.approx(
        sum(best["seconds"][part] for part in ("computation", "transfer", "server", "waiting"))
    )
    assert [row["name"] for row in result["baselines"]] == ["no defence", "draco-repetition", "draco-cyclic"]
    assert set(result) == {"network", "num_nodes", "dim", "batch_seconds", "best", "choices", "baselines", *ADDED}
    assert not any(key.startswith("overflow") for key in best)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "14", "--byzantine", "8"], "lower byzantine to at most 6"),
        (["--network", "moon"], f"network must be one of {', '.join(NETWORKS)}; got network='moon'"),
        (["--model-size", "1.5"], "got --model-size '1.5'"),
        (["--bandwidth", "fast"], "got --bandwidth 'fast'"),
        (["--nodes", "9" * 20], "num_nodes must be at most 1000000"),
        (["--model-size", "1e30"], "dim must be a whole number from 1 to 1e+13"),
        (["--batch-seconds", "1e300"], "batch_seconds must be from 0 to 1e+06"),
        (["--set", "verification=trust"], "verification must be one of algebra, digest, any; got verification='trust'"),
        (["--set", "redundancy=none"], "redundancy must be one of full, reactive, any; got redundancy='none'"),
        (["--set", "threads=100000"], "threads must be from 1 to "),
        (["--liars-in-all", "21"], "liars must be at most num_nodes=20; got liars=21"),
        (
            ["--liars-in-all", "3", "--set", "rounds=0"],
            "rounds must be a whole number from 1 to 1000000000; got rounds=0",
        ),
        (["--liars-in-all", "3", "--set", "risk=0"], "risk must be between 0 and 1; got risk=0.0"),
    ],
)
def test_bad_settings_are_one_plain_message(arguments: list[str], message: str) -> None:
    done = solon_fl_plan(*REQUIRED, *arguments)
    assert is_refused(done), done.output
    assert message in done.stderr


def test_regrouping_is_shown_for_every_group_size_and_fits_a_terminal() -> None:
    done = solon_fl_plan(*REQUIRED, "--liars-in-all", "3", "--set", "rounds=10", "--set", "risk=0.5")
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    _, _, told = done.stdout.partition("3 liars in all, regrouped every round")
    rows = [line.split() for line in told.splitlines() if re.match(r" +\d+ +\d", line)]
    once, in_run = overflow_probability(20, 5, 2, 3), overflow_in_run(overflow_probability(20, 5, 2, 3), 10)
    assert once == pytest.approx(4 * 10 / 1140)
    assert in_run == pytest.approx(0.30, abs=0.005)
    assert rows[0] == ["5", "2", "4", "0.04", "0.30", "2"]
    sentence = " ".join(told.split())
    assert "s = 2 is the smallest that some group exceeds in 10 rounds with a probability of at most 0.5" in sentence
    assert "in groups of r = 5: as planned. Fixed groups need s = 3 against an attacker" in sentence
    line = re.search(r"SolonConfig\((.*)\)", done.stdout)
    assert line is not None
    assert line[1] == "num_nodes=20, byzantine=2, compression=1, group_size=5, regroup='round'", "the best is not safe"
    assert re.search(r"solon-fl simulate .* --set group_size=5 --set regroup=round\n", done.stdout)


def test_no_settings_are_recommended_that_exceed_the_risk() -> None:
    done = solon_fl_plan(*REQUIRED, "--liars-in-all", "3")
    assert done.exit_code == 0, done.output
    told = " ".join(done.stdout.split())
    assert "s = 3 is the smallest" in told
    assert "plan again with --byzantine 3. So regrouping gains nothing here" in told
    assert "Use it" not in told
    hopeless = " ".join(solon_fl_plan(*REQUIRED, "--liars-in-all", "12").stdout.split())
    assert "No s that groups of up to 128 nodes bear keeps the probability over 1,000 rounds within 1e-06" in hopeless
    assert "Use it" not in hopeless


def test_json_has_the_probabilities_of_regrouping() -> None:
    done = solon_fl_plan(*REQUIRED, "--liars-in-all", "4", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    for row in (result["best"], *result["choices"]):
        once = overflow_probability(20, row["group_size"], 2, 4)
        assert (row["overflow_in_round"], row["overflow_in_run"]) == (once, overflow_in_run(once, 1000))
    assert result["best"] in result["choices"]
    # At a risk of 1e-6 chance does not help so few nodes: groups of 10 and 20 bear 4.
    wanted = {"liars": 4, "rounds": 1000, "risk": 1e-6, "byzantine_needed": 4, "group_sizes": [10, 20]}
    assert result["regrouping"] == wanted


def test_the_plan_says_what_digests_and_reactive_redundancy_would_bring() -> None:
    done = solon_fl_plan(*REQUIRED)
    assert done.exit_code == 0, done.output
    before, _, told = done.stdout.partition("What digests and reactive redundancy would bring")
    assert "Use it" in before
    assert "gests" not in before
    assert "verification" not in before
    assert all(len(line) <= 80 for line in told.splitlines())
    rows = [line.split() for line in told.splitlines() if re.match(r" (algebra|digest) ", line)]
    assert [row[:2] for row in rows] == [
        ["algebra", "full"],
        ["algebra", "reactive"],
        ["digest", "full"],
        ["digest", "reactive"],
    ]
    for verification, redundancy, *numbers in rows:
        r, k, asked, _, _, _, times = map(float, numbers[:-1])
        agreeing = max(3, k) if verification == "digest" else 2 + k
        assert asked == times == (r if redundancy == "full" else agreeing)
    sentence = " ".join(told.split())
    assert "Cheapest in seconds" in sentence
    assert "Digests presuppose nodes that compute the same bits" in sentence
    assert "Reactive redundancy presupposes that faults are rare" in sentence


def test_all_variants_can_be_ranked() -> None:
    done = solon_fl_plan(*REQUIRED, "--set", "verification=digest", "--set", "redundancy=reactive")
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    assert all(
        len(line) <= 80 for line in done.stdout.splitlines() if "SolonConfig" not in line and "--nodes" not in line
    )
    line = re.search(r"SolonConfig\((.*)\)", done.stdout)
    assert line is not None
    assert line[1].endswith("verification='digest', redundancy='reactive'")
    assert re.search(r"solon-fl simulate .* --set verification=digest --set redundancy=reactive\n", done.stdout)
    told = " ".join(done.stdout.split())
    assert told.count("Digests presuppose") == told.count("Reactive redundancy presupposes") == 2


def test_json_has_every_variant() -> None:
    done = solon_fl_plan(*REQUIRED, "--set", "verification=any", "--set", "redundancy=any", "--all", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    for row in result["choices"]:
        assert row["computations"] == 20 // row["group_size"] * row["asked_per_group"] * row["batches_per_node"]
    pairs = [(row["verification"], row["redundancy"]) for row in result["variants"]]
    assert pairs == [("algebra", "full"), ("algebra", "reactive"), ("digest", "full"), ("digest", "reactive")]
    assert {(row["verification"], row["redundancy"]) for row in result["choices"]} == set(pairs)
    assert result["best"] in result["variants"]
    assert all(row in result["choices"] for row in (*result["variants"], result["best"], result["thriftiest"]))
    sound = [row for row in result["choices"] if row["certificate"] is not None and row["certificate"] < 1]
    assert result["best"]["seconds"]["total"] == min(row["seconds"]["total"] for row in sound)
    assert result["thriftiest"]["computations"] == min(row["computations"] for row in sound)


def test_help_teaches_digests_and_reactive_redundancy() -> None:
    told = " ".join(re.sub("[│─]", " ", solon_fl_plan("--help").stdout).split())
    for words in ("verification", "redundancy", "algebra, digest, any", "full, reactive, any", "same bits"):
        assert words in told
