import copy
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod, message_size_mod
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, ExponentialLR, LambdaLR, SequentialLR, StepLR

from solon_fl.clients import Batch
from solon_fl.errors import CheckpointError, ConfigurationError, GroupFailedError, NodesMissingError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Alie, Constant, NotFinite, RandomGaussian, Reverse, SameLie
from solon_fl.simulations.attacks.mods import MALFORMATIONS, attack_mod, malformed_mod, silent_mod
from solon_fl.strategies import Checkpoints, RoundReport, SolonStrategy
from solon_fl.wire import to_array, trusted_tensor
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

LIARS = {1, 4, 8, 13}  # numbers: two of each group of seven
LIAR_IDS = tuple(sorted(number + 1 for number in LIARS))


@pytest.fixture(scope="module")
def honest_model() -> Tensor:
    return vector_of(train()[0].arrays)


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


def test_on_round_may_stop_the_run_and_it_can_go_on_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flwr").propagate = True
    evaluated: list[int] = []

    def run(num_rounds: int, stop_after: int) -> Result:
        strategy = SolonStrategy(
            small_config(),
            SGD,
            on_round=lambda report: report.round == stop_after,
            checkpoints=Checkpoints(tmp_path, every=10),
        )
        grid = InProcessGrid(REMEMBERING.client_app(), 14)
        model = record_of(initial_model())
        note: Any = lambda number, _: evaluated.append(number)  # noqa: E731
        return strategy.start(grid, model, num_rounds=num_rounds, timeout=1, evaluate_fn=note)

    stopped = run(5, stop_after=2)
    assert list(stopped.train_metrics_clientapp) == [1, 2]
    assert evaluated == [0, 1, 2]
    assert vector_of(stopped.arrays).equal(vector_of(train(rounds=2)[0].arrays))
    assert "Stopped after round 2 of 5" in caplog.text
    assert "made no step" not in caplog.text
    assert vector_of(run(3, stop_after=0).arrays).equal(vector_of(train(rounds=3)[0].arrays))
    assert evaluated == [0, 1, 2, 3], "the checkpoint was written where the run stopped"


def reporting(losses: dict[int, float | str]) -> Mod:
    """Return a mod that lets nodes report these training losses, by their id, and others none."""

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


# ---- failing groups ------------------------------------------------------------------------------------------

BROKEN_GROUP = attack_mod(RandomGaussian(), {0, 1, 2})  # three of the first group's seven, where two are allowed


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
    words = "all nodes that replied sent NaN or inf, and they can't all lie: the training has diverged"
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


# ---- Flower --------------------------------------------------------------------------------------------------


def test_under_flowers_own_start_the_result_is_the_same(honest_model: Tensor) -> None:
    reports: list[RoundReport] = []
    strategy = SolonStrategy(small_config(), SGD, on_round=reports.append)
    grid = InProcessGrid(Regression().client_app([attack_mod(Reverse(), LIARS)]), 14)
    result = Strategy.start(strategy, grid, record_of(initial_model()), num_rounds=5, timeout=5)
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-4, atol=1e-5)
    assert [report.corrupt_nodes for report in reports] == [LIAR_IDS] * 5


class Around(Strategy):
    """Hands on what another strategy makes, the model changed."""

    def __init__(self, inner: SolonStrategy, change: Callable[[dict[str, Tensor]], None]) -> None:
        self.inner = inner
        self.change = change

    def configure_train(self, *arguments: Any) -> Iterable[Message]:
        return self.inner.configure_train(*arguments)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = self.inner.aggregate_train(server_round, replies)
        assert arrays is not None
        tensors = {name: trusted_tensor(array).clone() for name, array in arrays.items()}
        self.change(tensors)
        return ArrayRecord({name: to_array(tensor) for name, tensor in tensors.items()}), metrics

    def configure_evaluate(self, *arguments: Any) -> Iterable[Message]:
        return []

    def aggregate_evaluate(self, *arguments: Any) -> None:
        return None

    def summary(self) -> None:
        pass


