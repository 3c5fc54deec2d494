from collections.abc import Iterable

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from solon_fl.clients import answer_silo_queries
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError, NodesMissingError
from solon_fl.simulations import InProcessGrid
from solon_fl.strategies.nodes import Places, Roster, wait_for_nodes
from tests.support import Regression, small_config


def assign_groups(grid: InProcessGrid, config: SolonConfig, timeout: float) -> Places:
    roster = Roster(config)
    roster.update(grid, timeout)
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
    names[16] = None  # says nothing
    names[17] = 5  # says nonsense
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
