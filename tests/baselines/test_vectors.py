"""The strategies without coded groups, and how they handle malformed replies."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from solon_fl.baselines import AggregatorStrategy, SignumStrategy, signum_mod
from solon_fl.baselines.signum import majority_of_signs
from solon_fl.baselines.vectors import VectorStrategy
from solon_fl.clients import Batch
from solon_fl.errors import ConfigurationError, GroupFailedError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import MALFORMATIONS, attack_mod, malformed_mod, silent_mod
from solon_fl.strategies import RoundReport, buffer_names
from solon_fl.strategies.model import ServerModel
from solon_fl.wire import to_array
from tests.support import SGD, Regression, initial_model, record_of, spoil, vector_of

NUM_NODES = 7
LIARS = {1, 4}
Aggregate = Callable[[Tensor], Tensor]


def normalised_model() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def plain_app(mods: list[Mod], make_model: Callable[[], nn.Module] = lambda: nn.Linear(7, 1)) -> ClientApp:
    """Node n computes batch n."""
    client, app = Regression(make_model), ClientApp()

    @app.train(mods=mods)
    def plain(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        server_round = int(str(message.content.config_records["config"]["server-round"]))
        batch = Batch(0, server_round, int(context.node_config["partition-id"]))
        gradient = client.mean_gradient(arrays, [batch], buffer_names(make_model()), context)
        parts, start = {}, 0
        for name, array in arrays.items():
            if array.dtype.startswith("float"):
                size = int(torch.tensor(array.shape).prod())
                parts[name] = Array(gradient[start : start + size].view(tuple(array.shape)).cpu().numpy())
                start += size
        content = RecordDict({"arrays": ArrayRecord(parts), "metrics": MetricRecord({"num-examples": 8})})
        return Message(content, reply_to=message)

    return app


def run(
    strategy: VectorStrategy, mods: list[Mod], rounds: int = 3, make_model: Any = lambda: nn.Linear(7, 1)
) -> Tensor:
    grid = InProcessGrid(plain_app(mods, make_model), NUM_NODES)
    return vector_of(strategy.start(grid, record_of(initial_model(make_model)), num_rounds=rounds, timeout=0.1).arrays)


def gradients_of(server_round: int, arrays: ArrayRecord) -> Tensor:
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    client = Regression()
    gradients = [client.mean_gradient(arrays, [Batch(0, server_round, n)], (), context) for n in range(7)]
    return torch.stack(gradients).cpu()


# ---- any function of the gradients ---------------------------------------------------------------------------


def test_the_function_gets_one_row_a_node_and_its_result_is_the_step() -> None:
    seen: list[Tensor] = []

    def median(vectors: Tensor) -> Tensor:
        seen.append(vectors.clone())
        return vectors.median(dim=0).values

    final = run(AggregatorStrategy(NUM_NODES, median, SGD), [], rounds=1)
    arrays = record_of(initial_model())
    torch.testing.assert_close(seen[0], gradients_of(1, arrays))
    expected = vector_of(arrays) - 0.1 * seen[0].median(dim=0).values
    torch.testing.assert_close(final, expected, rtol=1e-5, atol=1e-6)


def test_an_aggregator_may_change_what_it_gets() -> None:
    def clipped_in_place(vectors: Tensor) -> Tensor:
        return vectors.clamp_(-1, 1).mean(0)

    reports: list[RoundReport] = []
    run(AggregatorStrategy(NUM_NODES, clipped_in_place, SGD, on_round=reports.append), [])
    assert all(report.stepped for report in reports)


@pytest.mark.parametrize("how", MALFORMATIONS)
def test_malformed_gradients_are_dropped_and_named(how: Any) -> None:
    rows: list[int] = []

    def mean(vectors: Tensor) -> Tensor:
        rows.append(len(vectors))
        return vectors.mean(0)

    reports: list[RoundReport] = []
    run(AggregatorStrategy(NUM_NODES, mean, SGD, on_round=reports.append), [malformed_mod(LIARS, how)])
    assert rows == [5, 5, 5]
    assert [report.malformed_nodes for report in reports] == [(2, 5)] * 3


def test_nan_never_reaches_the_aggregator_and_silence_is_reported() -> None:
    def nan(reply: Message) -> Message:
        reply.content["arrays"] = ArrayRecord(
            {k: Array(a.numpy() * float("nan")) for k, a in reply.content.array_records["arrays"].items()}
        )
        return reply

    reports: list[RoundReport] = []
    strategy = AggregatorStrategy(NUM_NODES, partial(torch.mean, dim=0), SGD, on_round=reports.append)
    final = run(strategy, [spoil(nan, {3}), silent_mod({0})])
    assert final.isfinite().all()
    assert reports[0].malformed_nodes == (3,)
    assert "NaN" in reports[0].groups[0].malformed_nodes[3]
    assert reports[0].silent_nodes == (1,)


@pytest.mark.parametrize(
    "broken",
    [lambda vectors: vectors[0] * float("nan"), lambda vectors: vectors, lambda vectors: vectors[100]],
    ids=["nan", "shape", "raises"],
)
def test_an_aggregator_that_fails_skips_the_round(broken: Aggregate, caplog: pytest.LogCaptureFixture) -> None:
    reports: list[RoundReport] = []
    final = run(AggregatorStrategy(NUM_NODES, broken, SGD, on_round=reports.append), [])
    torch.testing.assert_close(final, vector_of(record_of(initial_model())), rtol=0, atol=0)
    assert not any(report.stepped for report in reports)
    assert "skipped" in caplog.text


def test_of_two_replies_the_first_counts() -> None:
    arrays = record_of(initial_model())
    run = SignumStrategy(NUM_NODES, SGD).begin(ServerModel(arrays, (), SGD), 1.0, follows_up=True)
    opened = run.open_round(1, ConfigRecord(), InProcessGrid(plain_app([]), 7))
    messages = list(opened.messages(arrays).values())
    for number, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = str(number)

    def signs(message: Message, byte: int) -> Message:
        arrays = ArrayRecord({"signs": to_array(torch.tensor([byte], dtype=torch.uint8))})
        return Message(RecordDict({"signs": arrays}), reply_to=message)

    empty = Message(RecordDict(), reply_to=messages[0])
    replies = [signs(message, 255) for message in messages] + [signs(message, 0) for message in messages] + [empty]
    opened.receive([(number % NUM_NODES, reply) for number, reply in enumerate(replies)])
    assert [int(arrays["signs"][0]) for arrays in opened._sent.values()] == [255] * NUM_NODES
    assert opened._malformed == {}


def test_nobody_sends_anything() -> None:
    with pytest.raises(GroupFailedError, match="none answered"):
        run(AggregatorStrategy(NUM_NODES, partial(torch.mean, dim=0), SGD), [silent_mod()])


def test_no_nodes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="num_nodes=0"):
        SignumStrategy(0, SGD)


# ---- Signum --------------------------------------------------------------------------------------------------

SIGN_SGD = partial(torch.optim.SGD, lr=0.01)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32))
def test_the_vote_is_the_sign_of_the_sum_of_signs(num_nodes: int, dim: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    plus = torch.randint(0, 2, (num_nodes, dim), generator=rng, dtype=torch.bool)
    packed = [
        torch.tensor([sum(int(bit) << (7 - i) for i, bit in enumerate(row[j : j + 8])) for j in range(0, dim, 8)]).to(
            torch.uint8
        )
        for row in plus.tolist()
    ]
    expected = torch.sign(torch.where(plus, 1, -1).sum(0))
    assert torch.equal(majority_of_signs(packed, dim).long(), expected)


def test_blocks_do_not_change_the_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = list(torch.randint(0, 256, (5, 1000), generator=torch.Generator().manual_seed(0)).to(torch.uint8))
    whole = majority_of_signs(packed, 7997)
    monkeypatch.setattr("solon_fl.baselines.signum.BLOCK", 64)
    assert torch.equal(majority_of_signs(packed, 7997), whole)


def test_signum_is_its_formula() -> None:
    """An independent implementation: momentum on the nodes, sign, majority, step."""
    final = run(SignumStrategy(NUM_NODES, SIGN_SGD), [signum_mod(0.9)], rounds=4)
    model = initial_model()
    averages = torch.zeros(7, 8)
    for server_round in range(1, 5):
        averages = 0.9 * averages + 0.1 * gradients_of(server_round, record_of(model))
        vote = averages.sign().sum(0).sign()
        with torch.no_grad():
            model.weight -= 0.01 * vote[:7]  # type: ignore[operator]  # a Parameter
            model.bias -= 0.01 * vote[7:]  # type: ignore[operator]  # a Parameter
    torch.testing.assert_close(final, vector_of(record_of(model)))


@pytest.mark.slow
def test_a_few_reversed_signs_do_not_turn_the_vote_where_honest_nodes_agree() -> None:
    mods = [signum_mod(), attack_mod(Reverse(), LIARS)]
    reports: list[RoundReport] = []
    final = run(SignumStrategy(NUM_NODES, partial(torch.optim.SGD, lr=0.03), on_round=reports.append), mods, rounds=60)
    assert float((final[:7] - 1).abs().max()) < 0.3  # the true weights are 1
    assert reports[0].bytes_in == NUM_NODES  # one bit for each of 8 coordinates


def test_zeros_are_a_coin_each_and_cancel() -> None:
    app = ClientApp()

    @app.train(mods=[signum_mod()])
    def zeros(message: Message, context: Context) -> Message:
        arrays = {name: Array(array.numpy() * 0) for name, array in message.content.array_records["arrays"].items()}
        return Message(RecordDict({"arrays": ArrayRecord(arrays)}), reply_to=message)

    model = initial_model(lambda: nn.Linear(400, 1))
    strategy = SignumStrategy(20, SIGN_SGD)
    result = strategy.start(InProcessGrid(app, 20), record_of(model), num_rounds=30, timeout=1)
    drift = (vector_of(result.arrays) - vector_of(record_of(model))) / 0.01
    assert 3 < float(drift.std()) < 8  # a random walk: sqrt(30) = 5.5 steps, not 30
    assert abs(float(drift.mean())) < 1


def test_statistics_go_by_the_median() -> None:
    names = buffer_names(normalised_model())
    strategy = SignumStrategy(NUM_NODES, SIGN_SGD, buffers=names)
    final = run(strategy, [signum_mod(buffers=names), attack_mod(Reverse(1e6), LIARS)], make_model=normalised_model)
    honest = run(
        SignumStrategy(NUM_NODES, SIGN_SGD, buffers=names), [signum_mod(buffers=names)], make_model=normalised_model
    )
    assert float((final - honest).abs().max()) < 0.5


def test_malformed_signs_are_dropped() -> None:
    reports: list[RoundReport] = []
    strategy = SignumStrategy(NUM_NODES, SIGN_SGD, on_round=reports.append)
    run(strategy, [malformed_mod(LIARS, "shape"), signum_mod()])
    assert reports[-1].malformed_nodes == (2, 5)


@pytest.mark.parametrize("momentum", [1.0, -0.1])
def test_an_impossible_momentum_is_refused(momentum: float) -> None:
    with pytest.raises(ConfigurationError, match=f"momentum={momentum}"):
        signum_mod(momentum)
