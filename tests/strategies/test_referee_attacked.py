"""Attacks that were found by an attacker: each once accused honest nodes, let liars through or ended a run."""

import json
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from torch import Tensor, nn

from solon_fl.clients import keeping
from solon_fl.clients.keeping import ModelStore
from solon_fl.parts import MODEL, Kept
from solon_fl.strategies.presence import identity_of
from solon_fl.strategies.roster import Roster
from solon_fl.task import SHARE, TASK, UNREACHED, SolonTask
from solon_fl.wire import to_array
from tests.strategies import lies
from tests.strategies.lies import named, play, quarantined, questions, refereed, vector_of_group
from tests.strategies.test_trusted import DEPUTY, JUDGE, Court, honest_model, silent_later, wide
from tests.support import Remembering, initial_model

NOBODY: set[int] = set()


class OtherMake(Remembering):
    """A referee whose gradient is one ulp off in some entries."""

    def __init__(self, entries: Iterable[int], make_model: Callable[[], nn.Module] = lambda: nn.Linear(7, 1)) -> None:
        super().__init__(make_model)
        self.entries = list(entries)

    def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        gradient = super().gradient(arrays, task, context, config)
        gradient[self.entries] = torch.nextafter(gradient[self.entries], torch.tensor(math.inf))
        return gradient


# ---- a share that arrives while a question is open -----------------------------------------------------------


class InTurn(Court):
    """Node 5 replies in round 1 once the judge was asked, and only then does the judge answer, if at all."""

    judge_answers = True

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        node_of = {i: self._waiting[i].metadata.dst_node_id for i in message_ids if i in self._waiting}
        asked = (1, JUDGE) in self.asked[1:]  # the first question only checks that it is there
        first_round = all(server_round == 1 for server_round, _ in self.asked)
        held = {5} - ({5} if asked else set()) if first_round else set[int]()
        if asked and first_round and (5 in node_of.values() or not self.judge_answers):
            held.add(JUDGE)
        return super().pull_messages([i for i, node in node_of.items() if node not in held])


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("code", ["exact", "fourier"])
def test_a_share_that_comes_while_the_referee_computes_is_no_offence(code: Any, answered: bool) -> None:
    grid = InTurn({})
    grid.judge_answers = answered
    config = refereed(code=code, compression=2, stragglers=1, audit=1.0)
    model, reports, strategy = play(config, grid=grid, referee="judge", rounds=1, timeout=0.2)
    group = reports[0].groups[0]
    assert group.referee is not None
    assert (group.referee.reason, group.referee.answered) == ("audit", answered)
    assert group.silent_nodes == ()  # the share did arrive
    assert group.malformed_nodes == {}
    assert named(reports) == quarantined(strategy) == NOBODY
    assert torch.equal(model, play(config, rounds=1)[0]) or code == "fourier"


# ---- shares that are all zeros -------------------------------------------------------------------------------


class Dead(nn.Module):
    """The last of its three chunks, weight 7 and the bias, has a gradient of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 7).view(1, 7))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight * torch.tensor([1, 1, 1, 1, 1, 1, 0.0])).T + 0 * self.bias


@pytest.mark.parametrize(("verification", "liars"), [("algebra", (1, 5)), ("digest", (1, 2))])
def test_who_honestly_sends_zeros_tells_that_the_referee_is_of_its_make(
    verification: Any, liars: tuple[int, int]
) -> None:
    client, config = Remembering(Dead), refereed(verification=verification)
    options: Any = {"client": client, "model": initial_model(Dead), "rounds": 3}
    model, reports, strategy = play(config, dict.fromkeys(liars, "one bit"), **options)
    assert quarantined(strategy) == named(reports) == set(liars)
    assert questions(reports) == 1
    assert torch.equal(model, play(config, **{**options, "model": initial_model(Dead)})[0])


# ---- a gradient that is not finite ---------------------------------------------------------------------------


class Diverging(Remembering):
    """The gradient is not finite on any node in round 2."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        gradient = super().gradient(arrays, task, context, config)
        if task.round == 2:
            gradient[5] = self.value
        return gradient


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("code", ["exact", "fourier"])
def test_a_gradient_that_diverges_in_an_audited_round_is_told_and_the_run_goes_on(code: Any, value: float) -> None:
    _, reports, strategy = play(refereed(code=code, audit=1.0), client=Diverging(value), rounds=3)
    assert [report.groups[0].status for report in reports] == ["clean", "diverged", "clean"]
    assert [report.stepped for report in reports] == [True, False, True]
    assert named(reports) == quarantined(strategy) == NOBODY


# ---- a referee with other hardware or software ---------------------------------------------------------------


def test_a_referee_that_is_off_in_one_chunk_convicts_nobody_in_an_audit() -> None:
    config = refereed(byzantine=1, audit=1.0)
    _, reports, strategy = play(config, referee=OtherMake([6, 7]))
    assert questions(reports) == 4
    assert named(reports) == quarantined(strategy) == NOBODY


