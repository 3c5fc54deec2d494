from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from solon_fl.baselines.draco.task import DRACO_TASK, DracoTask
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.attacks import Liars, RegroupedLiars, place_number
from solon_fl.simulations.attacks.liars import Addressee
from solon_fl.simulations.run._compat import become_server
from solon_fl.task import TASK, SolonTask

CONFIG = SolonConfig(num_nodes=14, byzantine=2, compression=3)


def context_of(**node_config: Any) -> Context:
    return Context(run_id=1, node_id=90, node_config=node_config, state=RecordDict(), run_config={})


def message_with(**records: ConfigRecord) -> Message:
    become_server()
    return Message(RecordDict(dict(records)), 90, "train")


def solon_task(group: int, slot: int, server_round: int = 1) -> SolonTask:
    return SolonTask.of_run(CONFIG, server_round, group=group, slot=slot, dim=6, buffers=())


def draco_task(number: int) -> DracoTask:
    return DracoTask(round=1, number=number, seed=0, code="cyclic", num_nodes=9, byzantine=2)


def solon_node(group: int, slot: int, **node_config: Any) -> Addressee:
    message = message_with(**{TASK: solon_task(group, slot).to_record()})
    return Addressee.of(message, context_of(**node_config))


def draco_node(number: int) -> Addressee:
    return Addressee.of(message_with(**{DRACO_TASK: draco_task(number).to_record()}), context_of(**{"partition-id": 3}))


def test_a_node_of_solons_has_its_places_number_wherever_it_is() -> None:
    node = solon_node(1, 3, **{"partition-id": 5, "num-partitions": 14})
    assert (node.number, node.peers) == (place_number(1, 7, 3), range(7, 14))
    assert node.number == 10


def test_a_node_of_dracos_has_the_number_of_its_task() -> None:
    node = draco_node(6)
    assert (node.number, node.peers) == (6, range(9))


def test_any_other_node_has_its_partition_id_or_else_flowers_id() -> None:
    node = Addressee.of(message_with(), context_of(**{"partition-id": 4, "num-partitions": 5}))
    assert (node.number, node.peers) == (4, range(5))
    deployed = Addressee.of(message_with(), context_of())
    assert deployed.number == 90
    with pytest.raises(ConfigurationError, match="needs num-partitions in the node's config; got num-partitions=None"):
        _ = deployed.peers
    with pytest.raises(ConfigurationError, match="partition-id must be a whole number; got partition-id='x'"):
        Addressee.of(message_with(), context_of(**{"partition-id": "x"}))


def test_a_task_that_names_no_place_is_refused() -> None:
    record = ConfigRecord({**solon_task(0, 0).to_record(), "slot": "first"})
    with pytest.raises(ConfigurationError, match="entry slot must be a whole number; got slot='first'"):
        Addressee.of(message_with(**{TASK: record}), context_of())


@pytest.mark.parametrize(
    ("node", "number", "told"),
    [
        (solon_node(1, 3), 12, {"slot": 5}),
        (draco_node(6), 2, {"number": 2}),
        (Addressee.of(message_with(), context_of(**{"partition-id": 4, "num-partitions": 5})), 1, {}),
    ],
    ids=["solon", "draco", "other"],
)
def test_a_peer_would_answer_to_its_own_message(node: Addressee, number: int, told: dict[str, int]) -> None:
    before = {name: dict(record) for name, record in node.message.content.config_records.items()}

    def client(message: Message, context: Context) -> Message:
        assert context.node_config["partition-id"] == number
        for record in message.content.config_records.values():
            assert {name: record[name] for name in told} == told
        assert Addressee.of(message, context).number == number
        return Message(RecordDict({"seen": ConfigRecord()}), reply_to=message)

    assert "seen" in node.honest_reply(number, client).content
    assert {name: dict(record) for name, record in node.message.content.config_records.items()} == before


def test_liars_of_a_group_lie_together() -> None:
    liars = Liars.of({1, 8, 10})
    assert Liars.of(liars) is liars
    node = solon_node(1, 3)
    assert liars.include(node)
    assert not liars.include(solon_node(1, 2))
    assert liars.rows(node, node.peers) == [1, 3]


def test_without_numbers_every_node_lies_alone() -> None:
    everyone, node = Liars.of(None), solon_node(0, 4)
    assert everyone.include(node)
    assert everyone.rows(node, node.peers) == [4]


def test_regrouped_liars_are_known_by_partition_and_learn_each_others_places() -> None:
    liars = RegroupedLiars({5, 6, 7})
    node = solon_node(1, 3, **{"partition-id": 5})
    assert liars.include(node)
    assert not liars.include(solon_node(1, 3, **{"partition-id": 4}))
    assert liars.rows(node, node.peers) == [3], "they know no places yet"
    liars.learn({5: solon_task(1, 3), 6: solon_task(1, 0), 7: solon_task(0, 2), 4: solon_task(1, 1)})
    assert liars.rows(node, node.peers) == [0, 3]


def test_regrouped_liars_asked_later_in_a_round_know_those_asked_before_and_nothing_of_other_rounds() -> None:
    liars = RegroupedLiars({5, 6})
    node = solon_node(1, 3, **{"partition-id": 5})
    liars.learn({6: solon_task(1, 0)})
    liars.learn({5: solon_task(1, 3)})
    assert liars.rows(node, node.peers) == [0, 3]
    liars.learn({6: solon_task(1, 4, server_round=2), 5: solon_task(1, 3, server_round=2)})
    assert liars.rows(node, node.peers) == [3, 4]
