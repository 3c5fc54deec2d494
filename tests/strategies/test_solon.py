"""Training with `SolonStrategy`: honest runs, attacks, failing groups and silent nodes."""

import copy
import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp import Grid
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from solon_fl.clients import Batch
from solon_fl.errors import ConfigurationError, GroupFailedError, NodesMissingError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Alie, Constant, NotFinite, RandomGaussian, Reverse, SameLie
from solon_fl.simulations.attacks.mods import MALFORMATIONS, attack_mod, malformed_mod, silent_mod
from solon_fl.strategies import RoundReport, SolonStrategy
from solon_fl.wire import to_array
from tests.strategies.liars import BROKEN_GROUP, LIAR_IDS, LIARS
from tests.support import (
    REMEMBERING,
    SGD,
    Regression,
    initial_model,
    record_of,
    share_array,
    small_config,
    spoil,
    train,
    vector_of,
)


def test_an_honest_run_is_sgd_on_all_groups_batches(honest_model: Tensor) -> None:
    client = Regression()
    model = initial_model().to(client.devices()[0])
    optimizer = SGD(model.parameters())
    context: Any = None
    for server_round in range(1, 6):
        optimizer.zero_grad()
        losses = [client.batch_loss(model, Batch(0, server_round, number), context) for number in range(14)]
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
    torch.testing.assert_close(honest_model, vector_of(record_of(model)), rtol=1e-5, atol=1e-6)


ATTACKS: dict[str, tuple[Mod, str]] = {
    "reverse": (attack_mod(Reverse(), LIARS), "corrupt_nodes"),
    "constant": (attack_mod(Constant(), LIARS), "corrupt_nodes"),
    "alie": (attack_mod(Alie(), LIARS), "corrupt_nodes"),
    "random": (attack_mod(RandomGaussian(), LIARS), "corrupt_nodes"),
    "huge": (attack_mod(Reverse(1e30), LIARS), "corrupt_nodes"),
    "same-lie": (attack_mod(SameLie(0.1), LIARS), "corrupt_nodes"),
    "nan": (attack_mod(NotFinite(), LIARS), "malformed_nodes"),
    "inf": (attack_mod(NotFinite(float("inf")), LIARS), "malformed_nodes"),
    "silent": (silent_mod(LIARS), "silent_nodes"),
    **{how: (malformed_mod(LIARS, how), "malformed_nodes") for how in MALFORMATIONS},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_under_attack_the_final_model_is_that_of_the_honest_run(name: str, honest_model: Tensor) -> None:
    mod, named_as = ATTACKS[name]
    result, reports = train(mods=[mod])
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-4, atol=1e-5)
    for report in reports:
        assert getattr(report, named_as) == LIAR_IDS
        assert len(report.corrupt_nodes + report.silent_nodes + report.malformed_nodes) == 4
        assert report.stepped
        assert report.failed_groups == ()


def test_a_node_that_raises_is_an_erasure_with_its_reason() -> None:
    def mod(message: Message, context: Context, call_next: Any) -> Message:
        if context.node_id == 3:
            raise OSError("disk on fire")
        reply: Message = call_next(message, context)
        return reply

    _, reports = train(mods=[mod], rounds=1)
    assert "disk on fire" in reports[0].groups[0].malformed_nodes[3]


def test_a_replayed_share_of_an_earlier_round_is_a_lie() -> None:
    kept: dict[int, ArrayRecord] = {}

    def replay(reply: Message) -> Message:
        array = share_array(reply.content)
        reply.content["share"] = kept.setdefault(reply.metadata.src_node_id, copy.deepcopy(array))
        return reply

    result, reports = train(mods=[spoil(replay, {2, 9})])
    assert reports[0].corrupt_nodes == ()
    assert all(report.corrupt_nodes == (2, 9) for report in reports[1:])
    torch.testing.assert_close(vector_of(result.arrays), vector_of(train()[0].arrays), rtol=1e-4, atol=1e-5)


def test_metrics_that_nodes_report_have_no_influence(honest_model: Tensor) -> None:
    def boast(reply: Message) -> Message:
        reply.content["metrics"] = MetricRecord({"num-examples": 10**9, "loss": float("nan")})
        return reply

    result, _ = train(mods=[spoil(boast, {1, 2, 3, 4, 5, 6, 7})])
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-6, atol=1e-7)