def test_a_referee_that_is_off_in_one_chunk_convicts_no_honest_node_when_one_lies() -> None:
    model, reports, strategy = play(refereed(), {3: "reverse"}, referee=OtherMake([6, 7]))
    assert questions(reports) >= 1
    assert named(reports) | quarantined(strategy) <= {3}
    assert torch.allclose(model, honest_model(), rtol=1e-5)


def test_liars_who_fail_first_do_not_make_the_two_nodes_that_the_referee_is_like_speak_for_it() -> None:
    """Nodes 2 and 3 send the same as the referee. It has a different chunk of node 1, about which 4 and 5 then lie."""

    def lie(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        if TASK not in message.content or context.node_id not in (4, 5):
            return reply
        task = SolonTask.from_message(message)
        if task.round == 1:
            raise MemoryError("oom")
        vector = vector_of_group(task, message, lambda: call_next(message, context))
        vector[0:3] = 100.0
        reply.content[SHARE] = ArrayRecord({SHARE: to_array(task.make_code().encode(vector, task.slot))})
        return reply

    model, reports, strategy = play(refereed(), mods=[lie], referee=OtherMake([0, 1]))
    assert [report.referee_reports[0].reason for report in reports] == ["shares missing", *3 * ["shares disagree"]]
    assert (named(reports) | quarantined(strategy)) <= {4, 5}
    assert torch.allclose(model, honest_model(), rtol=1e-5)


class Endless(nn.Module):
    """Has a buffer that becomes infinite, like an attention mask."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 1)
        self.register_buffer("mask", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("mask").copy_(torch.tensor([0.0, -math.inf, -math.inf]))
        out: Tensor = self.linear(x)
        return out


@pytest.mark.parametrize("compression", [1, 3])
def test_where_a_buffer_is_infinite_a_referee_that_is_off_by_an_ulp_convicts_nobody(compression: int) -> None:
    config = refereed(compression=compression, audit=1.0)
    referee = OtherMake(range(3, 11), Endless)
    _, reports, strategy = play(
        config, client=Remembering(Endless), model=initial_model(Endless), referee=referee, rounds=2
    )
    assert questions(reports) == 2
    assert [report.groups[0].status for report in reports] == 2 * ["clean"]
    assert named(reports) == quarantined(strategy) == NOBODY


class Noisy(Remembering):
    """A referee whose gradient is off by this fraction of its norm, in all directions."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def gradient(self, arrays: ArrayRecord, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        gradient = super().gradient(arrays, task, context, config)
        noise = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(task.round))
        return gradient.add(noise, alpha=self.size * float(gradient.norm() / noise.norm()))


@pytest.mark.parametrize("size", [6e-6, 1e-5])
def test_with_the_fourier_code_a_referee_with_more_noise_than_rtol_convicts_nobody(size: float) -> None:
    _, reports, strategy = play(refereed(code="fourier", audit=1.0), referee=Noisy(size))
    assert questions(reports) == 4
    assert named(reports) == quarantined(strategy) == NOBODY


def test_more_than_s_nodes_that_are_near_such_a_referee_do_not_speak_for_it_in_later_rounds() -> None:
    config = refereed(code="fourier", byzantine=1, stragglers=3, audit=1.0)
    _, reports, strategy = play(config, referee=Noisy(6e-6))
    assert [report.referee_reports[0].contradicted for report in reports] == 4 * [True]
    assert named(reports) == quarantined(strategy) == NOBODY


# ---- another node with a trusted node's name -----------------------------------------------------------------


class Takeover(Court):
    """From round 3 on, the judge is away, and a node that was not there before is registered as `name`."""

    name = "judge"
    taken = False

    def get_nodes(self) -> list[NodeInfo]:
        nodes = super().get_nodes()
        if not (self.taken or any(server_round >= 2 for server_round, _ in self.asked)):
            return [node for node in nodes if node.node_id != DEPUTY]
        impostor = NodeInfo(node_id=DEPUTY, name=self.name, public_key=nodes[DEPUTY - 1].public_key)
        return [*nodes[: JUDGE - 1], impostor]


@pytest.mark.parametrize("is_identity", [False, True])
def test_who_takes_over_the_name_of_a_trusted_node_is_not_trusted(
    is_identity: bool, caplog: pytest.LogCaptureFixture
) -> None:
    grid = Takeover({1: "reverse"}, lies_in=lambda server_round, node: server_round >= 4)
    if is_identity:
        grid.name = identity_of(grid.get_nodes()[JUDGE - 1])
    model, reports, strategy = play(refereed(), grid=grid, referee=grid.name)
    assert grid.asked_of(JUDGE, DEPUTY) == [(1, JUDGE)]
    assert [report.failed_groups for report in reports] == [(), (), (), (0,)]
    assert all(DEPUTY not in group.nodes for report in reports for group in report.groups)
    assert torch.equal(model, honest_model(3))
    assert named(reports) == quarantined(strategy) == NOBODY
    told = any("is not trusted: judge belonged to key:" in record.getMessage() for record in caplog.records)
    assert told != is_identity  # a node whose name looks like an identity is a node like any other


