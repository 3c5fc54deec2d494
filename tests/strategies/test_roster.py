import json
import logging
import time
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from hypothesis import given, settings
from hypothesis import strategies as st

from solon_fl.clients import answer_silo_queries
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError, NodesMissingError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.plan.overflow import overflow_probability
from solon_fl.strategies import GroupReport, RoundReport
from solon_fl.strategies.keeper import Places
from solon_fl.strategies.presence import wait_for_nodes
from solon_fl.strategies.roster import LINES, MOST_STRANGERS, Roster
from tests.support import Regression, small_config


def assign_groups(grid: InProcessGrid, config: SolonConfig, timeout: float) -> Places:
    roster = Roster(config)
    roster.update(grid, timeout, server_round=1)
    return roster.places


def silo_grid(names: dict[int, object]) -> InProcessGrid:
    """A grid whose node i (from 1) declares names[i]."""
    app = ClientApp()
    answer_silo_queries(app)
    grid = InProcessGrid(app, len(names))
    for node_id, name in names.items():
        if isinstance(name, str | int):
            grid._contexts[node_id].node_config["silo"] = name
    return grid


def test_the_server_fills_groups_with_sorted_ids() -> None:
    class Shuffled(InProcessGrid):
        def get_node_ids(self) -> Iterable[int]:
            return [9, 3, 14, 1, 5, 7, 11, 13, 2, 4, 6, 8, 10, 12, 15]

    grid = Shuffled(Regression().client_app(), 15)
    groups = assign_groups(grid, small_config(), timeout=1)
    assert groups == (tuple(range(1, 8)), tuple(range(8, 15)))


def test_too_few_nodes_is_an_error_that_says_how_many() -> None:
    grid = InProcessGrid(Regression().client_app(), 13)
    with pytest.raises(NodesMissingError, match=r"num_nodes=14 nodes; only 13 connected within 0\.1 s"):
        wait_for_nodes(grid, 14, timeout=0.1)


def test_nodes_that_connect_late_are_waited_for() -> None:
    class Slow(InProcessGrid):
        looks = 0

        def get_node_ids(self) -> Iterable[int]:
            self.looks += 1
            return list(self._contexts)[: 5 + self.looks]

    nodes = wait_for_nodes(Slow(Regression().client_app(), 7), 7, timeout=10)
    assert [node.node_id for node in nodes] == [1, 2, 3, 4, 5, 6, 7]


def test_each_silo_is_a_group_and_spare_or_mute_nodes_stay_idle() -> None:
    names: dict[int, object] = {i: ("east" if i % 2 else "west") for i in range(1, 16)}
    names[16] = None  # does not reply
    names[17] = 5  # replies with nonsense
    groups = assign_groups(silo_grid(names), small_config(grouping="silo"), timeout=1)
    assert groups == ((1, 3, 5, 7, 9, 11, 13), (2, 4, 6, 8, 10, 12, 14))


def test_a_hostile_answer_to_the_silo_question_is_ignored() -> None:
    app = ClientApp()

    @app.query("solon_silo")
    def silo(message: Message, context: Context) -> Message:
        name: str | list[int] = "east" if context.node_id <= 7 else "west"
        if context.node_id == 15:
            name = [1, 2]
        if context.node_id == 16:
            name = "x" * 10_000
        return Message(RecordDict({"silo": ConfigRecord({"name": name})}), reply_to=message)

    groups = assign_groups(InProcessGrid(app, 16), small_config(grouping="silo"), timeout=1)
    assert groups == (tuple(range(1, 8)), tuple(range(8, 15)))


def test_silos_that_are_too_small_are_an_error_with_their_sizes() -> None:
    names: dict[int, object] = {i: ("east" if i < 5 else "west") for i in range(1, 15)}
    with pytest.raises(
        ConfigurationError, match=r"2 silos of at least group_size=7 nodes; got {'east': 4, 'west': 10}"
    ):
        assign_groups(silo_grid(names), small_config(grouping="silo"), timeout=1)


