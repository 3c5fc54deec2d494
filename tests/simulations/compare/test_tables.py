from dataclasses import replace

import pytest

from solon_fl.simulations import STRATEGIES
from solon_fl.simulations.compare import Cell, Results
from solon_fl.simulations.compare.plots import plot_accuracy
from solon_fl.simulations.compare.tables import costs_table, rounds_table, survival_table, times_table
from solon_fl.simulations.network import NETWORKS
from tests.simulations.compare import handmade
from tests.simulations.compare.handmade import ALL, HONEST, RESCUED, SLOW, cell, rendered


def many(attacks: tuple[str | None, ...]) -> Results:
    """Return results of all strategies, with slow and long runs under these attacks, on four networks."""
    cells = []
    for attack in attacks:
        for number, strategy in enumerate(STRATEGIES):
            error = "ValueError: no" if attack and number % 4 == 1 else None
            accuracies = [0.1] * (300 if attack is None else 10) + [0.9]
            liars = range(20) if attack else ()
            cells.append(
                cell(strategy, attack, accuracies, error=error, liars=liars, named=(1, 98, 99), bytes_in=10**9)
            )
        cells.append(Cell("bulyan", attack, refusal="no"))
    return handmade.results(*cells, networks=tuple(NETWORKS.values()), batch_seconds=123.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attacks", [(None, "alie-1.5", "constant"), (None, "partial-collusion", "projection-aware")], ids=["short", "long"]
)
def test_tables_fit_a_terminal_and_cut_nothing(attacks: tuple[str | None, ...]) -> None:
    results = many(attacks)
    possible = [cell for cell in results.cells if cell.outcome is not None]
    for table, num_rows in (
        (survival_table(results), len(STRATEGIES)),
        (costs_table(results), len(STRATEGIES)),
        (times_table(results), len(results.cells)),
        (rounds_table(results), len(possible)),
    ):
        assert table is not None
        assert table.row_count == num_rows
        text = rendered(table)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80
        for contender in STRATEGIES.values():
            assert contender.title in text
    for text in (rendered(survival_table(results)), rendered(times_table(results))):
        for attack in attacks:
            assert all(part in text for part in (attack or "none").split("-"))
    if "alie-1.5" in attacks:
        assert all(name in text for name in NETWORKS)


def test_tables_show_what_the_cells_hold() -> None:
    results = handmade.results(*ALL)
    lines = [line.split() for line in rendered(survival_table(results)).splitlines()]
    names = ["Solon", "FedAvg", "MultiKrum", "Bulyan"]
    assert [line[0] for line in lines if line and line[0] in names] == names  # the best worst accuracy first
    assert ["Solon", "79.9%", "80.1%", "79.9%", "all", "2"] in lines
    assert ["survived", "012345", "012345"] in lines
    assert ["FedAvg", "12.3%", "80.0%", "12.3%"] in lines
    assert ["broken", "012345", "012345"] in lines
    assert ["MultiKrum", "10.0%", "not", "yet", "10.0%"] in lines
    assert ["broken", "aborted"] in lines
    assert ["Bulyan", "-", "not", "yet", "not"] in lines
    rows = [line.split() for line in rendered(costs_table(results)).splitlines()]
    assert ["Solon", "3", "2", "1", "250", "11.5"] in rows  # 2 rounds of 5.75 s
    assert ["FedAvg", "3", "2", "1", "250", "11.5"] in rows
    text = rendered(times_table(results))
    assert "Seconds to 76.0% accuracy" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["none", "Solon", "11.5"] in rows  # 2 rounds of 5.75 s
    assert ["none", "FedAvg", "11.5", "(1)"] in rows
    assert ["alie", "FedAvg", "-"] in rows
    assert ["alie", "Bulyan"] in rows


def test_a_table_tells_what_a_round_takes_and_how_often_the_referee_computed() -> None:
    asked, never = (
        cell("solon-referee", attack, [0.1] * 5, refereed=rounds) for attack, rounds in (("alie", [2]), (None, []))
    )
    text = rendered(rounds_table(handmade.results(*ALL, never, asked)))
    rows = [line.split() for line in text.splitlines()]
    assert ["none", "Solon", "5", "10", "30", "-", "5.75"] in rows
    assert ["none", "FedAvg", "-", "10", "30", "-", "5.75"] in rows
    assert ["none", "Solon", "(referee)", "5", "10", "30", "0", "5.75"] in rows
    assert ["alie", "Solon", "(referee)", "5", "10", "30.75", "1", "6.09"] in rows  # 1.5 s more, 0.15 less, in 1 of 4
    assert ["alie", "MultiKrum", "-", "0", "0", "-", "-"] in rows
    assert not any("Bulyan" in row for row in rows)


def test_a_busy_machine_is_noticed() -> None:
    busy = cell("krum", None, [0.1] * 5, aggregating=(0.05, 0.2, 0.3, 0.5))
    rows = [line.split() for line in rendered(costs_table(handmade.results(handmade.SOLON, busy))).splitlines()]
    assert ["Krum", "3", "2", "1", "300~", "-"] in rows
    assert ["Solon", "3", "2", "1", "250", "11.5"] in rows


def test_without_a_target_there_is_no_table_of_times() -> None:
    assert times_table(handmade.results(RESCUED)) is None


def test_square_brackets_in_names_are_shown_and_not_obeyed() -> None:
    network = replace(SLOW, name="[/] x")
    results = handmade.results(HONEST, title="a [red]title[/red] [/]", networks=(network,))
    assert "a [red]title[/red] [/]" in rendered(survival_table(results))
    assert "[/] x" in rendered(times_table(results))


def test_a_run_that_broke_off_before_its_first_round_is_shown() -> None:
    results = handmade.results(HONEST, cell("krum", "alie", [], error="TimeoutError: no nodes"))
    assert ["Krum", "-", "not", "yet", "-"] in [line.split() for line in rendered(survival_table(results)).splitlines()]
    assert plot_accuracy(results, SLOW).axes
