import itertools
import json
import re

import pytest
from click.testing import Result
from typer.testing import CliRunner

from solon_fl.cli.app import app
from solon_fl.cli.plan import parse_quantity
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.network import NETWORKS
from solon_fl.simulations.plan.overflow import overflow_in_run, overflow_probability
from solon_fl.simulations.plan.server_time import Kind, MeasuredServer
from tests.cli.command import is_refused, solon_fl

ADDED = ("variants", "thriftiest", "verdict")
PLAIN = ("--set", "verification=algebra", "--set", "redundancy=full", "--set", "downlink=full")
DEFENCES = ("multikrum", "bulyan", "draco-repetition", "draco-cyclic")
REQUIRED = ("--nodes", "20", "--byzantine", "2", "--model-size", "200k", "--batch-seconds", "0.01")
COSTLY = ("--nodes", "15", *REQUIRED[2:-1], "0.1")  # batches, so that smaller groups pay


def solon_fl_plan(*arguments: str) -> Result:
    return solon_fl("plan", *arguments)


@pytest.fixture(autouse=True)
def _server_of_made_up_speed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Replace the measurement of the server in all tests but those with "measures" in their names."""

    def seconds(
        server: MeasuredServer, kind: Kind, num_nodes: int, group_size: int, compression: int, dim: int
    ) -> float:
        return num_nodes * dim * (1e-9 / compression if kind == "solon" else 2e-9 if kind in DEFENCES else 1e-11)

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


@pytest.mark.parametrize("columns", ["80", "100"])
def test_the_plan_begins_with_one_verdict_and_fits_a_terminal(columns: str) -> None:
    done = CliRunner().invoke(app, ["plan", *COSTLY, "--network", "home-20m"], env={"COLUMNS": columns})
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    to_use = ("SolonConfig", "solon-fl simulate")
    assert all(len(line) <= int(columns) for line in done.stdout.splitlines() if not any(c in line for c in to_use))
    told = " ".join(done.stdout.split())
    verdict = re.match(
        r"Use Solon with digests and downlink='delta', in groups of r = 5 nodes that send 1/3 of the gradient each "
        r"\(k = 3\)\. A round takes about ([\d.]+) s\. This is ([\d.]+) times as fast as Draco \(([\d.]+) s\)",
        told,
    )
    assert verdict is not None, told
    seconds, times, other = map(float, verdict.groups())
    assert times == pytest.approx(other / seconds, rel=0.05)
    assert told.count("Use Solon") == told.count("SolonConfig(") == told.count("solon-fl simulate") == 1
    line = re.search(r"SolonConfig\(num_nodes=15, (.*), downlink='delta'\)\n", done.stdout)
    assert line is not None
    assert line[1] == "byzantine=2, compression=3, group_size=5, verification='digest'"
    given = "--nodes 15 --byzantine 2 --compression 3 --set group_size=5 --set verification=digest --set downlink=delta"
    assert f"solon-fl simulate {given}\n" in done.stdout
    assert "regroup" not in done.stdout.lower()


@pytest.mark.slow
def test_the_tables_have_all_candidates_with_each_downlink() -> None:
    done = solon_fl("plan", *COSTLY, "--network", "home-20m", columns=100)
    _, whole, patches = re.split(r"Nodes receive .*: seconds per round *\n", done.stdout)
    names = ["no defence", "Signum", "MultiKrum", "Bulyan", "Draco (cyclic)", "Draco (repetition)"]
    names += ["Solon", "Solon reactive", "Solon digests", "Solon digests reactive"]
    down = {}
    for title, table in (("full", whole), ("delta", patches)):
        rows = [line for line in table.splitlines() if re.search(r"(none|unproven|in all|a group) ", line)]
        found = [re.split("  +", row.removeprefix("* "))[0] for row in rows]
        assert [name.removesuffix(" 2 in all").removesuffix(" 2 a group") for name in found] == names
        down[title] = rows[0].split()[4]
    assert down == {"full": "0.80", "delta": "0.072"}
    marked = [line for line in done.stdout.splitlines() if line.startswith("* ")]
    assert [line[2:15] for line in marked[:1]] == ["Solon digests"]
    assert "Solon digests, downlink='delta': other r and k" in done.stdout
    assert "reactive" not in marked[0]
    assert marked[0] in patches
    only = solon_fl_plan(*REQUIRED, "--set", "downlink=full", "--set", "redundancy=full").stdout
    assert "receive patches" not in only
    assert "reactive" not in only


@pytest.mark.slow
def test_json_has_every_number_and_the_server_measures() -> None:
    done = solon_fl_plan(
        *(*REQUIRED, "--bandwidth", "100M", "--set", "latency=0.02", "--set", "stragglers=1", "--set", "rtol=2e-6"),
        *("--set", "verification=algebra", "--set", "redundancy=full", "--all", "--json"),
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
    names = ["no defence", "signum", "multikrum", "bulyan", "draco-cyclic", "draco-repetition"]
    assert [row["name"] for row in result["baselines"]] == names * 2
    assert [row["downlink"] for row in result["baselines"]] == ["full"] * 6 + ["delta"] * 6
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
        (
            ["--set", "risk=0.1"],
            "risk is for regrouped nodes, and needs --liars-in-all; got --set risk=0.1",
        ),
        (["--set", "rounds=9"], "rounds is for regrouped nodes, and needs --liars-in-all; got --set rounds=9"),
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
    done = solon_fl_plan(*REQUIRED, *PLAIN, "--liars-in-all", "3", "--set", "rounds=10", "--set", "risk=0.5")
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    assert " ".join(done.stdout.split()).startswith("Use Solon, in groups of r = 5 nodes that send the whole gradient")
    _, _, told = done.stdout.partition("3 liars in all, regrouped every round")
    rows = [line.split() for line in told.splitlines() if re.match(r" +\d+ +\d", line)]
    once, in_run = overflow_probability(20, 5, 2, 3), overflow_in_run(overflow_probability(20, 5, 2, 3), 10)
    assert once == pytest.approx(4 * 10 / 1140)
    assert in_run == pytest.approx(0.30, abs=0.005)
    assert rows[0] == ["5", "2", "4", "0.04", "0.30", "2"]
    sentence = " ".join(told.split())
    assert "the smallest s that is enough is 2, in groups of r = 5." in sentence
    assert "that some group gets more than 2 liars in 10 rounds is then at most 0.5 (--set risk=...)." in sentence
    assert "This plan has that s. Fixed groups need s = 3 against an attacker" in sentence
    assert "Faster choices are left out because they exceed the accepted risk of 0.5." in done.stdout
    line = re.search(r"SolonConfig\((.*)\)", done.stdout)
    assert line is not None
    assert line[1] == "num_nodes=20, byzantine=2, compression=1, group_size=5, regroup='round'", "the best is not safe"
    assert re.search(r"solon-fl simulate .* --set group_size=5 --set regroup=round\n", done.stdout)


def test_no_settings_are_recommended_that_exceed_the_risk() -> None:
    done = solon_fl_plan(*REQUIRED, "--liars-in-all", "3")
    assert done.exit_code == 0, done.output
    told = " ".join(done.stdout.split())
    assert told.startswith("If nodes are regrouped every round, the smallest s that is enough is 3")
    assert "Plan again with --byzantine 3. Regrouping gains nothing here" in told
    assert "SolonConfig" not in told
    hopeless = " ".join(solon_fl_plan(*REQUIRED, "--liars-in-all", "12").stdout.split())
    assert hopeless.startswith("No s that groups of up to 128 nodes tolerate is enough: the probability")
    assert "more than s liars in 1,000 rounds stays above 1e-06" in hopeless
    assert "SolonConfig" not in hopeless


def test_json_has_the_probabilities_of_regrouping() -> None:
    done = solon_fl_plan(*REQUIRED, "--liars-in-all", "4", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    for row in (result["best"], *result["choices"]):
        once = overflow_probability(20, row["group_size"], 2, 4)
        assert (row["overflow_in_round"], row["overflow_in_run"]) == (once, overflow_in_run(once, 1000))
    assert result["best"] in result["choices"]
    # At a risk of 1e-6, regrouping does not help so few nodes: groups of 10 and 20 tolerate 4.
    wanted = {"liars": 4, "rounds": 1000, "risk": 1e-6, "byzantine_needed": 4, "group_sizes": [10, 20]}
    assert result["regrouping"] == wanted


def test_every_choice_can_be_shown() -> None:
    done = solon_fl("plan", *REQUIRED, "--all", columns=100)
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    _, _, table = done.stdout.partition("P = 20, s = 2, d = 200,000")
    rows = [line for line in table.splitlines() if " Solon" in line]
    # By algebra k <= r - 4, with digests k <= r - 2; r is 5, 10 or 20.
    assert len(rows) == 2 * 2 * (1 + 6 + 16) + 2 * 2 * (3 + 8 + 18)
    assert sum(row.startswith("*") for row in rows) == 1


def test_one_variant_can_be_asked_for() -> None:
    done = solon_fl_plan(
        *(*REQUIRED, "--set", "verification=digest", "--set", "redundancy=reactive", "--set", "downlink=full")
    )
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    line = re.search(r"SolonConfig\((.*)\)", done.stdout)
    assert line is not None
    assert line[1].endswith("verification='digest', redundancy='reactive'")
    assert re.search(r"solon-fl simulate .* --set verification=digest --set redundancy=reactive\n", done.stdout)
    told = " ".join(done.stdout.split())
    assert told.count("Digests need nodes") == told.count("Reactive redundancy asks 3 of the 10 nodes") == 1
    assert "downlink='delta'" not in told
    assert "If they don't" not in told, "there is nothing else in the plan"


def test_json_has_every_variant() -> None:
    done = solon_fl_plan(*REQUIRED, "--all", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    for row in result["choices"]:
        assert row["computations"] == 20 // row["group_size"] * row["asked_per_group"] * row["batches_per_node"]
    variants = [(row["verification"], row["redundancy"], row["downlink"]) for row in result["variants"]]
    assert variants == list(itertools.product(("algebra", "digest"), ("full", "reactive"), ("full", "delta")))
    assert {(row["verification"], row["redundancy"], row["downlink"]) for row in result["choices"]} == set(variants)
    verdict = result["verdict"]
    assert verdict["use"]["strategy"] == "solon"
    assert {name: value for name, value in verdict["use"].items() if name != "strategy"} in result["variants"]
    assert verdict["sentence"].startswith("Use Solon with digests")
    assert [line.partition("(")[0].partition(" --")[0] for line in verdict["lines"]] == [
        "SolonConfig",
        "solon-fl simulate",
    ]
    assert any(caveat.startswith("Digests need nodes that compute the same bits") for caveat in verdict["caveats"])
    assert result["best"] in result["variants"]
    assert all(row in result["choices"] for row in (*result["variants"], result["best"], result["thriftiest"]))
    sound = [row for row in result["choices"] if row["certificate"] is not None and row["certificate"] < 1]
    assert result["best"]["seconds"]["total"] == min(row["seconds"]["total"] for row in sound)
    assert result["thriftiest"]["computations"] == min(row["computations"] for row in sound)


def test_a_referee_allows_smaller_groups_and_is_in_what_to_paste() -> None:
    six = ("--nodes", "6", "--byzantine", "5", "--model-size", "200k", "--batch-seconds", "0.01")
    assert is_refused(solon_fl_plan(*six))
    done = solon_fl_plan(*six, "--referee", "--set", "code=exact", "--set", "downlink=full")
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    assert "SolonStrategy(config, ..., referee=MyClient())\n" in done.stdout
    assert re.search(r"SolonConfig\(num_nodes=6, .*referee=True\)\n", done.stdout)
    assert re.search(r"solon-fl simulate --nodes 6 .* --referee\n", done.stdout)
    result = json.loads(solon_fl_plan(*six, "--set", "referee=true", "--json").stdout)
    best = result["best"]
    assert (best["referee"], best["group_size"]) == (True, 6)
    assert best["seconds_if_asked"] == pytest.approx(best["seconds_if_woken"] + 6 * 0.01)


def test_help_teaches_digests_and_reactive_redundancy() -> None:
    told = " ".join(re.sub("[│─]", " ", solon_fl_plan("--help").stdout).split())
    choices = ("algebra, digest, any", "full, reactive, any", "full, delta, any")
    for words in ("verification", "redundancy", "downlink", *choices, "same bits", "--referee"):
        assert words in told


@pytest.mark.parametrize("code", ["fourier", "exact"])
def test_where_digests_are_advised_the_exact_code_is_named_or_what_replaces_both(code: str) -> None:
    done = solon_fl_plan(*REQUIRED, "--set", "verification=digest", "--set", f"code={code}")
    told = " ".join(done.stdout.split())
    together = "If they don't, use --set code=fourier --set verification=algebra: the exact code needs them, too."
    assert (together in told) == (code == "exact")
    assert ("If they do, --set code=exact makes every bit of the gradient correct." in told) == (code == "fourier")