def crowd(number: int, start: int = 1000) -> dict[int, tuple[str, bytes]]:
    """This many strangers, each with its own key and no name."""
    return {i: ("", i.to_bytes(40, "big")) for i in range(start, start + number)}


class ChangingGrid(InProcessGrid):
    """Nodes that come and go: `here` maps node id -> (name, public key)."""

    def __init__(self, app: ClientApp, here: dict[int, tuple[str, bytes]], num_contexts: int = 30) -> None:
        super().__init__(app, num_contexts)
        self.here = here
        self.asked: list[int] = []

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=i, name=name, public_key=key) for i, (name, key) in self.here.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        self.asked = [message.metadata.dst_node_id for message in kept]
        return super().push_messages(kept)


def keyed(*node_ids: int) -> dict[int, tuple[str, bytes]]:
    """Nodes with these ids, named n01, n02, ..., each with its own key."""
    return {i: (f"n{i:02d}", bytes([i]) * 40) for i in node_ids}


def follow(roster: Roster, grid: ChangingGrid, server_round: int = 1) -> tuple[int | None, ...]:
    roster.update(grid, timeout=0.01, server_round=server_round)
    return tuple(node for nodes in roster.places for node in nodes)


def states(roster: Roster) -> dict[str, str]:
    return {record.name: record.state for record in roster.ledger.values()}


def report(nodes: tuple[int | None, ...], server_round: int = 1, **offenders: Any) -> RoundReport:
    """The report of one group of seven."""
    group = GroupReport(
        **{
            **{"group": 0, "nodes": nodes, "status": "corrected", "residual": 0.0, "tolerance": 0.0},
            **{"error_bound": 0.0, "corrupt_nodes": (), "silent_nodes": (), "malformed_nodes": {}},
            **offenders,
        }
    )
    return RoundReport(
        round=server_round,
        groups=(group,),
        stepped=True,
        bytes_out=0,
        bytes_in=0,
        seconds_waiting=0.0,
        seconds_aggregating=0.0,
        seconds_stepping=0.0,
    )


@pytest.fixture
def app() -> ClientApp:
    return Regression().client_app()


def test_places_go_by_registered_name_whatever_the_ids(app: ClientApp) -> None:
    grid = ChangingGrid(app, {30 - i: (f"n{i}", bytes([i])) for i in range(1, 8)})
    assert follow(Roster(small_config(num_nodes=7)), grid) == (29, 28, 27, 26, 25, 24, 23)


def test_a_node_that_returns_takes_its_old_place_even_under_another_id(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 8)))
    roster = Roster(small_config(num_nodes=7))
    assert follow(roster, grid) == (1, 2, 3, 4, 5, 6, 7)
    third = grid.here.pop(3)
    assert follow(roster, grid) == (1, 2, 3, 4, 5, 6, 7), "nobody fills in: it may be back within the round"
    assert states(roster)["n03"] == "away"
    grid.here[25] = third  # the same key, a new connection
    assert follow(roster, grid) == (1, 2, 25, 4, 5, 6, 7)
    assert states(roster)["n03"] == "member"
    assert len(roster.ledger) == 7


def test_a_stranger_with_the_name_of_a_node_is_still_a_stranger(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 8)))
    roster = Roster(small_config(num_nodes=7, strangers="refuse"))
    follow(roster, grid)
    name, _ = grid.here.pop(3)
    grid.here[3] = (name, b"another key")
    assert follow(roster, grid) == (1, 2, None, 4, 5, 6, 7), "not even under the id that was the node's"
    assert [r.state for r in roster.ledger.values() if r.name == "n03"] == ["away", "refused"]


