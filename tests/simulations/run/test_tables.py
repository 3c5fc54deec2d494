from solon_fl.simulations.run.tables import offences_table
from tests.simulations.run.small import REGROUPED, run


def test_a_run_has_a_row_for_each_liar() -> None:
    assert offences_table(run(attack="alie", rounds=2)).row_count == 4


def test_nodes_that_change_places_are_shown_without_one() -> None:
    table = offences_table(run(config=REGROUPED, attack="reverse", rounds=2))
    assert list(table.columns[1].cells) == ["-", "-"]
