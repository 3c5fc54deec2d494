import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from solon_fl.simulations import STRATEGIES
from solon_fl.simulations.attacks.registry import ATTACKS
from solon_fl.simulations.compare.report import comparison_table, headlines, plot_accuracy, times_table, write_report
from solon_fl.simulations.compare.results import Cell, Results
from solon_fl.simulations.network import NETWORKS
from tests.simulations import handmade
from tests.simulations.compare.handmade import SLOW, cell

HONEST = cell("fedavg", None, [0.1, 0.5, 0.8])
SOLON = cell("solon", None, [0.1, 0.52, 0.801])
RESCUED = cell("solon", "alie", [0.1, 0.5, 0.799], liars=[3, 7], named=[3, 7])
RUINED = cell("fedavg", "alie", [0.1, 0.2, 0.123], liars=[3, 7])
ABORTED = cell("multikrum", "alie", [0.1], error="ValueError: <b>odd</b> reply")
REFUSED = Cell("bulyan", "alie", refusal="Bulyan needs at least 11 nodes <i>for</i> [dim]2 liars[/dim]")
ALL = (SOLON, HONEST, RESCUED, RUINED, ABORTED, REFUSED)


def page_of(results: Results, tmp_path: Path, command: tuple[str, ...] = ()) -> str:
    write_report(results, tmp_path / "new" / "report.html", command)
    return (tmp_path / "new" / "report.html").read_text(encoding="utf-8")


def rendered(table: Table | None, width: int = 80) -> str:
    assert table is not None
    stream = io.StringIO()
    Console(width=width, file=stream).print(table)
    return stream.getvalue()


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


def test_plots_have_a_panel_for_each_attack_and_a_line_for_each_strategy() -> None:
    results = handmade.results(*ALL, target_accuracy=0.5)
    for network in (None, SLOW):
        panels = [axes for axes in plot_accuracy(results, network).axes if axes.get_visible()]
        assert [axes.get_title(loc="left") for axes in panels] == ["no attack", "alie: 2 of 10 nodes lie"]
        labels = [[str(line.get_label()) for line in axes.get_lines()] for axes in panels]
        named = [[label for label in found if not label.startswith("_")] for found in labels]
        assert named == [["Solon", "FedAvg"], ["Solon", "FedAvg", "MultiKrum"]]
    drawn = plot_accuracy(results).axes[0].get_lines()[0].get_ydata()
    assert np.asarray(drawn).tolist() == SOLON.accuracies


# The tables


def many(attacks: tuple[str | None, ...]) -> Results:
    """All strategies with slow, long runs under these attacks, on four networks."""
    cells = []
    for attack in attacks:
        for number, strategy in enumerate(STRATEGIES):
            error = "ValueError: no" if attack and number % 4 == 1 else None
            accuracies = [0.1] * (3000 if attack is None else 10) + [0.9]
            liars = range(20) if attack else ()
            cells.append(
                cell(strategy, attack, accuracies, error=error, liars=liars, named=(1, 98, 99), bytes_in=10**9)
            )
        cells.append(Cell("bulyan", attack, refusal="no"))
    return handmade.results(*cells, networks=tuple(NETWORKS.values()), batch_seconds=12.3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attacks", [(None, "alie-1.5", "constant"), (None, "partial-collusion", "projection-aware")], ids=["short", "long"]
)
def test_tables_fit_a_terminal_and_cut_nothing(attacks: tuple[str | None, ...]) -> None:
    results = many(attacks)
    for table in (comparison_table(results), times_table(results)):
        assert table is not None
        assert table.row_count == len(results.cells)
        text = rendered(table)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80
        for contender in STRATEGIES.values():
            assert contender.title in text
        for attack in attacks:
            assert all(part in text for part in (attack or "none").split("-"))
    text = rendered(times_table(results))
    if "alie-1.5" in attacks:
        assert all(name in text for name in NETWORKS)


def test_tables_show_what_the_cells_hold() -> None:
    results = handmade.results(*ALL)
    rows = [line.split() for line in rendered(comparison_table(results)).splitlines()]
    assert ["none", "Solon", "80.1%", "-", "1", "250"] in rows
    assert ["alie", "Solon", "79.9%", "survived", "1", "250", "all", "2"] in rows
    assert ["alie", "FedAvg", "12.3%", "broken", "1", "250"] in rows
    assert ["alie", "MultiKrum", "10.0%", "broken", "(aborted)", "0", "0"] in rows
    assert ["alie", "Bulyan", "-", "not", "possible"] in rows
    text = rendered(times_table(results))
    assert "Seconds to 76.0% accuracy" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["none", "Solon", "11.5"] in rows  # 2 rounds of 5.75 s
    assert ["none", "FedAvg", "11.5", "(1)"] in rows
    assert ["alie", "FedAvg", "-"] in rows
    assert ["alie", "Bulyan"] in rows


def test_without_a_target_there_is_no_table_of_times() -> None:
    assert times_table(handmade.results(RESCUED)) is None


def test_square_brackets_in_names_are_shown_and_not_obeyed() -> None:
    network = replace(SLOW, name="[/] x")
    results = handmade.results(HONEST, title="a [red]title[/red] [/]", networks=(network,))
    assert "a [red]title[/red] [/]" in rendered(comparison_table(results))
    assert "[/] x" in rendered(times_table(results))


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
