import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from solon_fl.simulations import ATTACKS
from solon_fl.simulations.compare import Cell, Results
from solon_fl.simulations.compare.report import write_report
from solon_fl.simulations.compare.sentences import named_liars, scatter_sentence, standings, verdict_sentences
from solon_fl.simulations.compare.tables import survival_table
from solon_fl.simulations.compare.view import view_of
from solon_fl.simulations.network import NETWORKS
from tests.pages.reading import Reading
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


def test_the_page_holds_all_and_loads_nothing(tmp_path: Path) -> None:
    page = page_of(handmade.results(*ALL), tmp_path, ("solon-fl", "compare", "my file.toml"))
    found = Reading.of(page)
    found.check_self_contained()
    for accuracy in ("80.1 %", "80.0 %", "79.9 %", "12.3 %"):
        assert f"<b>{accuracy}</b>" in page
    assert re.search(r'class="h10"><b>79.9 %</b><small>✓ survived</small><small>named: all 2</small>', page)
    assert re.search(r'class="h0"><b>12.3 %</b><small>✗ broken</small>', page)
    assert "broke off" in page
    assert ATTACKS["alie"].description in page
    assert "solon-fl compare &#39;my file.toml&#39;" in page
    assert "node 3 (liar): lying, round 1" in page
    assert "2 runs are not finished" in page


def test_the_page_takes_nothing_for_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    network = replace(SLOW, name=f"$x^ {evil}")
    results = handmade.results(*ALL, title=evil, description=f"{evil} & more", networks=(network,))
    page = page_of(results, tmp_path, ("solon-fl", evil))
    Reading.of(page).check_self_contained()
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    assert "&lt;b&gt;odd&lt;/b&gt; reply" in page
    assert "&lt;i&gt;for&lt;/i&gt;" in page


@pytest.mark.parametrize(
    ("cells", "changes", "shown"),
    [
        ((SOLON,), {"strategies": ("solon", "fedavg"), "attacks": (None, "alie")}, "3 runs are not finished yet"),
        ((RESCUED, RUINED), {}, "a target accuracy"),
        ((RESCUED, RUINED), {"target_accuracy": 0.5}, "the time to 50.0 %"),
        ((HONEST, ABORTED), {"networks": tuple(NETWORKS.values())}, "home-20m"),
        ((ABORTED,), {}, "broke off"),
        ((REFUSED,), {}, "not possible"),
        ((SOLON, cell("krum", "alie", [], error="TimeoutError: no nodes")), {}, "TimeoutError: no nodes"),
    ],
    ids=["partial", "no reference", "a target of one's own", "four networks", "aborted", "refused", "no round"],
)
def test_a_page_can_be_made_of_whatever_there_is(
    cells: tuple[Cell, ...], changes: dict[str, Any], shown: str, tmp_path: Path
) -> None:
    results = handmade.results(*cells, **changes)
    assert shown in page_of(results, tmp_path)
    assert rendered(survival_table(results))


def test_the_parts_of_a_round_are_medians_and_add_up_to_it() -> None:
    busy = cell("krum", None, [0.1] * 5, aggregating=(0.15, 0.2, 0.3, 9.95))
    (chart,) = view_of(handmade.results(SOLON, busy)).times
    bars = {bar.name: bar for bar in chart.bars}
    # 1.5 s of computing; 0.5 s and 2 MB at 8 Mbit/s down, 0.5 s and 1 MB up; the server's 0.25 or 0.3.
    assert list(bars["Solon"].parts) == [1.5, 2.5, 1.5, 0.25, 0.0, 0.0, 0.0]
    assert list(bars["Krum"].parts) == pytest.approx([1.5, 2.5, 1.5, 0.3, 0.0, 0.0, 0.0])
    assert list(bars["Solon"].notes) == ["5.75 s", "11.5 s", "3", "2", "1"]
    assert list(bars["Krum"].notes) == ["5.8 s ~", "never", "3", "2", "1"]


def test_heat_is_what_is_left_of_what_training_gains() -> None:
    harmed = cell("fedavg", "alie", [0.1, 0.45])
    view = view_of(handmade.results(SOLON, HONEST, RESCUED, harmed))
    assert [[heat.level for heat in row.cells] for row in view.rows] == [[10, 10], [10, 5]]
    assert [(row.title, row.worst) for row in view.rows] == [("Solon", "79.9 %"), ("FedAvg", "45.0 %")]


def test_a_map_has_a_row_for_liars_and_for_all_who_were_named() -> None:
    (shown,) = view_of(handmade.results(cell("solon", "alie", [0.1, 0.2, 0.3], liars=[3, 7], named=[7, 8]))).maps
    assert [(row.label, row.words) for row in shown.rows] == [
        ("node 3 (liar)", "never named"),
        ("node 7 (liar)", "lying, round 1"),
        ("node 8", "lying, round 1"),
    ]
    assert shown.note == "The other 7 nodes were never named or silent."