def test_a_spare_fills_in_and_steps_back(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 10)))
    roster = Roster(small_config(num_nodes=7))
    assert follow(roster, grid) == (1, 2, 3, 4, 5, 6, 7)
    assert states(roster)["n08"] == states(roster)["n09"] == "spare"
    gone = {i: grid.here.pop(i) for i in (2, 5)}
    assert follow(roster, grid) == (1, 8, 3, 4, 9, 6, 7)
    assert states(roster)["n08"] == "substitute"
    grid.here[2] = gone[2]
    assert follow(roster, grid) == (1, 2, 3, 4, 9, 6, 7)
    assert states(roster)["n08"] == "spare"
    del grid.here[9]  # the substitute goes too
    assert follow(roster, grid) == (1, 2, 3, 4, 8, 6, 7)


def test_strangers_wait_as_spares_or_are_refused(app: ClientApp) -> None:
    for strangers, fills_in in (("spare", 12), ("refuse", 4)):
        grid = ChangingGrid(app, keyed(*range(1, 8)))
        roster = Roster(small_config(num_nodes=7, strangers=strangers))
        follow(roster, grid)
        grid.here |= keyed(12)
        follow(roster, grid)
        del grid.here[4]
        assert follow(roster, grid) == (1, 2, 3, fills_in, 5, 6, 7)
        assert states(roster)["n12"] == ("substitute" if strangers == "spare" else "refused")


def test_a_spare_of_another_silo_does_not_fill_in(app: ClientApp) -> None:
    names = {i: ("east/" if i < 8 or i == 15 else "west/") + f"{i:02d}" for i in range(1, 16)}
    grid = ChangingGrid(app, {i: (name, bytes([i])) for i, name in names.items()})
    roster = Roster(small_config(grouping="silo"))
    assert follow(roster, grid) == tuple(range(1, 15)), "the registered names tell the silos; nobody is asked"
    del grid.here[9]
    assert follow(roster, grid) == tuple(range(1, 15))
    del grid.here[3]
    assert follow(roster, grid) == (1, 2, 15, *range(4, 15))


def test_the_ledger_counts_and_offenders_are_quarantined_and_replaced(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 9)))
    roster = Roster(small_config(num_nodes=7, quarantine_after=3))
    nodes = follow(roster, grid)
    roster.record(report(nodes, 1, corrupt_nodes=(2,), silent_nodes=(5,)))
    roster.record(report(nodes, 2, malformed_nodes={2: "error 2: boom"}, silent_nodes=(5,)))
    roster.record_late(5)
    assert follow(roster, grid) == nodes
    roster.record(report(nodes, 3, corrupt_nodes=(2,), silent_nodes=(5,)))
    two, five = (next(r for r in roster.ledger.values() if r.node_id == i) for i in (2, 5))
    assert (two.rounds, two.lying, two.malformed, two.offences) == (3, 2, 1, 3)
    assert (five.rounds, five.silent, five.late, five.offences) == (3, 3, 1, 0)
    assert two.last_offence == "round 3: a lie"
    assert (two.state, five.state) == ("quarantined", "member")
    assert follow(roster, grid) == (1, 8, 3, 4, 5, 6, 7)
    del grid.here[8]
    assert follow(roster, grid) == (1, None, 3, 4, 5, 6, 7)


def test_quarantine_leaves_a_group_the_nodes_that_it_needs(app: ClientApp, caplog: pytest.LogCaptureFixture) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 8)))
    roster = Roster(small_config(num_nodes=7, quarantine_after=1))  # k + s = 5 of 7 are needed
    nodes = follow(roster, grid)
    roster.record(report(nodes, corrupt_nodes=(1, 2, 3)))
    assert follow(roster, grid) == (None, None, 3, 4, 5, 6, 7)
    assert "its group needs 5 nodes and has none to spare" in caplog.text


