"""Referees that are wrong or absent, and referees on their own nodes."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from solon_fl.clients import keeping
from solon_fl.clients.keeping import ModelStore
from solon_fl.errors import ConfigurationError, RefereeError
from solon_fl.simulations import InProcessGrid
from solon_fl.strategies import SolonStrategy
from solon_fl.strategies.presence import identity_of
from solon_fl.strategies.referee import LocalReferee, TrustedNodes
from solon_fl.task import SHARE, SolonTask
from solon_fl.wire import to_array
from tests.strategies.lies import liars_mod, named, play, quarantined, questions, refereed, silent
from tests.support import REMEMBERING, SGD, Regression, Remembering, initial_model, record_of, vector_of

Answers = Callable[[Message, Callable[[], Message]], Message | None]


def honest_model(rounds: int = 4, **changes: Any) -> Tensor:
    return play(refereed(**changes), rounds=rounds)[0]


# ---- in the server's process ---------------------------------------------------------------------------------


class Failing(Remembering):
    """Fails from this round on."""

    def __init__(self, first_round: int) -> None:
        super().__init__()
        self.first_round = first_round

    def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        if task.round >= self.first_round:
            raise MemoryError("out of memory")
        return super().gradient(arrays, task, context, config)


def test_one_that_fails_is_an_error_before_the_first_round() -> None:
    with pytest.raises(RefereeError, match="the referee failed: MemoryError: out of memory") as raised:
        play(refereed(), referee=Failing(1))
    assert torch.equal(vector_of(raised.value.result.arrays), vector_of(record_of(initial_model())))
    assert not raised.value.result.train_metrics_clientapp


def test_one_that_fails_later_ends_the_run_when_it_is_needed_and_the_model_so_far_is_kept() -> None:
    play(refereed(), referee=Failing(3))
    with pytest.raises(RefereeError, match="the referee failed: MemoryError") as raised:
        play(refereed(), {1: "reverse"}, lambda server_round, node: server_round == 5, referee=Failing(3), rounds=6)
    assert torch.equal(vector_of(raised.value.result.arrays), honest_model())
    assert list(raised.value.result.train_metrics_clientapp) == [1, 2, 3, 4]


@pytest.mark.parametrize("length", [3, 9])
def test_one_that_computes_something_else_is_told_what_is_wrong(length: int) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = RecordDict({SHARE: ArrayRecord({SHARE: to_array(torch.zeros(length))})})
        return Message(content, reply_to=message)

    with pytest.raises(
        RefereeError, match=rf"can't be used: shape of the array should be \(8,\); got \({length},\); the referee must"
    ):
        play(refereed(), referee=app)


def test_it_computes_one_batch_before_the_run_and_then_only_what_it_is_asked() -> None:
    class Counting(Remembering):
        batches: ClassVar[list[tuple[int, int]]] = []

        def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
            self.batches.append((task.round, len(task.batches)))
            return super().gradient(arrays, task, context, config)

    play(refereed(), {1: "reverse"}, lambda server_round, node: server_round == 3, referee=Counting())
    assert Counting.batches == [(1, 1), (3, 2)]


def test_it_finds_its_own_settings_in_its_context() -> None:
    class Reading(Remembering):
        seen: ClassVar[set[tuple[Any, Any]]] = set()

        def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
            self.seen.add((context.node_config["data"], context.run_config["size"]))
            return super().gradient(arrays, task, context, config)

    play(refereed(), referee=LocalReferee(Reading(), node_config={"data": "here"}, run_config={"size": 3}))
    assert Reading.seen == {("here", 3)}


def test_what_is_no_referee_is_refused() -> None:
    for wrong, text in ((7, "program of the nodes or names of trusted nodes; got '7'"), (Regression, 'got "<class')):
        with pytest.raises(ConfigurationError, match=text):
            SolonStrategy(refereed(), SGD, referee=wrong)
    for names in ([], [""], [3]):
        with pytest.raises(ConfigurationError, match=r"referee must name at least one node; got \("):
            TrustedNodes(names)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"got referee=None with SolonConfig\(referee=True\); give SolonStrat"):
        SolonStrategy(refereed(), SGD)
    with pytest.raises(ConfigurationError, match=r"with SolonConfig\(referee=False\); set SolonConfig\(referee=True\)"):
        SolonStrategy(refereed(referee=False, num_nodes=7), SGD, referee=["judge"])


# ---- on their own nodes --------------------------------------------------------------------------------------

JUDGE, DEPUTY = 6, 7


class Court(InProcessGrid):
    """Five nodes of a group, and two trusted ones with names and keys, which behave as `answers` says."""

    def __init__(
        self,
        liars: dict[int, str],
        answers: Answers | None = None,
        names: dict[int, str] | None = None,
        silent_nodes: Iterable[int] = (),
        lies_in: Callable[[int, int], bool] = lambda server_round, node: server_round >= 2,
        client: Any = REMEMBERING,
    ) -> None:
        def ask(message: Message, context: Context, call_next: Any) -> Message:
            if context.node_id != JUDGE or answers is None:
                return call_next(message, context)  # type: ignore[no-any-return]
            return answers(message, lambda: call_next(message, context))  # type: ignore[return-value]

        mods = [
            liars_mod(liars, lies_in),
            silent(set(silent_nodes)),
            ask,
        ]
        self.names = {JUDGE: "judge", DEPUTY: "deputy"} if names is None else names
        super().__init__(client.client_app(mods), 5 + len(self.names))
        self.asked: list[tuple[int, int]] = []  # round, node

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=i, name=self.names.get(i, ""), public_key=bytes([i]) * 40) for i in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        self.asked += [(int(str(m.metadata.group_id)), m.metadata.dst_node_id) for m in kept]
        return super().push_messages(kept)

    def asked_of(self, *nodes: int) -> list[tuple[int, int]]:
        return [(server_round, node) for server_round, node in self.asked if node in nodes]


def test_a_trusted_node_has_no_place_and_is_asked_once_before_the_run_and_when_needed() -> None:
    grid = Court({1: "reverse", 3: "one bit"})
    model, reports, strategy = play(refereed(), grid=grid, referee=["judge", "deputy"])
    assert torch.equal(model, honest_model())
    assert grid.asked_of(JUDGE, DEPUTY) == [(1, JUDGE), (1, DEPUTY), (2, JUDGE)]
    assert all({JUDGE, DEPUTY}.isdisjoint(group.nodes) for report in reports for group in report.groups)
    assert quarantined(strategy) == named(reports) == {1, 3}
    assert questions(reports) == 1
    assert reports[1].referee_reports[0].seconds > 0
    assert {JUDGE, DEPUTY}.isdisjoint(record.node_id for record in strategy.ledger.values())


def test_it_may_be_named_by_its_key() -> None:
    names = {JUDGE: "", DEPUTY: ""}
    grid = Court({1: "reverse"}, names=names)
    identity = identity_of(grid.get_nodes()[DEPUTY - 1])
    assert identity.startswith("key:")
    model, _, _ = play(refereed(), grid=grid, referee=identity)
    assert torch.equal(model, honest_model())
    assert [node for _, node in grid.asked_of(DEPUTY)] == 2 * [DEPUTY]


def silent_later(message: Message, call: Callable[[], Message]) -> Message | None:
    return call() if SolonTask.from_message(message).num_batches == 1 else None


def test_the_second_is_asked_when_the_first_is_silent() -> None:
    grid = Court({1: "reverse"}, silent_later)
    model, reports, _ = play(refereed(), grid=grid, referee=["judge", "deputy"], timeout=1.0)
    assert torch.equal(model, honest_model())
    assert grid.asked_of(JUDGE, DEPUTY) == [(1, JUDGE), (1, DEPUTY), (2, JUDGE), (2, DEPUTY)]
    assert reports[1].convicted_nodes == (1,)


@pytest.mark.parametrize("policy", ["exclude", "skip"])
def test_without_an_answer_the_group_fails_at_the_deadline_and_the_log_says_so(
    policy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    grid = Court({1: "reverse"}, silent_later)
    _, reports, strategy = play(refereed(on_group_failure=policy), grid=grid, referee="judge", rounds=3)
    assert [report.failed_groups for report in reports] == [(), (0,), (0,)]
    assert [report.stepped for report in reports] == [True, False, False]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "Group 0: the referee was asked (shares disagree) but has not answered." in errors
    assert not reports[1].referee_reports[0].answered
    assert quarantined(strategy) == named(reports) == set()


def test_an_audit_without_an_answer_leaves_the_result_as_it_is() -> None:
    grid = Court({}, silent_later)
    model, reports, _ = play(refereed(audit=1.0), grid=grid, referee="judge")
    assert torch.equal(model, honest_model())
    assert [report.referee_reports[0].answered for report in reports] == 4 * [False]


def test_a_silent_member_is_made_up_for_by_a_trusted_node() -> None:
    grid = Court({}, silent_nodes=[2])
    model, reports, _ = play(refereed(), grid=grid, referee="judge", timeout=1.0)
    assert torch.equal(model, honest_model())
    assert [report.referee_reports[0].reason for report in reports] == 4 * ["shares missing"]


def test_a_trusted_node_that_fails_ends_the_run() -> None:
    def failing(message: Message, call: Callable[[], Message]) -> Message:
        return call() if SolonTask.from_message(message).round < 3 else Message(Error(2, "boom"), reply_to=message)

    with pytest.raises(RefereeError, match="the referee's answer can't be used: error 2: boom") as raised:
        play(refereed(), grid=Court({1: "reverse"}, failing, lies_in=lambda number, node: number == 3), referee="judge")
    assert torch.equal(vector_of(raised.value.result.arrays), honest_model(2))


def test_a_name_that_two_nodes_have_is_no_name_to_trust() -> None:
    with pytest.raises(RefereeError, match=r"registered as 'judge', with the identities key:\w+, key:\w+; name"):
        play(refereed(), grid=Court({}, names={JUDGE: "judge", DEPUTY: "judge"}), referee="judge")


@pytest.mark.parametrize("silent_nodes", [(), (JUDGE,)])
def test_one_that_is_not_there_is_an_error_before_the_first_round(silent_nodes: tuple[int, ...]) -> None:
    name = "judge" if silent_nodes else "arbiter"
    grid = Court({}, silent_nodes=silent_nodes)
    what = "answered within the timeout" if silent_nodes else "is connected"
    with pytest.raises(RefereeError, match=rf"none of \['{name}'\] {what}; start one, or correct"):
        play(refereed(), grid=grid, referee=name)
    assert len(grid.asked) == len(silent_nodes)


def wide() -> nn.Module:
    """A model with so many numbers that patches are smaller than it."""
    return nn.Sequential(nn.Linear(7, 500), nn.Tanh(), nn.Linear(500, 1))


@pytest.mark.slow
def test_with_patches_a_trusted_node_is_sent_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked in rounds 2, 3 and 5, and before round 5 it has lost everything that it had."""
    stores: dict[int, ModelStore] = {}
    monkeypatch.setattr(keeping, "store_of", lambda context: stores.setdefault(context.node_id, ModelStore()))

    class Forgetful(Court):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            kept = list(messages)
            asked_now = {(m.metadata.group_id, m.metadata.dst_node_id) for m in kept}
            if ("5", JUDGE) in asked_now and (5, JUDGE) not in self.asked:
                del stores[JUDGE]
            return super().push_messages(kept)

    lies_in = {(2, 1), (3, 2), (5, 3)}
    client = Remembering(wide)
    grid = Forgetful(dict.fromkeys((1, 2, 3), "reverse"), lies_in=lambda *when: when in lies_in, client=client)
    config = refereed(byzantine=3, compression=2, downlink="delta")
    model, reports, strategy = play(config, grid=grid, referee="judge", rounds=6, model=initial_model(wide))
    assert torch.equal(model, play(config, rounds=6, client=client, model=initial_model(wide))[0])
    assert quarantined(strategy) == {1, 2, 3}
    assert [report.lacking_nodes for report in reports] == [(), (), (), (), (JUDGE,), ()]
    assert grid.asked_of(JUDGE)[1:] == [(2, JUDGE), (3, JUDGE), (5, JUDGE), (5, JUDGE)]


def test_flowers_own_start_can_ask_no_trusted_node() -> None:
    strategy = SolonStrategy(refereed(), SGD, referee="judge")
    with pytest.raises(ConfigurationError, match=r"which Flower's own start does not allow; use SolonStrategy\.start"):
        Strategy.start(strategy, Court({}), record_of(initial_model()), num_rounds=1)
