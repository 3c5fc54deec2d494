import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from solon_fl.simulations import ATTACKS, STRATEGIES
from solon_fl.simulations.compare import Cell, Results
from solon_fl.simulations.compare.report import headlines, write_report
from solon_fl.simulations.compare.tables import comparison_table
from solon_fl.simulations.network import NETWORKS
from tests.simulations.compare import handmade
from tests.simulations.compare.handmade import (
    ABORTED,
    ALL,
    HONEST,
    REFUSED,
    RESCUED,
    RUINED,
    SLOW,
    SOLON,
    cell,
    rendered,
)


def page_of(results: Results, tmp_path: Path, command: tuple[str, ...] = ()) -> str:
    write_report(results, tmp_path / "new" / "report.html", command)
    return (tmp_path / "new" / "report.html").read_text(encoding="utf-8")


# The page


@pytest.mark.slow
def test_the_page_holds_all_and_loads_nothing(tmp_path: Path) -> None:
    page = page_of(handmade.results(*ALL), tmp_path, ("solon-fl", "compare", "my file.toml"))
    links = set(re.findall(r"https?://[^\s\"'<>]*", page))
    assert {link.split("/")[2] for link in links} <= {"www.w3.org"}
    for loading in (r"\ssrc\s*=", "<link", "<script", "@import", r"url\((?!#)", r"href=\"(?!#)"):
        assert not re.search(loading, page), loading
    for run in ALL:
        assert f"<th>{STRATEGIES[run.strategy].title}</th>" in page
    for accuracy in ("80.1 %", "80.0 %", "79.9 %", "12.3 %"):
        assert accuracy in page
    assert 'class="broken">12.3 %' in page
    assert 'class="survived">79.9 %' in page
    assert "named: all 2" in page
    assert "broke off" in page
    assert ATTACKS["alie"].description in page
    assert "solon-fl compare &#39;my file.toml&#39;" in page
    assert page.count("<svg") == 2
    assert "3 runs" not in page


@pytest.mark.slow
def test_the_page_tells_how_often_a_referee_computed_if_there_is_one(tmp_path: Path) -> None:
    asked = cell("solon-referee", "alie", [0.1] * 5, refereed=[2, 3])
    never = cell("solon-referee", None, [0.1] * 5, refereed=[])
    page = page_of(handmade.results(SOLON, RESCUED, never, asked), tmp_path)
    assert "<td>no attack: 0, alie: 2</td>" in page
    assert "computations</th>" not in page_of(handmade.results(SOLON), tmp_path)


@pytest.mark.slow
def test_what_a_round_costs_is_a_median_and_has_both_directions(tmp_path: Path) -> None:
    busy = cell("fedavg", None, [0.1] * 5, aggregating=(0.15, 0.2, 0.3, 9.95))
    page = page_of(handmade.results(SOLON, busy), tmp_path)
    _, _, table = page.partition("What a round costs")
    headings, solon, fedavg = (re.findall(r"<t[hd]>([^<]*)", row) for row in table.split("<tr>")[1:4])
    assert headings[3:5] == ["MB down to all nodes", "MB up from all nodes"]
    assert (solon[3:6], fedavg[3:6]) == (["2", "1", "250"], ["2", "1", "300"])
    # 1.5 s of computing and 4 s of the links (see test_results).
    assert (solon[6], fedavg[6]) == ("5.75", "5.8")
    assert page.count("<small>timings scatter: machine busy?</small>") == 1


@pytest.mark.slow
def test_the_page_takes_nothing_for_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    network = replace(SLOW, name=f"$x^ {evil}")
    results = handmade.results(*ALL, title=evil, description=f"{evil} & more", networks=(network,))
    page = page_of(results, tmp_path, ("solon-fl", evil))
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    assert "&lt;b&gt;odd&lt;/b&gt; reply" in page
    assert "&lt;i&gt;for&lt;/i&gt;" in page
    assert "<b>" not in page
    assert "<i>" not in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cells", "changes", "shown"),
    [
        ((SOLON,), {"strategies": ("solon", "fedavg"), "attacks": (None, "alie")}, "3 runs are not finished yet"),
        ((RESCUED, RUINED), {}, "Time to an accuracy"),
        ((RESCUED, RUINED), {"target_accuracy": 0.5}, "Time to 50.0 % accuracy"),
        ((HONEST, ABORTED), {"networks": tuple(NETWORKS.values())}, "home-20m"),
        ((ABORTED,), {}, "broke off"),
        ((REFUSED,), {}, "not possible"),
        ((SOLON, REFUSED), {}, "Not possible:"),
    ],
    ids=["partial", "no reference", "a target of one's own", "four networks", "aborted", "refused", "one refused"],
)
def test_a_page_can_be_made_of_whatever_there_is(
    cells: tuple[Cell, ...], changes: dict[str, Any], shown: str, tmp_path: Path
) -> None:
    results = handmade.results(*cells, **changes)
    assert shown in page_of(results, tmp_path)
    assert rendered(comparison_table(results))


# The sentences


def test_headlines_say_what_became_of_each_strategy() -> None:
    results = handmade.results(
        *(SOLON, HONEST),
        *(RESCUED, RUINED, ABORTED, REFUSED),
        cell("solon", "foe", [0.1, 0.79]),
        cell("fedavg", "foe", [0.1, 0.7]),
        cell("multikrum", "foe", [0.1, 0.8]),
    )
    assert headlines(results)[:3] == [
        "Solon survived all 2 attacks.",
        "FedAvg was broken by alie and harmed by foe.",
        "MultiKrum was broken by alie.",
    ]
    assert not any("Bulyan" in sentence for sentence in headlines(results))


def test_headlines_tell_attack_free_times_in_units_of_solons() -> None:
    late = cell("fedavg", None, [0.1, 0.2, 0.3, 0.8])
    assert headlines(handmade.results(SOLON, late)) == [
        "On slow, without an attack, to the same accuracy in units of Solon's time: FedAvg 1.5."
    ]
    assert headlines(handmade.results(SOLON, cell("fedavg", None, [0.1, 0.2]), target_accuracy=0.7)) == []


def test_one_attack_is_not_called_all_attacks() -> None:
    assert headlines(handmade.results(HONEST, RESCUED))[0] == "Solon survived alie."


def test_where_nothing_can_be_judged_no_headline_judges() -> None:
    assert headlines(handmade.results(RESCUED, RUINED)) == []