def test_the_roster_is_the_same_after_a_restart(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 10)))
    roster = Roster(small_config(num_nodes=7, quarantine_after=1))
    nodes = follow(roster, grid)
    roster.record(report(nodes, corrupt_nodes=(6,)))
    del grid.here[1]
    nodes = follow(roster, grid)
    again = Roster(small_config(num_nodes=7, quarantine_after=1))
    again.restore(json.loads(json.dumps(roster.to_dict())))
    assert again.ledger == roster.ledger
    assert follow(again, grid) == nodes == (8, 2, 3, 4, 5, 9, 7)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_comes_and_goes_every_place_has_at_most_one_node_and_owners_come_first(data: st.DataObject) -> None:
    app = ClientApp()
    grid = ChangingGrid(app, keyed(*range(1, 16)), num_contexts=1)
    roster = Roster(small_config(quarantine_after=2))
    everyone = keyed(*range(1, 21))
    nodes = follow(roster, grid)
    owners = nodes
    for server_round in range(1, data.draw(st.integers(1, 6)) + 1):
        grid.here = {i: everyone[i] for i in data.draw(st.sets(st.integers(1, 20), min_size=1))}
        liars = data.draw(st.sets(st.sampled_from([n for n in nodes if n is not None]), max_size=3))
        halves = (nodes[:7], nodes[7:])
        for half in halves:
            roster.record(report(half, server_round, corrupt_nodes=tuple(liars & set(half))))
        nodes = follow(roster, grid)
        placed = [node for node in nodes if node is not None]
        assert len(placed) == len(set(placed))
        by_id = {record.node_id: record for record in roster.ledger.values()}
        assert not any(by_id[node].state in ("quarantined", "refused") for node in placed)
        for owner, node in zip(owners, nodes, strict=True):
            assert owner is not None
            if by_id[owner].state == "member":
                assert node == owner
        if any(record.state == "spare" for record in by_id.values()):
            assert all(by_id[node].state in ("member", "substitute") for node in placed)
            assert None not in nodes


def regrouped(seed: int | None = None, **changes: Any) -> Roster:
    return Roster(small_config(regroup="round", **changes), seed)


def test_every_round_has_its_own_permutation_of_all_nodes_and_every_slot_can_be_anybodys(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 15)))
    roster = regrouped()
    rounds = [follow(roster, grid, number) for number in range(1, 401)]
    assert all(sorted(node for node in nodes if node is not None) == list(range(1, 15)) for nodes in rounds)
    assert len(set(rounds)) == 400
    # Chance keeps some node from some place for 400 rounds with a probability of 14 * 14 * (13 / 14)^400 = 3e-11.
    assert all({nodes[place] for nodes in rounds} == set(range(1, 15)) for place in range(14))
    assert set(states(roster).values()) == {"member"}


def test_nodes_meet_in_a_group_as_often_as_a_uniform_grouping_makes_them(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 15)))
    roster = regrouped(seed=5)
    together = too_many = 0
    for server_round in range(1, 1001):
        nodes = follow(roster, grid, server_round)
        together += (nodes.index(1) < 7) == (nodes.index(2) < 7)
        too_many += sum(node < 5 for node in nodes[:7] if node is not None) in (0, 1, 3, 4)
    # 6 of the 13 other places are in the same group: 461.5 on average, with a standard deviation of 15.8.
    assert abs(together - 1000 * 6 / 13) < 4 * 15.8
    # More than two of nodes 1 to 4 are in one group: 559.4 rounds on average, with a standard deviation of 15.7.
    assert abs(too_many - 1000 * overflow_probability(14, 7, 2, 4)) < 4 * 15.7


def test_without_a_seed_no_two_rosters_draw_the_same(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 15)))
    assert follow(regrouped(), grid) != follow(regrouped(), grid)
    assert follow(regrouped(seed=-3), grid) == follow(regrouped(seed=-3), grid) != follow(regrouped(seed=4), grid)


def test_places_of_a_round_are_the_same_after_a_restart(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 17)))
    roster = regrouped(seed=1)
    whole = [follow(roster, grid, number) for number in range(1, 7)]
    before = regrouped(seed=1)
    for number in range(1, 4):
        follow(before, grid, number)
    after = regrouped(seed=1)
    after.restore(json.loads(json.dumps(before.to_dict())))
    assert after.ledger == before.ledger
    assert [follow(after, grid, number) for number in range(4, 7)] == whole[3:]


