from dataclasses import replace

from solon_fl.simulations import Outcome
from solon_fl.simulations.run import NumberedGroup, NumberedReport, RoundRecord, Scenario
from solon_fl.simulations.run.tables import MOST_ROWS, named_sentence, offences_table
from tests.simulations.run.small import REGROUPED, run


def test_a_run_has_a_row_for_each_liar() -> None:
    assert offences_table(run(attack="alie", rounds=2)).row_count == 4


def test_nodes_that_change_places_are_shown_without_one() -> None:
    table = offences_table(run(config=REGROUPED, attack="reverse", rounds=2))
    assert list(table.columns[1].cells) == ["-", "-"]


def told_of(group: NumberedGroup, liars: set[int]) -> Outcome:
    report = NumberedReport(
        round=1,
        groups=(group,),
        stepped=True,
        bytes_out=0,
        bytes_in=0,
        seconds_waiting=0.0,
        seconds_aggregating=0.0,
        seconds_stepping=0.0,
    )
    outcome = Outcome.of(Scenario(config=REGROUPED))
    records = [RoundRecord(round=1, accuracy=0.5, loss=1.0, seconds=1.0, report=report)]
    return replace(outcome, liars=frozenset(liars), records=records)


def test_an_honest_node_that_was_late_is_counted_and_not_named() -> None:
    outcome = told_of(
        NumberedGroup(group=0, status="clean", nodes_asked=9, silent_nodes=(1, 4), suspect_nodes=(2,)), liars={4}
    )
    table = offences_table(outcome)
    assert list(table.columns[0].cells) == ["4"]
    assert list(table.columns[4].cells) == ["silent or late"]
    told = named_sentence(outcome)
    assert (
        told == "The server named 0 of 1 liar and no honest node. 2 nodes were silent or late, in up to 1 of 1 rounds."
    )


def test_of_many_nodes_the_first_dozen_are_shown_and_those_first_that_surprise() -> None:
    group = NumberedGroup(group=0, status="clean", nodes_asked=99, corrupt_nodes=(*range(40), 77))
    outcome = told_of(group, liars={*range(40), 60})
    table = offences_table(outcome)
    assert list(table.columns[0].cells) == ["60", "77", *map(str, range(MOST_ROWS - 2))]
    assert table.caption == f"The first {MOST_ROWS} of 42 nodes. All are in rounds.jsonl."
    assert named_sentence(outcome) == "The server named 40 of 41 liars and 1 honest node."
