"""The training loss that nodes report is right, is not encoded, and affects nothing."""

import math
import threading
from typing import Any, Literal

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from solon_fl.clients import Batch, SolonTask
from solon_fl.clients.losses import Losses, collected_losses, note_loss
from solon_fl.simulations import InProcessGrid
from solon_fl.strategies import SolonStrategy
from tests.support import SGD, Regression, initial_model, record_of, small_config, spoil, train

STRANGER = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def mean_loss(model: nn.Module, numbers: range) -> float:
    losses = [Regression().batch_loss(model, Batch(0, 1, number), STRANGER) for number in numbers]
    return float(torch.stack(losses).detach().double().mean())


@pytest.mark.parametrize(("verification", "num_nodes"), [("algebra", 14), ("digest", 10)])
def test_nodes_report_the_mean_loss_of_their_batches(
    verification: Literal["algebra", "digest"], num_nodes: int
) -> None:
    model = initial_model().to(Regression().devices()[0])
    config = small_config(verification=verification, num_nodes=num_nodes)
    _, (report,) = train(config, client=Regression(), rounds=1)
    size = num_nodes // 2
    expected = [mean_loss(model, range(size)), mean_loss(model, range(size, num_nodes))]
    for group, loss in zip(report.groups, expected, strict=True):
        assert len(group.losses) >= 3
        assert list(group.losses.values()) == pytest.approx([loss] * len(group.losses), rel=1e-6)
    assert report.training_loss is not None
    assert min(expected) <= report.training_loss <= max(expected)


def test_local_steps_report_the_loss_before_each_step() -> None:
    seen: dict[int, list[float]] = {}

    class Looking(Regression):
        def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
            loss = super().batch_loss(model, batch, context)
            seen.setdefault(context.node_id, []).append(float(loss.detach()))
            return loss

    config = small_config(num_nodes=7, mode="update", batches_per_group=3)
    reports: list[Any] = []
    strategy = SolonStrategy(config, SGD, on_round=reports.append)
    grid = InProcessGrid(Looking().client_app(), 7)
    rate = ConfigRecord({"lr": 0.01})
    strategy.start(grid, record_of(initial_model()), num_rounds=1, timeout=5, train_config=rate)
    for losses in seen.values():
        assert len(losses) == 3
        assert reports[0].training_loss == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_the_reported_loss_changes_no_bit_of_the_model_and_no_byte_counted() -> None:
    def without_loss(reply: Message) -> Message:
        del reply.content["metrics"]
        return reply

    config = small_config(verification="digest", num_nodes=10)
    told = train(config, client=Regression(), projection_seed=1)
    untold = train(config, client=Regression(), projection_seed=1, mods=[spoil(without_loss, set(range(1, 15)))])
    assert [report.training_loss is None for report in (*told[1], *untold[1])] == [False] * 5 + [True] * 5
    assert [report.bytes_in for report in told[1]] == [report.bytes_in for report in untold[1]]
    for name, array in told[0].arrays.items():
        assert array.data == untold[0].arrays[name].data


def test_a_loss_that_is_not_finite_is_not_reported() -> None:
    class Shown(Regression):
        def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
            loss = super().batch_loss(model, batch, context)
            return loss if batch.number else loss + math.nan  # the gradient does not show it

    assert list(share_of(Shown()).content) == ["share"]


def share_of(client: Regression) -> Message:
    """A node's reply in the first round."""
    replies: list[Message] = []

    def keep(reply: Message) -> Message:
        replies.append(reply)
        return reply

    train(small_config(num_nodes=7), client=client, rounds=1, mods=[spoil(keep, {3})])
    return replies[0]


def test_a_gradient_of_ones_own_reports_no_loss() -> None:
    class ByHand(Regression):
        def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
            return torch.arange(8.0)

    assert list(share_of(ByHand()).content) == ["share"]


def test_losses_are_added_up_without_waiting_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []

    def item(value: Tensor) -> float:
        waits.append("item")
        return float(value.numpy())

    monkeypatch.setattr(Tensor, "item", item)
    with collected_losses() as losses:
        for number in range(5):
            note_loss(torch.tensor(float(number), requires_grad=True))
        assert waits == []
    assert losses.mean() == 2.0
    assert waits == ["item"]


@pytest.mark.parametrize(
    ("noted", "mean"),
    [
        ([], None),
        ([torch.tensor(2.0, dtype=torch.bfloat16), torch.tensor(4.0, dtype=torch.float64)], 3.0),
        ([torch.tensor([5.0])], 5.0),
        ([torch.tensor(1.0), torch.tensor(math.inf)], None),
        ([torch.tensor(3e38), torch.tensor(3e38)], None),
    ],
)
def test_the_mean_is_a_finite_number_or_none(noted: list[Tensor], mean: float | None) -> None:
    with collected_losses() as losses:
        for loss in noted:
            note_loss(loss)
    assert losses.mean() == mean


def test_a_loss_that_is_changed_later_counts_as_it_was() -> None:
    with collected_losses() as losses:
        loss = torch.tensor(1.0)
        note_loss(loss)
        loss.fill_(100.0)
    assert losses.mean() == 1.0


def test_losses_collected_elsewhere_are_included() -> None:
    with collected_losses() as outer:
        note_loss(torch.tensor(1.0))
        with collected_losses() as inner:
            note_loss(torch.tensor(4.0))
            note_loss(torch.tensor(7.0))
        note_loss(inner)
        note_loss(Losses())
    assert (outer.mean(), inner.mean()) == (4.0, 5.5)


def test_losses_outside_and_in_other_threads_are_not_collected() -> None:
    note_loss(torch.tensor(9.0))
    with collected_losses() as losses:
        thread = threading.Thread(target=note_loss, args=(torch.tensor(9.0),))
        thread.start()
        thread.join()
    note_loss(torch.tensor(9.0))
    assert losses.mean() is None


def test_what_a_liar_reports_is_no_part_of_it() -> None:
    def lie(reply: Message) -> Message:
        reply.content["metrics"] = MetricRecord({"loss": 1e9})
        return reply

    _, (report,) = train(small_config(), client=Regression(), rounds=1, mods=[spoil(lie, {1, 2, 8, 9})])
    assert report.training_loss is not None
    assert report.training_loss < 100