def test_who_waits_is_drawn_too_and_strangers_take_part_or_are_refused(app: ClientApp) -> None:
    for strangers in ("spare", "refuse"):
        grid = ChangingGrid(app, keyed(*range(1, 16)))
        roster = regrouped(seed=2, strangers=strangers)
        follow(roster, grid)
        grid.here |= keyed(20)
        waiting = []
        for number in range(2, 102):
            placed = follow(roster, grid, number)
            assert None not in placed
            waiting.append(set(grid.here) - set(placed))
            by_id = {record.node_id: record.state for record in roster.ledger.values()}
            assert all(
                by_id[node] == ("refused" if strangers == "refuse" and node == 20 else "spare") for node in waiting[-1]
            )
        expected = {20} if strangers == "refuse" else set()
        assert set.intersection(*waiting) == expected, "everybody else had a place at some time"
        assert set.union(*waiting) == set(grid.here), "and waited at some time"


def test_missing_nodes_are_spread_over_the_groups_and_get_no_tasks(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 15)))
    roster = regrouped(seed=3)
    follow(roster, grid)
    for gone, sizes in ((3, (6, 7)), (8, (6, 6)), (14, (5, 6))):
        del grid.here[gone]
        nodes = follow(roster, grid, gone)
        assert gone not in nodes
        assert tuple(sorted(7 - half.count(None) for half in (nodes[:7], nodes[7:]))) == sizes
        assert states(roster)[f"n{gone:02d}"] == "away"
    grid.here = keyed(*range(1, 15))
    assert None not in follow(roster, grid, 15)
    grid.here = {}
    assert set(follow(roster, grid, 16)) == {None}
    grid.here = keyed(*range(1, 15))
    assert None not in follow(roster, grid, 17)


def test_a_liar_is_quarantined_wherever_it_was(app: ClientApp, caplog: pytest.LogCaptureFixture) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 15)))
    roster = regrouped(seed=4, quarantine_after=3)
    for number in range(1, 4):
        nodes = follow(roster, grid, number)
        assert 5 in nodes
        roster.record(report(nodes[:7], number, corrupt_nodes=(5,) if 5 in nodes[:7] else ()))
        roster.record(report(nodes[7:], number, corrupt_nodes=(5,) if 5 in nodes[7:] else ()))
    five = roster.ledger[next(i for i, r in roster.ledger.items() if r.node_id == 5)]
    assert (five.rounds, five.lying, five.state) == (3, 3, "quarantined")
    assert 5 not in follow(roster, grid, 4)
    # k + s = 5 nodes are needed in each group, so at most three more of 13 may leave.
    for number in range(5, 8):
        nodes = follow(roster, grid, number)
        roster.record(report(nodes[:7], number, corrupt_nodes=tuple(node for node in nodes[:7] if node is not None)))
        roster.record(report(nodes[7:], number, corrupt_nodes=tuple(node for node in nodes[7:] if node is not None)))
    nodes = follow(roster, grid, 8)
    assert sorted((7 - nodes[:7].count(None), 7 - nodes[7:].count(None))) == [5, 5]
    assert "its group needs 5 nodes and has none to spare" in caplog.text


