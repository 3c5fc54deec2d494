from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from solon_fl.baselines.draco.task import DracoTask
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.run._compat import become_server
from solon_fl.task import TASK, Batch, SolonTask

TASK_EXAMPLE = SolonTask(
    round=3,
    group=1,
    slot=4,
    seed=2**62,
    num_batches=2,
    groups_sharing_data=3,
    dim=10,
    mode="gradient",
    code="fourier",
    compression=3,
    group_size=5,
    buffers=("bn.running_mean",),
)


def message_with(record: ConfigRecord | None) -> Message:
    become_server()
    content = RecordDict({} if record is None else {TASK: record})
    return Message(content, 5, MessageType.TRAIN)


@pytest.mark.parametrize("buffers", [(), ("bn.running_mean",)])
def test_a_task_survives_the_journey(buffers: tuple[str, ...]) -> None:
    task = replace(TASK_EXAMPLE, buffers=buffers)
    assert SolonTask.from_message(message_with(task.to_record())) == task


@pytest.mark.parametrize(
    "task",
    [replace(TASK_EXAMPLE, buffers=()), DracoTask(round=1, number=0, seed=2, code="cyclic", num_nodes=3, byzantine=1)],
)
def test_flower_can_tell_how_large_a_task_is(task: Any) -> None:
    assert task.to_record().count_bytes() > 0


def test_no_two_nodes_share_a_config_record() -> None:
    first, second = TASK_EXAMPLE.to_record(), TASK_EXAMPLE.to_record()
    first["slot"] = 0
    assert second["slot"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot": "four"}, "slot='four'"),
        ({"slot": True}, "slot=True"),
        ({"mode": "backwards"}, "mode='backwards'"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_task_of_another_version_is_refused(changes: dict[str, Any], message: str) -> None:
    record = TASK_EXAMPLE.to_record()
    record.update(changes)
    with pytest.raises(ConfigurationError, match=message):
        SolonTask.from_message(message_with(record))


def test_a_message_of_another_strategy_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no record 'solon'"):
        SolonTask.from_message(message_with(None))


def test_batches_follow_from_seed_round_and_number_alone() -> None:
    batch = Batch(1, 2, 3)
    assert torch.equal(batch.sample(1000, 32), Batch(1, 2, 3).sample(1000, 32))
    others = [Batch(9, 2, 3), Batch(1, 9, 3), Batch(1, 2, 9), Batch(2, 1, 3)]
    assert len({other.torch_seed for other in [batch, *others]}) == 5


def test_no_two_batches_of_a_round_are_the_same() -> None:
    groups = [replace(TASK_EXAMPLE, group=group).batches for group in range(3)]
    assert [batch.number for batches in groups for batch in batches] == list(range(6))


def test_a_batch_holds_no_example_twice() -> None:
    chosen = Batch(0, 1, 0).sample(50, 50)
    assert sorted(chosen.tolist()) == list(range(50))


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (0, "batch_size must be a whole number >= 1; got batch_size=0"),
        (51, "batch_size=51, num_examples=50"),
        (3.0, r"batch_size must be a whole number >= 1; got batch_size=3\.0; write 3"),
    ],
)
def test_an_impossible_batch_size_is_refused(batch_size: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Batch(0, 1, 0).sample(50, batch_size)


def test_a_sample_of_a_billion_examples_costs_no_more_than_the_batch() -> None:
    batch = Batch(1, 2, 3)
    chosen = batch.sample(2**40, 1000)  # a complete shuffle would not fit into memory
    assert torch.equal(chosen, batch.sample(2**40, 1000))
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == 1000
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < 2**40


def test_a_large_sample_may_be_all_of_the_examples() -> None:
    assert sorted(Batch(0, 1, 0).sample(100_001, 100_001).tolist()) == list(range(100_001))


def test_every_example_is_as_likely_to_be_sampled() -> None:
    counts = torch.zeros(100)
    for number in range(400):
        counts += torch.histc(Batch(0, 1, number).sample(200_000, 500).float(), bins=100, min=0, max=200_000)
    # 2000 each, of deviation 45: the largest of 100 is within 5 of them.
    assert (counts - 2000).abs().max() < 5 * 45


def test_small_data_sets_are_sampled_as_ever() -> None:
    assert Batch(1, 2, 3).sample(50_000, 4).tolist() == [42550, 46492, 21547, 19115]