def reporting(losses: dict[int, float | str]) -> Mod:
    """Return a mod by which the nodes with these ids report these training losses, and all others none."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        del reply.content["metrics"]
        if context.node_id in losses:
            reply.content["metrics"] = MetricRecord({"loss": losses[context.node_id]})  # type: ignore[dict-item]
        return reply

    return mod


def test_the_training_loss_is_the_median_of_what_nodes_report_who_are_not_accused() -> None:
    honest: dict[int, float | str] = {node: 1.0 if node <= 7 else 3.0 for node in range(1, 12)}
    mods = [attack_mod(Reverse(), LIARS), reporting({**honest, 2: 1e300, 5: -1e300, 3: float("nan")})]
    result, reports = train(mods=mods, rounds=1)
    assert reports[0].groups[0].losses == {1: 1.0, 4: 1.0, 6: 1.0, 7: 1.0}
    assert reports[0].groups[1].losses == {8: 3.0, 10: 3.0, 11: 3.0}
    assert reports[0].training_loss == 1.0
    assert result.train_metrics_clientapp[1]["unprotected-training-loss"] == 1.0


def test_without_reported_losses_there_is_no_training_loss() -> None:
    result, reports = train(mods=[reporting({})], rounds=1)
    assert reports[0].training_loss is None
    assert "unprotected-training-loss" not in result.train_metrics_clientapp[1]


def test_a_failed_group_is_left_out_of_the_average() -> None:
    result, reports = train(small_config(on_group_failure="exclude"), mods=[BROKEN_GROUP], rounds=1)
    assert reports[0].failed_groups == (0,)
    assert reports[0].stepped
    only_second = small_config(group_weights=(1e-30, 1.0))
    expected = vector_of(train(only_second, rounds=1)[0].arrays)
    torch.testing.assert_close(vector_of(result.arrays), expected, rtol=1e-5, atol=1e-6)


def test_a_failed_group_can_skip_the_round() -> None:
    result, reports = train(small_config(on_group_failure="skip"), mods=[BROKEN_GROUP], rounds=2)
    assert [report.stepped for report in reports] == [False, False]
    assert torch.equal(vector_of(result.arrays), vector_of(record_of(initial_model())))


def test_a_failed_group_can_stop_the_run_with_all_results_so_far(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flwr").propagate = True
    with pytest.raises(GroupFailedError, match=r"round 1: groups \[0\] of 2") as caught:
        train(small_config(on_group_failure="stop"), mods=[BROKEN_GROUP])
    assert torch.equal(vector_of(caught.value.result.arrays), vector_of(record_of(initial_model())))
    assert "Group 0 failed (undecodable, parameters)" in caplog.text


@pytest.mark.parametrize("policy", ["exclude", "skip"])
def test_when_every_group_fails_in_the_first_round_the_run_stops(policy: Any) -> None:
    everybody = attack_mod(RandomGaussian(), None)
    message = r"no group could be decoded in the first round.*more nodes lie"
    with pytest.raises(GroupFailedError, match=message) as caught:
        train(small_config(on_group_failure=policy), mods=[everybody], rounds=2)
    assert torch.equal(vector_of(caught.value.result.arrays), vector_of(record_of(initial_model())))


def test_when_every_group_fails_later_no_step_is_made() -> None:
    def lie_later(reply: Message) -> Message:
        return reply if reply.metadata.group_id == "1" else lies(reply)

    def lies(reply: Message) -> Message:
        values = torch.randn(3, generator=torch.Generator().manual_seed(reply.metadata.src_node_id))
        reply.content["share"] = ArrayRecord({"share": to_array(values)})
        return reply

    _, reports = train(mods=[spoil(lie_later, set(range(1, 15)))], rounds=2)
    assert [(report.stepped, report.failed_groups) for report in reports] == [(True, ()), (False, (0, 1))]


def test_too_few_nodes_in_the_first_round_do_not_stop_the_run() -> None:
    _, reports = train(mods=[silent_mod({0, 1, 2, 3, 7, 8, 9, 10})], rounds=1, timeout=0.2)
    assert reports[0].failed_groups == (0, 1)


def test_nan_from_all_nodes_is_called_divergence(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flwr").propagate = True
    words = "all nodes that answered sent NaN or inf, and they can't all lie: the training has diverged"
    with pytest.raises(GroupFailedError, match=f"no group could be decoded in the first round.*{words}"):
        train(mods=[attack_mod(NotFinite(), None)], rounds=1)
    assert f"Group 0 failed: {words}" in caplog.text
    assert "more nodes lie" not in caplog.text


def test_group_weights_weight_the_average() -> None:
    sgd = partial(torch.optim.SGD, lr=0.1)
    model = record_of(initial_model())

    def step(weights: tuple[float, float]) -> Tensor:
        result, _ = train(small_config(group_weights=weights), rounds=1, optimizer=sgd)
        return vector_of(result.arrays) - vector_of(model)

    mixed = (3 * step((1, 1e-30)) + step((1e-30, 1))) / 4
    torch.testing.assert_close(step((3, 1)), mixed, rtol=1e-4, atol=1e-6)


def test_the_report_counts_bytes_and_seconds_and_becomes_metrics() -> None:
    result, reports = train(rounds=1, mods=[attack_mod(Reverse(), LIARS)])
    model_bytes = sum(len(array.data) for array in result.arrays.values())
    assert reports[0].bytes_out == 14 * model_bytes
    assert reports[0].bytes_in == 14 * 4 * 4  # 7 weights and a bias, k = 3, float32
    assert min(reports[0].seconds_waiting, reports[0].seconds_aggregating, reports[0].seconds_stepping) > 0
    metrics = result.train_metrics_clientapp[1]
    assert metrics["corrupt-nodes"] == list(LIAR_IDS)
    assert metrics["stepped"] == 1
    assert 0 < float(str(metrics["largest-error-bound"])) < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timeout": float("nan")}, "timeout must be above 0 seconds; got timeout=nan"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": "60"}, "timeout must be a number; got timeout='60'; give it as a number"),
        ({"num_rounds": 2.0}, "num_rounds=2.0; write 2"),
        ({"num_rounds": "2"}, "num_rounds='2'"),
        ({"num_rounds": -1}, "num_rounds must be a whole number >= 0"),
    ],
)
def test_impossible_deadlines_and_numbers_of_rounds_are_refused(arguments: dict[str, Any], message: str) -> None:
    strategy = SolonStrategy(small_config(), SGD)
    with pytest.raises(ConfigurationError, match=message):
        strategy.start(InProcessGrid(ClientApp(), 14), record_of(initial_model()), **{"timeout": 1, **arguments})


def test_deadlines_and_numbers_of_rounds_may_be_numpys() -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(REMEMBERING.client_app(), 14)
    numbers: Any = {"num_rounds": np.int64(1), "timeout": np.float32(1)}
    assert list(strategy.start(grid, record_of(initial_model()), **numbers).train_metrics_clientapp) == [1]


A_WEIGHT = torch.zeros(1, requires_grad=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": torch.optim.SGD([A_WEIGHT], lr=0.1)}, r"got a SGD; give .*partial\(torch.optim.SGD, lr=0.1\)"),
        ({"optimizer": None}, "optimizer must be callable and .* got a NoneType"),
        ({"optimizer": torch.optim.LBFGS}, "got LBFGS, which evaluates the loss several times per step"),
        ({"optimizer": partial(torch.optim.SparseAdam, lr=0.1)}, "got SparseAdam, which takes only sparse gradients"),
        (
            {"scheduler": StepLR(torch.optim.SGD([A_WEIGHT], lr=0.1), 1)},
            "scheduler must be callable and .* got a StepLR",
        ),
    ],
)
def test_what_makes_no_fit_optimizer_is_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SolonStrategy(small_config(), **{"optimizer": SGD, **arguments})


def test_nodes_that_never_come_are_an_error() -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 10)
    with pytest.raises(NodesMissingError, match="num_nodes=14 nodes; only 10 connected"):
        strategy.start(grid, record_of(initial_model()), timeout=0.1)


def test_a_reply_that_comes_after_its_round_does_not_disturb_the_next(honest_model: Tensor) -> None:
    class Late(InProcessGrid):
        """Node 2's replies are one round late. By then nobody asks for them, so they get lost, as in Flower."""

        late: list[Message] = []  # noqa: RUF012  # one grid only

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            on_time = [reply for reply in replies if reply.metadata.src_node_id != 2]
            overdue, self.late = self.late, [reply for reply in replies if reply not in on_time]
            return on_time + overdue

    reports: list[RoundReport] = []
    strategy = SolonStrategy(small_config(), SGD, on_round=reports.append)
    result = strategy.start(Late(Regression().client_app(), 14), record_of(initial_model()), num_rounds=5, timeout=1)
    assert all(report.silent_nodes == (2,) for report in reports)
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-5, atol=1e-6)