def test_surplus_silos_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flwr").propagate = True
    names: dict[int, object] = {node: ("east", "west", "zenith")[(node - 1) // 7] for node in range(1, 22)}
    groups = assign_groups(silo_grid(names), small_config(grouping="silo"), timeout=1)
    assert groups == ((1, 2, 3, 4, 5, 6, 7), (8, 9, 10, 11, 12, 13, 14))
    assert "1 are ignored, among them zenith" in caplog.text


def test_a_silo_may_begin_without_the_nodes_that_may_be_missing() -> None:
    config = small_config(num_nodes=16, stragglers=1, grouping="silo")
    names: dict[int, object] = {node: "east" if node <= 8 else "west" for node in range(1, 16)}
    names[16] = None  # does not say
    groups = assign_groups(silo_grid(names), config, timeout=1)
    assert groups == ((1, 2, 3, 4, 5, 6, 7, 8), (9, 10, 11, 12, 13, 14, 15, None))


# ---- sybils --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"strangers": "refuse"}, {}, {"regroup": "round"}], ids=str)
def test_a_crowd_of_strangers_is_counted_and_not_kept(
    app: ClientApp, changes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("flwr").setLevel(logging.INFO)
    grid = ChangingGrid(app, keyed(*range(1, 15)), num_contexts=1)
    roster = Roster(small_config(**changes))
    follow(roster, grid)
    for server_round in range(2, 6):
        grid.here = {**keyed(*range(1, 15)), **crowd(3000, start=10_000 * server_round)}
        lines = len(caplog.records)
        follow(roster, grid, server_round)
        assert len(caplog.records) - lines <= LINES + 2
        had_a_place = sum(record.place is not None for record in roster.ledger.values())
        assert len(roster.ledger) <= 14 * server_round + MOST_STRANGERS
        assert changes.get("regroup") or len(roster.ledger) == 14 + MOST_STRANGERS
        assert had_a_place == 14
    assert "2900 more nodes connected after the run began than the ledger has room for" in caplog.text
    grid.here = keyed(*range(1, 15))
    follow(roster, grid, 6)
    if not changes.get("regroup"):
        assert list(states(roster)) == [f"n{i:02d}" for i in range(1, 15)], "who is gone is forgotten"


def test_a_large_run_has_room_for_as_many_strangers_as_nodes(app: ClientApp) -> None:
    grid = ChangingGrid(app, crowd(210, start=1), num_contexts=1)
    roster = Roster(small_config(num_nodes=210))
    follow(roster, grid)
    grid.here |= crowd(500)
    follow(roster, grid)
    assert len(roster.ledger) == 420


def test_registered_names_come_before_nameless_strangers(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 15)), num_contexts=1)
    roster = Roster(small_config())
    follow(roster, grid)
    grid.here |= {**crowd(3000), 5000: ("hospital", b"its key")}
    follow(roster, grid)
    assert states(roster)["hospital"] == "spare"


def test_a_stranger_that_had_a_place_is_kept_for_good_and_one_that_only_waited_is_not(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 8)))
    roster = Roster(small_config(num_nodes=7, quarantine_after=1))
    follow(roster, grid)
    grid.here |= keyed(20, 21)
    follow(roster, grid)
    third = grid.here.pop(3)
    nodes = follow(roster, grid)
    assert nodes == (1, 2, 20, 4, 5, 6, 7)
    roster = restarted(roster, num_nodes=7, quarantine_after=1)
    assert follow(roster, grid) == nodes
    roster.record(report(nodes, 4, corrupt_nodes=(20,)))
    grid.here = keyed(1, 2, 4, 5, 6, 7)
    follow(roster, grid)
    assert states(roster)["n20"] == "quarantined"
    assert "n21" not in states(roster)
    # It comes back again and again, with the same key and other ids.
    for node_id in (25, 26):
        grid.here = {**keyed(1, 2, 4, 5, 6, 7), node_id: keyed(20)[20]}
        assert follow(roster, grid) == (1, 2, 3, 4, 5, 6, 7)
        assert (states(roster)["n20"], len(roster.ledger)) == ("quarantined", 8)
    grid.here[3] = third
    follow(roster, grid)
    assert len(roster.ledger) == 8


def restarted(roster: Roster, **changes: Any) -> Roster:
    again = Roster(small_config(**changes))
    again.restore(json.loads(json.dumps(roster.to_dict())))
    assert again.ledger == roster.ledger
    return again


def test_tasks_of_a_node_that_is_away_do_not_go_to_a_stranger_there_is_no_room_for(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 8)), num_contexts=1)
    roster = Roster(small_config(num_nodes=7, strangers="refuse"))
    follow(roster, grid)
    grid.here = {**keyed(1, 2, 4, 5, 6, 7), **crowd(3000)}
    follow(roster, grid)
    grid.here[3] = ("", b"another key")
    assert follow(roster, grid) == (1, 2, None, 4, 5, 6, 7)