def test_a_model_that_a_strategy_around_it_has_changed_is_the_one_that_is_trained() -> None:
    def prune(tensors: dict[str, Tensor]) -> None:
        tensors["weight"][0, 0] = 0.0

    sgd: Any = partial(torch.optim.SGD, lr=0.1)
    grid = InProcessGrid(Regression().client_app(), 14)
    strategy = Around(SolonStrategy(small_config(), sgd), prune)
    result = strategy.start(grid, record_of(initial_model()), num_rounds=3, timeout=5)
    model = initial_model()
    optimizer = sgd(model.parameters())
    context: Any = None
    for server_round in range(1, 4):
        optimizer.zero_grad()
        losses = [REMEMBERING.batch_loss(model, Batch(0, server_round, number), context) for number in range(14)]
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
        prune(dict(model.state_dict()))
    torch.testing.assert_close(vector_of(result.arrays), vector_of(record_of(model)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update(weight=torch.zeros(1, 6)), r"got weight .*shape=\(1, 6\), which was \(1, 7\)"),
        (lambda tensors: tensors.update(weight=torch.zeros(1, 7, dtype=torch.int64)), "got weight of torch.int64"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), r"they differ in \['more'\]"),
    ],
)
def test_a_changed_model_of_another_kind_is_refused(change: Any, message: str) -> None:
    strategy = Around(SolonStrategy(small_config(), SGD), change)
    grid = InProcessGrid(Regression().client_app(), 14)
    with pytest.raises(ConfigurationError, match=message):
        strategy.start(grid, record_of(initial_model()), num_rounds=2, timeout=5)


def test_under_flowers_own_start_a_second_run_is_a_new_one() -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 14)
    models = [
        vector_of(Strategy.start(strategy, grid, record_of(initial_model()), num_rounds=2, timeout=5).arrays)
        for _ in range(2)
    ]
    assert models[0].equal(models[1])


def test_flowers_mods_that_measure_messages_can_be_put_around_a_node() -> None:
    _, reports = train(mods=[message_size_mod, arrays_size_mod], rounds=1)
    assert [group.status for group in reports[0].groups] == ["clean", "clean"]


def test_a_grid_that_copies_messages_works_with_flowers_own_start(honest_model: Tensor) -> None:
    class Copying(InProcessGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            return super().send_and_receive([copy.deepcopy(message) for message in messages])

    strategy = SolonStrategy(small_config(), SGD)
    grid = Copying(Regression().client_app(), 14)
    result = Strategy.start(strategy, grid, record_of(initial_model()), num_rounds=5, timeout=5)
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-5, atol=1e-6)


def test_a_strategy_can_be_started_again() -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 14)
    runs = [strategy.start(grid, record_of(initial_model()), num_rounds=3, timeout=1) for _ in range(2)]
    assert torch.equal(vector_of(runs[0].arrays), vector_of(runs[1].arrays))


def test_messages_share_the_model_and_nothing_else() -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 14)
    arrays, config = record_of(initial_model()), ConfigRecord({"lr": 0.5})
    messages = strategy.configure_train(1, arrays, config, grid)
    assert isinstance(messages, list)
    assert len({id(message.content["config"]) for message in messages}) == 14
    assert len({id(message.content["arrays"]) for message in messages}) == 1
    assert messages[0].content["config"] == ConfigRecord({"lr": 0.5, "server-round": 1})
    assert config == ConfigRecord({"lr": 0.5})


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


def test_the_server_evaluates_before_and_after_every_round() -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 14)
    rounds: list[int] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        rounds.append(server_round)
        return MetricRecord({"norm": float(vector_of(arrays).norm())})

    result = strategy.start(grid, record_of(initial_model()), num_rounds=2, timeout=1, evaluate_fn=evaluate)
    assert rounds == [0, 1, 2]
    assert list(result.evaluate_metrics_serverapp) == [0, 1, 2]