# The sentences


def test_the_verdict_says_who_survived_and_how_far_the_others_fell() -> None:
    results = handmade.results(
        *(SOLON, HONEST),
        *(RESCUED, RUINED, ABORTED, REFUSED),
        cell("solon", "foe", [0.1, 0.79]),
        cell("fedavg", "foe", [0.1, 0.7]),
        cell("multikrum", "foe", [0.1, 0.8]),
    )
    assert verdict_sentences(results) == []  # Bulyan under foe is missing
    results = replace(results, cells=(*results.cells, Cell("bulyan", "foe", refusal="no")))
    assert verdict_sentences(results)[:3] == [
        "Only Solon survived both attacks.",
        "Solon reached 79.0 % at worst, named both liars and made the same model, to the last bit, in all 3 runs "
        "(SHA-256 012345…).",
        "Worst accuracies of the others: FedAvg 12.3 % (alie), MultiKrum 10.0 % (alie).",
    ]
    assert not any("Bulyan" in sentence for sentence in verdict_sentences(results))


def test_where_nobody_survives_the_verdict_says_so() -> None:
    assert verdict_sentences(handmade.results(HONEST, RUINED))[0] == (
        "No strategy survived the attack alie; FedAvg came closest, with 12.3 % at worst."
    )
    assert verdict_sentences(handmade.results(SOLON, RESCUED))[0] == "Solon survived the attack alie."


def test_the_verdict_says_where_solon_pays() -> None:
    assert SOLON.outcome is not None
    dear = replace(SOLON, outcome=replace(SOLON.outcome, batches_per_node=30))
    multikrum = [cell("multikrum", attack, [0.1, 0.8]) for attack in (None, "alie")]
    sentences = verdict_sentences(handmade.results(dear, HONEST, RESCUED, RUINED, *multikrum))
    assert sentences[-2:] == [
        "Solon costs computation: each of its nodes computes 30 batches a round, while a node of MultiKrum or FedAvg "
        "computes only 3.",
        "Time to 76.0 % on slow without an attack, as a multiple of Solon's: FedAvg 0.3, MultiKrum 0.15.",
    ]


def test_where_nothing_can_be_judged_there_is_no_verdict() -> None:
    assert verdict_sentences(handmade.results(RESCUED, RUINED)) == []


def test_so_few_rounds_qualify_the_verdict() -> None:
    few = handmade.results(SOLON, RESCUED, scenario=replace(handmade.SCENARIO, rounds=4))
    assert verdict_sentences(few)[-1] == "Too few rounds (4) to show how well the network learns."
    assert not any("few rounds" in sentence for sentence in verdict_sentences(handmade.results(SOLON, RESCUED)))


def test_silent_liars_are_told_apart_from_named_ones() -> None:
    mute = cell("solon", "silent", [0.1, 0.2], liars=[1, 2, 3], named=[2], silent=[1, 2, 7])
    assert (mute.named, mute.silent) == ({2}, {1, 2, 7})
    assert named_liars(mute) == "1 of 3, 1 silent"
    heard = cell("solon", "alie", [0.1, 0.2], liars=[1, 2, 3], named=[2, 3])
    (standing,) = standings(handmade.results(heard, mute))
    assert standing.named == "2 of 3", "in both runs one liar replied and was not named"
    (shown,) = view_of(handmade.results(mute)).maps
    assert ("node 7", "silent or late, round 1") in [(row.label, row.words) for row in shown.rows]


def test_named_liars_are_told_with_those_named_wrongly() -> None:
    assert named_liars(cell("solon", "alie", [0.1, 0.2], liars=[1, 2], named=[2, 5])) == "1 of 2, 1 wrongly"
    assert named_liars(RUINED) == ""


def test_a_busy_machine_is_told_of_in_plain_words() -> None:
    busy = cell("fedavg", None, [0.1] * 5, aggregating=(0.05, 0.2, 0.3, 0.5))
    assert scatter_sentence(handmade.results(SOLON, busy)).startswith(
        "This machine was busy with other work during 1 of 2"
    )
    assert scatter_sentence(handmade.results(SOLON)) == ""


def test_the_verdict_says_how_many_rounds_made_no_step() -> None:
    assert RUINED.outcome is not None
    last = RUINED.outcome.records[-1]
    assert last.report is not None
    idle = replace(last, report=replace(last.report, stepped=False))
    ruined = replace(RUINED, outcome=replace(RUINED.outcome, records=[*RUINED.outcome.records[:-1], idle]))
    told = "FedAvg made no step in 1 of 2 rounds (alie)."
    assert told in verdict_sentences(handmade.results(HONEST, ruined))
    assert told not in verdict_sentences(handmade.results(HONEST, RUINED))