def test_strangers_are_asked_for_their_silo_only_so_often_and_are_waited_for_only_so_long(
    app: ClientApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Mute(ChangingGrid):
        """No node replies."""

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            self.asked = [message.metadata.dst_node_id for message in messages]
            return [f"question to {node_id}" for node_id in self.asked]

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return []

    monkeypatch.setattr("solon_fl.strategies.roster.ALL_PATIENCE", 0.3)
    names = {i: ("east/" if i < 8 else "west/") + f"{i:02d}" for i in range(1, 15)}
    founders = {i: (name, bytes([i])) for i, name in names.items()}
    grid = Mute(app, founders, num_contexts=1)
    roster = Roster(small_config(grouping="silo"))
    roster.update(grid, timeout=0.2, server_round=1)
    asked = []
    for server_round in range(2, 6):
        grid.here = {**founders, **crowd(3000, start=10_000 * server_round)}
        grid.asked = []
        roster.update(grid, timeout=0.2, server_round=server_round)
        asked.append(len(grid.asked))
    assert asked == [MOST_STRANGERS, MOST_STRANGERS, 0, 0], "nobody answers, and patience ends"
    assert caplog.text.count("no longer asks new nodes") == 1
    grid.here = {**founders, 20: ("west/20", b"a late node")}
    roster.update(grid, timeout=0.2, server_round=6)
    assert [record.silo for record in roster.ledger.values() if record.node_id == 20] == ["west"]


def test_nodes_are_found_by_their_ids_at_once(app: ClientApp) -> None:
    """A scan of the ledger for each of them would take seconds."""
    grid = ChangingGrid(app, crowd(14_000, start=1), num_contexts=1)
    roster = Roster(small_config(num_nodes=14_000))
    nodes = follow(roster, grid)
    started = time.process_time()
    roster.record(report(nodes))
    assert [roster.label(node) for node in nodes if node is not None] == [str(node) for node in nodes]
    assert time.process_time() - started < 0.5


# ---- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    ["hospital-a/1", "Hospital-A/1", "hospital-a / 1", "\uff48ospital-a/1", "hospital-a/1\u200b"],
    ids=["same", "case", "spaces", "width", "invisible"],
)
def test_two_keys_under_one_name_are_told_apart_in_the_log(
    app: ClientApp, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    grid = ChangingGrid(app, {**keyed(*range(1, 8)), 2: ("hospital-a/1", b"one"), 3: (other, b"two")})
    roster = Roster(small_config(num_nodes=7, quarantine_after=1))
    nodes = [node for node in follow(roster, grid) if node is not None]
    labels = {node: roster.label(node) for node in nodes}
    identities = {record.node_id: record.identity for record in roster.ledger.values()}
    assert labels[2] == f"'hospital-a/1' ({identities[2][:16]})"
    assert identities[3][:16] in labels[3]
    assert (labels[1], labels[7]) == ("'n01'", "'n07'"), "the others are called as ever"
    follow(roster, grid)
    assert caplog.text.count("More than one node has the name") == 1
    roster.record(report(follow(roster, grid), corrupt_nodes=(3,)))
    assert f"({identities[3][:16]}) is quarantined" in caplog.text
    assert restarted(roster, num_nodes=7, quarantine_after=1).label(2) == labels[2]


def test_a_name_is_enough_again_when_the_stranger_that_had_it_too_is_gone(app: ClientApp) -> None:
    grid = ChangingGrid(app, keyed(*range(1, 8)))
    roster = Roster(small_config(num_nodes=7))
    follow(roster, grid)
    grid.here[20] = ("n03", b"another key")
    follow(roster, grid)
    assert roster.label(3).startswith("'n03' (key:")
    assert roster.label(20).startswith("'n03' (key:")
    del grid.here[20]
    follow(roster, grid)
    assert (roster.label(3), roster.label(20)) == ("'n03'", "20")