def test_two_nodes_of_which_one_is_registered_under_the_others_identity_are_told_apart() -> None:
    grid = Court({1: "reverse"})
    identity = identity_of(grid.get_nodes()[JUDGE - 1])
    grid.names[DEPUTY] = identity
    model, _, _ = play(refereed(), grid=grid, referee=identity)
    assert torch.equal(model, honest_model())
    assert [node for _, node in grid.asked_of(JUDGE)] == 2 * [JUDGE]


def test_a_checkpoint_keeps_who_was_trusted(caplog: pytest.LogCaptureFixture) -> None:
    grid = Takeover({})
    before = Roster(refereed(), trusted=["judge"])
    before.update(grid, 1.0, server_round=1)
    assert before.referees == [JUDGE]
    after = Roster(refereed(), trusted=["judge"])
    after.restore(json.loads(json.dumps(before.to_dict())))
    grid.taken = True
    after.update(grid, 0.1, server_round=2)
    assert after.referees == []
    assert after.places == ((1, 2, 3, 4, 5),)
    assert "is not trusted: judge belonged to key:" in caplog.text


# ---- questions that are not answered, or delayed -------------------------------------------------------------


class Part(nn.Module):
    """Has a parameter that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 1)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def hide(reply: Message, task: SolonTask, message: Message, call: lies.Call) -> Message:
    reply.content.pop(UNREACHED, None)
    return reply


def test_where_it_stays_unclear_which_parameters_have_gradients_the_group_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(lies.LIES, "hides", hide)
    client = Remembering(Part)
    grid = Court(dict.fromkeys((1, 2, 3), "hides"), silent_later, client=client)
    config = refereed(byzantine=3, compression=2)
    _, reports, strategy = play(config, grid=grid, referee="judge", model=initial_model(Part), rounds=2)
    assert reports[0].groups[0].unreached == ("unused",)
    assert [report.failed_groups for report in reports] == [(), (0,)]
    assert not reports[1].stepped
    assert reports[1].referee_reports[0].reason == "unclear which parameters have gradients"
    assert named(reports) == quarantined(strategy) == NOBODY


class Putting(Court):
    """In round 2, nodes' replies only become available after this many seconds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.delays: dict[int, float] = {}
        self.pushed: dict[str, tuple[float, int]] = {}
        self.when: dict[int, float] = {}  # when each node was first asked in round 2

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept, now = list(messages), time.monotonic()
        ids = list(super().push_messages(kept))
        for i, message in zip(ids, kept, strict=True):
            if message.metadata.group_id == "2":
                self.pushed[i] = now, message.metadata.dst_node_id
                self.when.setdefault(message.metadata.dst_node_id, now)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        now, nobody = time.monotonic(), (0.0, 0)
        waiting = {i: self.pushed.get(i, nobody) for i in message_ids}
        return super().pull_messages([i for i, (at, node) in waiting.items() if now >= at + self.delays.get(node, 0)])


def put_off(delays: dict[int, float], timeout: float, monkeypatch: pytest.MonkeyPatch) -> float:
    """Of nodes 1 to 4, these say that they lack the model, each once and after this delay. All four are else silent.

    Return after how many seconds the judge was asked. It answers, and the model is right.
    """
    stores: dict[int, ModelStore] = {}
    monkeypatch.setattr(keeping, "store_of", lambda context: stores.setdefault(context.node_id, ModelStore()))
    client, said = Remembering(wide), set[int]()

    def lacking(message: Message, context: Context, call_next: Any) -> Message:
        is_second = TASK in message.content and SolonTask.from_message(message).round == 2
        if not is_second or context.node_id > 4:
            return call_next(message, context)  # type: ignore[no-any-return]
        if context.node_id not in delays or context.node_id in said:
            return None  # type: ignore[return-value]  # a node that never answers
        said.add(context.node_id)
        return Message(RecordDict({MODEL: Kept(lacks=True).to_record()}), reply_to=message)

    class Lacking:
        def client_app(self, mods: Any) -> Any:
            app = client.client_app(mods)
            return lambda message, context: lacking(message, context, app)

    grid = Putting({}, client=Lacking())
    grid.delays = delays
    config = refereed(byzantine=4, compression=1, downlink="delta")
    options: Any = {"model": initial_model(wide), "rounds": 2}
    model, reports, _ = play(config, grid=grid, referee="judge", timeout=timeout, **options)
    assert reports[1].lacking_nodes == tuple(delays)
    assert reports[1].referee_reports[0].answered
    assert torch.equal(model, play(config, client=client, **{**options, "model": initial_model(wide)})[0])
    return grid.when[JUDGE] - grid.when[5]


def test_those_who_say_one_after_another_that_they_lack_the_model_do_not_put_the_question_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The judge is asked at half of the timeout, not half a timeout after the last of them."""
    seconds = put_off({1: 0.2, 2: 0.35}, 1.0, monkeypatch)
    assert seconds < 0.7


def test_who_says_once_that_it_lacks_the_model_does_not_put_the_question_off(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = put_off({1: 0.3}, 1.0, monkeypatch)
    assert seconds < 0.7  # and not 0.3 + half of the timeout