@pytest.mark.parametrize("found", [{"accuracy": np.float32(0.5)}, {"accuracy": torch.tensor(0.5)}, {"accuracy": 0.5}])
def test_the_server_s_metrics_may_be_a_plain_dict(found: Any) -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 14)
    model = record_of(initial_model())
    result = strategy.start(grid, model, num_rounds=1, timeout=1, evaluate_fn=lambda *_: found)
    assert dict(result.evaluate_metrics_serverapp[1]) == {"accuracy": 0.5}


@pytest.mark.parametrize("found", [(0.1, {"accuracy": 0.5}), {"accuracy": "good"}, {"accuracy": True}])
def test_server_metrics_that_are_no_numbers_are_refused_before_training(found: Any) -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(ClientApp(), 14)
    with pytest.raises(ConfigurationError, match="evaluate_fn must return None or named numbers"):
        strategy.start(grid, record_of(initial_model()), num_rounds=1, timeout=1, evaluate_fn=lambda *_: found)


def test_client_metrics_are_aggregated_by_the_median_of_sane_values() -> None:
    class Boasting(Regression):
        def evaluate(self, model: nn.Module, context: Context) -> dict[str, float]:
            if context.node_id in (3, 4):
                return {"number": 1e300, "only-here": 1.0}
            if context.node_id == 5:
                return {"number": float("nan")}
            if context.node_id == 6:
                raise RuntimeError("no test data")
            return super().evaluate(model, context)

    result, _ = train(client=Boasting(), rounds=1, client_evaluation=True)
    # Twelve values: nodes 1, 2, 7..14, and 1e300 twice.
    assert dict(result.evaluate_metrics_clientapp[1]) == {"number": 10.5}