def test_too_many_silent_nodes_fail_at_the_deadline() -> None:
    _, reports = train(mods=[silent_mod({0, 1, 2, 3, 4})], rounds=1, timeout=0.3)
    assert reports[0].failed_groups == (0,)
    assert reports[0].groups[0].silent_nodes == (1, 2, 3, 4, 5)


def test_a_wrong_model_on_the_nodes_is_reported_in_plain_words(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flwr").propagate = True
    complaint = r"the node's model is not the server's: they differ in \['bias'\]"
    with pytest.raises(GroupFailedError, match=f"no node sent anything usable in the first round.*{complaint}"):
        train(client=Regression(lambda: nn.Linear(7, 1, bias=False)))
    assert "they differ in ['bias']" in caplog.text


SLOW = "This SGD adds 0.05 of it. Give the server SGD with lr=1"


@pytest.mark.parametrize(
    ("mode", "optimizer", "warned"),
    [
        ("update", partial(torch.optim.SGD, lr=0.05), True),
        ("update", partial(torch.optim.SGD, lr=0.005, momentum=0.9), True),
        ("update", lambda parameters: torch.optim.SGD(parameters, lr=0.05), True),  # known once the run begins
        ("update", partial(torch.optim.SGD, lr=1.0), False),
        ("update", partial(torch.optim.SGD, lr=0.1, momentum=0.9), False),
        ("update", partial(torch.optim.Adam, lr=0.01), False),
        ("gradient", partial(torch.optim.SGD, lr=0.05), False),
    ],
)
def test_in_update_mode_a_small_rate_on_the_server_is_warned_of_once(
    mode: Any, optimizer: Any, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("flwr").propagate = True
    strategy = SolonStrategy(small_config(mode=mode), optimizer)
    if isinstance(optimizer, partial):
        assert (SLOW in caplog.text) == warned
    strategy.configure_train(1, record_of(initial_model()), ConfigRecord(), InProcessGrid(ClientApp(), 14))
    assert caplog.text.count(SLOW) == warned
    assert caplog.text.count("mode 'update'") == warned


def test_update_mode_averages_local_training() -> None:
    config = small_config(mode="update", batches_per_group=3)
    lr_one = partial(torch.optim.SGD, lr=1.0)
    grid = InProcessGrid(Regression().client_app([attack_mod(Reverse(), LIARS)]), 14)
    strategy = SolonStrategy(config, lr_one)
    result = strategy.start(
        grid, record_of(initial_model()), num_rounds=1, timeout=1, train_config=ConfigRecord({"lr": 0.05})
    )
    changes = []
    for group in range(2):
        client = Regression()
        model = initial_model().to(client.devices()[0])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        context: Any = None
        for index in range(3):
            optimizer.zero_grad()
            client.batch_loss(model, Batch(0, 1, 3 * group + index), context).backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
        changes.append(vector_of(record_of(model)) - vector_of(record_of(initial_model())))
    expected = vector_of(record_of(initial_model())) + (changes[0] + changes[1]) / 2
    torch.testing.assert_close(vector_of(result.arrays), expected, rtol=1e-5, atol=1e-6)


def test_unknown_buffers_are_refused_at_the_first_round() -> None:
    strategy = SolonStrategy(small_config(), SGD, buffers=("bn.running_mean",))
    grid: Grid = InProcessGrid(Regression().client_app(), 14)
    with pytest.raises(ConfigurationError, match=r"bn\.running_mean"):
        strategy.start(grid, record_of(initial_model()), timeout=1)


def test_an_answer_to_an_earlier_round_is_entered_as_late_and_disturbs_nothing() -> None:
    """Node 3 replies to every message one round too late."""
    held: list[Message] = []

    class Slow(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            wanted = set(message_ids)
            replies = list(super().pull_messages(wanted))
            late = [reply for reply in replies if reply.metadata.src_node_id == 3]
            due = [reply for reply in held if reply.metadata.reply_to_message_id in wanted]
            held[:] = [reply for reply in held if reply not in due] + late
            return [reply for reply in replies if reply not in late] + due

    strategy = SolonStrategy(small_config(), SGD)
    grid = Slow(Regression().client_app(), 14)
    result = strategy.start(grid, record_of(initial_model()), num_rounds=4, timeout=0.05)
    honest, _ = train(rounds=4)
    torch.testing.assert_close(vector_of(result.arrays), vector_of(honest.arrays))
    record = strategy.ledger["id:3"]
    assert (record.rounds, record.silent, record.late, record.offences) == (4, 4, 3, 0)
    assert all(other.silent == 0 for identity, other in strategy.ledger.items() if identity != "id:3")


def test_a_quarantined_liar_gets_no_more_tasks_and_training_goes_on() -> None:
    asked: list[int] = []

    def count(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        asked.append(context.node_id)
        return call_next(message, context)

    honest, _ = train(rounds=5)
    lies = attack_mod(Reverse(), {4, 9})  # nodes 5 and 10
    result, reports = train(small_config(quarantine_after=2), mods=[count, lies], rounds=5)
    torch.testing.assert_close(vector_of(result.arrays), vector_of(honest.arrays))
    assert [report.corrupt_nodes for report in reports] == [(5, 10), (5, 10), (), (), ()]
    assert asked.count(5) == asked.count(10) == 2
    assert asked.count(1) == 5
    assert reports[-1].groups[0].nodes == (1, 2, 3, 4, None, 6, 7)
