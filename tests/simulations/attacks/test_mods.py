"""Mods that change a node's behaviour rather than its numbers; see also tests/strategies/test_solon.py."""

import dataclasses
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from solon_fl import SolonConfig
from solon_fl.clients import Batch
from solon_fl.simulations import InProcessGrid, Scenario, load_dataset, simulate
from solon_fl.simulations.attacks import (
    FallOfEmpires,
    attack_mod,
    crash_mod,
    flips_labels,
    label_flip_mod,
    late_mod,
    seen_labels,
)
from solon_fl.simulations.run import ImageClient
from solon_fl.strategies import RoundReport, SolonStrategy
from tests.support import SGD, Regression, initial_model, record_of, small_config, train, vector_of

LIARS = {1, 4, 8, 13}
LIAR_IDS = tuple(sorted(number + 1 for number in LIARS))


@pytest.fixture(scope="module")
def honest_model() -> Tensor:
    return vector_of(train()[0].arrays)


def context_of(number: int, **node_config: Any) -> Context:
    config = {"partition-id": number, "num-partitions": 14, **node_config}
    return Context(run_id=1, node_id=number + 1, node_config=config, state=RecordDict(), run_config={})


def message_of(server_round: int) -> Message:
    content = RecordDict({"config": ConfigRecord({"server-round": server_round})})
    return Message(content, 2, "train")


def echo(message: Message, context: Context) -> Message:
    return Message(RecordDict(dict(message.content)), reply_to=message)


def test_a_crash_is_an_error_reply_and_harms_nobody(honest_model: Tensor) -> None:
    result, reports = train(mods=[crash_mod(LIARS)])
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-4, atol=1e-5)
    for report in reports:
        assert report.malformed_nodes == LIAR_IDS
        reasons = [reason for group in report.groups for reason in group.malformed_nodes.values()]
        assert all("this node has crashed" in reason for reason in reasons)


def test_a_late_node_answers_the_round_before() -> None:
    mod = late_mod({3})
    assert mod(message_of(1), context_of(3), echo) is None
    for server_round in (2, 3):
        reply = mod(message_of(server_round), context_of(3), echo)
        assert reply.content.config_records["config"]["server-round"] == server_round - 1
    assert mod(message_of(3), context_of(2), echo).content.config_records["config"]["server-round"] == 3


def test_late_nodes_of_two_runs_are_not_mixed_up() -> None:
    mod = late_mod()
    first, second = context_of(3), context_of(3)
    second.run_id = 2
    assert mod(message_of(1), first, echo) is None
    assert mod(message_of(2), second, echo) is None
    assert mod(message_of(3), first, echo).content.config_records["config"]["server-round"] == 1


def test_late_replies_are_silence_and_harm_nobody(honest_model: Tensor) -> None:
    result, reports = train(mods=[late_mod(LIARS)])
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-4, atol=1e-5)
    assert [report.silent_nodes for report in reports] == [LIAR_IDS] * 5
    assert not any(report.corrupt_nodes or report.malformed_nodes for report in reports)


def test_late_replies_harm_nobody_under_flowers_own_start(honest_model: Tensor) -> None:
    reports: list[RoundReport] = []
    strategy = SolonStrategy(small_config(), SGD, on_round=reports.append)
    grid = InProcessGrid(Regression().client_app([late_mod(LIARS)]), 14)
    result = Strategy.start(strategy, grid, record_of(initial_model()), num_rounds=5, timeout=5)
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-4, atol=1e-5)
    assert [report.silent_nodes for report in reports] == [LIAR_IDS] * 5


@pytest.mark.parametrize("number", [2, 3])
def test_flipped_labels_are_c_minus_1_minus_y_for_liars_only(number: int) -> None:
    seen = []

    def client(message: Message, context: Context) -> Message:
        seen.append(seen_labels(torch.tensor([0, 1, 9]), 10, context).tolist())
        return echo(message, context)

    context = context_of(number)
    label_flip_mod({3})(message_of(1), context, client)
    assert seen == [[9, 8, 0] if number == 3 else [0, 1, 9]]
    assert not flips_labels(context)  # the node's own config is unchanged


def test_a_client_that_flips_has_the_loss_of_flipped_data() -> None:
    dataset = load_dataset("fashion-mnist-6k")
    flipped = dataclasses.replace(dataset, train_labels=9 - dataset.train_labels)
    scenario = Scenario(config=SolonConfig(num_nodes=7, byzantine=2, compression=3), model="logistic", batch_size=8)
    batch = Batch(0, 1, 0)
    model = ImageClient(scenario, dataset).build_model(context_of(0))
    poisoned = ImageClient(scenario, dataset).batch_loss(model, batch, context_of(0, **{"flip-labels": True}))
    torch.testing.assert_close(poisoned, ImageClient(scenario, flipped).batch_loss(model, batch, context_of(0)))
    honest = ImageClient(scenario, dataset).batch_loss(model, batch, context_of(0))
    assert not torch.allclose(poisoned, honest)


@pytest.mark.parametrize(("strategy", "mode"), [("solon", "gradient"), ("solon", "update"), ("fedavg", "gradient")])
def test_gradients_of_flipped_labels_are_remembered_apart(strategy: str, mode: str) -> None:
    config = SolonConfig(num_nodes=7, byzantine=2, compression=3, mode=mode)  # type: ignore[arg-type]  # a literal
    once, always = (
        simulate(
            Scenario(
                config=config,
                attack="label-flip",
                strategy=strategy,
                model="logistic",
                rounds=2,
                batch_size=8,
                compute_once=compute_once,
            )
        )
        for compute_once in (True, False)
    )
    assert torch.equal(vector_of(once.arrays), vector_of(always.arrays))
    if strategy == "solon":
        assert set(once.offences) == once.scenario.liars


def test_colluding_liars_search_once_a_round_and_group() -> None:
    calls = []

    def mean(vectors: Tensor) -> Tensor:
        calls.append(len(vectors))
        return vectors.mean(0)

    _, reports = train(mods=[attack_mod(FallOfEmpires(mean, candidates=(0.1, 2.0)), LIARS)], rounds=2)
    assert [report.corrupt_nodes for report in reports] == [LIAR_IDS] * 2
    assert calls == [7] * 3 * 2 * 2  # 7 shares; honest and two candidates; two groups; two rounds