class Unlucky(Regression):
    """Can't evaluate, in the way that the test wants."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found

    def evaluate(self, model: nn.Module, context: Context) -> dict[str, float]:
        if self.found is None:
            raise RuntimeError(f"no test data\non node {context.node_id}")
        return {"accuracy": self.found}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            None,
            "Evaluation failed on 14 of the 14 nodes that replied; the first .* node 1: error .*no test data on",
        ),
        ("good", "Evaluation failed on 14 of the 14 nodes.*TypeError"),
        (float("nan"), "14 nodes evaluated, but no metric was reported by more than half .* not NaN"),
    ],
)
def test_an_evaluation_that_fails_on_the_nodes_is_told_once(
    found: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("flwr").propagate = True
    result, reports = train(client=Unlucky(found), rounds=3, client_evaluation=True)
    assert len(reports) == 3
    assert not result.evaluate_metrics_clientapp
    (told,) = [record.message for record in caplog.records if "valuat" in record.message]
    assert re.match(words, told), told


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
        """Node 2 answers one round late, when the reply is not asked for any more: it gets lost, as in Flower."""

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


def test_stray_replies_to_aggregate_train_are_ignored() -> None:
    strategy = SolonStrategy(small_config(), SGD)
    grid = InProcessGrid(Regression().client_app(), 14)
    messages = strategy.configure_train(1, record_of(initial_model()), ConfigRecord(), grid)
    replies = list(grid.send_and_receive(messages))
    stray = Message(RecordDict({"share": ArrayRecord({"share": to_array(torch.zeros(3))})}), reply_to=replies[0])
    arrays, metrics = strategy.aggregate_train(1, [stray, *replies])
    assert arrays is not None
    assert metrics is not None
    assert metrics["corrupt-nodes"] == []


def test_aggregating_without_a_round_is_a_plain_error() -> None:
    with pytest.raises(RuntimeError, match="before configure_train"):
        SolonStrategy(small_config(), SGD).aggregate_train(1, [])


def test_unknown_buffers_are_refused_at_the_first_round() -> None:
    strategy = SolonStrategy(small_config(), SGD, buffers=("bn.running_mean",))
    grid: Grid = InProcessGrid(Regression().client_app(), 14)
    with pytest.raises(ConfigurationError, match=r"bn\.running_mean"):
        strategy.start(grid, record_of(initial_model()), timeout=1)


def test_an_answer_to_an_earlier_round_is_entered_as_late_and_disturbs_nothing() -> None:
    """Node 3 answers every message one round too late."""
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


def test_a_run_resumed_by_another_strategy_object_is_the_same_run(tmp_path: Path) -> None:
    adam = partial(torch.optim.Adam, lr=0.01)
    mods = [attack_mod(Reverse(), {4, 9})]
    whole, _ = train(rounds=6, optimizer=adam, mods=mods, projection_seed=1)
    for rounds in (1, 4, 6):
        checkpoints = Checkpoints(tmp_path, every=2)
        part, reports = train(rounds=rounds, optimizer=adam, mods=mods, projection_seed=1, checkpoints=checkpoints)
    assert [report.round for report in reports] == [5, 6]
    assert vector_of(part.arrays).equal(vector_of(whole.arrays))
    for now, then in zip(*(r.train_metrics_clientapp.items() for r in (part, whole)), strict=True):
        assert now[0] == then[0]
        assert {k: v for k, v in now[1].items() if "seconds" not in k} == {
            k: v for k, v in then[1].items() if "seconds" not in k
        }


SCHEDULES: dict[str, Any] = {
    "step": partial(StepLR, step_size=2, gamma=0.1),
    "cosine": partial(CosineAnnealingLR, T_max=6),
    "function": partial(LambdaLR, lr_lambda=lambda step: 0.5**step),
    "sequence": lambda optimizer: SequentialLR(
        optimizer, [ConstantLR(optimizer, 0.1, 2), ExponentialLR(optimizer, 0.5)], milestones=[2]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    optimizer: Any = partial(Watched, lr=0.1)
    plain = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = SCHEDULES[name](plain)
    expected = []
    for _ in range(6):
        expected.append(plain.param_groups[0]["lr"])
        plain.step()
        schedule.step()
    whole, _ = train(rounds=6, optimizer=optimizer, scheduler=SCHEDULES[name])
    assert rates == expected
    rates.clear()
    for rounds in (2, 3, 6):
        checkpoints = Checkpoints(tmp_path)
        part, _ = train(rounds=rounds, optimizer=optimizer, scheduler=SCHEDULES[name], checkpoints=checkpoints)
    assert rates == expected
    assert vector_of(part.arrays).equal(vector_of(whole.arrays))


def test_a_round_without_a_step_does_not_move_the_schedule() -> None:
    optimizers: list[torch.optim.Optimizer] = []

    def halve(optimizer: torch.optim.Optimizer) -> StepLR:
        optimizers.append(optimizer)
        return StepLR(optimizer, 1, gamma=0.5)

    _, reports = train(
        small_config(on_group_failure="skip"), mods=[BROKEN_GROUP], rounds=3, optimizer=SGD, scheduler=halve
    )
    assert not any(report.stepped for report in reports)
    assert optimizers[0].param_groups[0]["lr"] == 0.1


def test_another_schedule_is_another_run(tmp_path: Path) -> None:
    train(rounds=1, scheduler=SCHEDULES["step"], checkpoints=Checkpoints(tmp_path))
    with pytest.raises(CheckpointError, match=r"optimizer\.scheduler is 'StepLR' there and 'CosineAnnealingLR' here"):
        train(rounds=2, scheduler=SCHEDULES["cosine"], checkpoints=Checkpoints(tmp_path))


def test_a_run_goes_on_when_the_optimizer_has_a_default_more(tmp_path: Path) -> None:
    """As AdamW got one in torch 2.7."""

    def older(parameters: list[Tensor]) -> torch.optim.Optimizer:
        made = torch.optim.AdamW(parameters, lr=0.1)
        del made.defaults["decoupled_weight_decay"], made.defaults["foreach"]
        return made

    train(rounds=1, optimizer=older, checkpoints=Checkpoints(tmp_path))
    for odd in ({"weight_decay": 0.5}, {"amsgrad": True}):
        with pytest.raises(CheckpointError, match=rf"optimizer\.{next(iter(odd))} is not set there and '.*' here"):
            train(rounds=2, optimizer=partial(torch.optim.AdamW, lr=0.1, **odd), checkpoints=Checkpoints(tmp_path))
    optimizer = partial(torch.optim.AdamW, lr=0.1)
    _, reports = train(rounds=2, optimizer=optimizer, checkpoints=Checkpoints(tmp_path))
    assert [report.round for report in reports] == [2]


def test_checkpoints_of_another_run_are_refused_and_kept(tmp_path: Path) -> None:
    train(rounds=2, checkpoints=Checkpoints(tmp_path))
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="byzantine is 2 there and 1 here"):
        train(small_config(byzantine=1, group_size=7), rounds=3, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(CheckpointError, match=r"optimizer\.class is 'SGD' there and 'Adam' here"):
        train(rounds=3, optimizer=torch.optim.Adam, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(CheckpointError, match=r"optimizer\.lr is '0\.1' there and '5\.0' here"):
        train(rounds=3, optimizer=partial(torch.optim.SGD, lr=5.0, momentum=0.9), checkpoints=Checkpoints(tmp_path))
    with pytest.raises(CheckpointError, match="has reached round 2, beyond num_rounds=1"):
        train(rounds=1, checkpoints=Checkpoints(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    changed = small_config(quarantine_after=9, on_group_failure="skip")
    _, reports = train(changed, rounds=3, checkpoints=Checkpoints(tmp_path))
    assert [report.round for report in reports] == [3], "the policies may change"


@pytest.mark.parametrize("mute_rounds", [{1, 2, 3, 4}, {1, 3}])
def test_a_node_that_does_not_evaluate_is_waited_for_once(
    mute_rounds: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    class Mute(InProcessGrid):
        looks: list[int]  # the round of each look for its evaluation

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            (message_id,) = message_ids
            waiting = self._waiting.get(message_id)
            if waiting and waiting.metadata.message_type == "evaluate" and waiting.metadata.dst_node_id == 3:
                self.looks.append(int(waiting.metadata.group_id))
                if self.looks[-1] in mute_rounds:
                    return []
            return super().pull_messages([message_id])

    class Evaluating(Regression):
        def evaluate(self, model: nn.Module, context: Context) -> dict[str, float]:
            return {"accuracy": 0.5}

    logging.getLogger("flwr").propagate = True
    grid = Mute(Evaluating().client_app(), 14)
    grid.looks = []
    strategy = SolonStrategy(small_config(), SGD, client_evaluation=True)
    result = strategy.start(grid, record_of(initial_model()), num_rounds=4, timeout=0.3)
    assert [metrics["accuracy"] for metrics in result.evaluate_metrics_clientapp.values()] == 4 * [0.5]
    assert caplog.text.count("No evaluation from nodes 3;") == 1
    looks = Counter(grid.looks)
    assert looks[1] > 3, "in the first round it is waited for until the deadline"
    assert all(looks[server_round] == 1 for server_round in (2, 3, 4))
    assert all(record.offences == record.silent == 0 for record in strategy.ledger.values())


@pytest.mark.parametrize("answer", [True, np.bool_(True), torch.tensor(True)], ids=["Python", "numpy", "torch"])
def test_any_kind_of_true_stops_the_run(answer: Any) -> None:
    reports: list[RoundReport] = []

    def on_round(report: RoundReport) -> Any:
        reports.append(report)
        return answer

    grid = InProcessGrid(Regression().client_app(), 14)
    SolonStrategy(small_config(), SGD, on_round=on_round).start(grid, record_of(initial_model()), num_rounds=3)
    assert len(reports) == 1
