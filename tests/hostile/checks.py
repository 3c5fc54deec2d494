"""Checks that hold whatever a node sends. Hypothesis runs them in the tests, and atheris a million times in `fuzz`."""

import logging
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from solon_fl import FourierCode, RealDecoder, SolonConfig
from solon_fl.baselines import DracoStrategy, SignumStrategy
from solon_fl.baselines.vectors import VectorRound
from solon_fl.coding.digests import share_digests
from solon_fl.coding.sections import Sections
from solon_fl.config import Verification
from solon_fl.errors import InvalidReplyError
from solon_fl.simulations import InProcessGrid
from solon_fl.strategies import SolonStrategy, calibrate
from solon_fl.strategies.digest_group import DigestGroupRound
from solon_fl.strategies.exchange import exchange
from solon_fl.strategies.group import GroupRound
from solon_fl.strategies.loop import RoundStrategy
from solon_fl.strategies.presence import connected_nodes
from solon_fl.strategies.replies import median_metrics, read_share, read_unreached
from solon_fl.strategies.reports import GroupReport
from solon_fl.strategies.roster import Roster
from solon_fl.strategies.silos import learn_silos
from solon_fl.task import digest_key
from solon_fl.wire import npy_header, to_array
from tests.hostile.replies import Source, hostile_reply, one_in, pick, question_to, size_of
from tests.support import SGD, Regression, initial_model, record_of

CODE = FourierCode(group_size=7, compression=3)
DECODER = RealDecoder(CODE, byzantine=2)
DIM = 20
LENGTH = CODE.share_dim(DIM)
SECTIONS = Sections.whole(LENGTH)
NODES = (70, 71, 72, 73, 74, 75, 76)
GRADIENT = torch.linspace(-1, 2, DIM)
SHARES = tuple(CODE.encode(GRADIENT, slot) for slot in range(7))
HONEST = tuple(RecordDict({"share": ArrayRecord({"share": to_array(share)})}) for share in SHARES)
QUESTIONS = tuple(question_to(node) for node in NODES)
HONEST_REPLIES = tuple(Message(content, reply_to=question) for content, question in zip(HONEST, QUESTIONS, strict=True))
KEY = b"a round"
VOTE = ConfigRecord({"digests": share_digests(CODE, GRADIENT, KEY)})
WITH_DIGESTS = tuple(RecordDict({**content, "digests": VOTE}) for content in HONEST)
REPLIES_WITH_DIGESTS = tuple(Message(c, reply_to=question) for c, question in zip(WITH_DIGESTS, QUESTIONS, strict=True))
MODEL = record_of(initial_model())


class OneLiners(logging.Handler):
    """Fails if a node's text could flood the log, break its lines, or control a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        assert message.isprintable() or record.levelno < logging.WARNING, ascii(message)
        assert len(message) < 2000, ascii(message[:300])
        assert message.isascii() or message.encode(), "the log can't be written as UTF-8"


@contextmanager
def only_one_liners() -> Iterator[None]:
    """Check the log's messages, and keep them from the terminal."""
    logger, handler = logging.getLogger("flwr"), OneLiners()
    handlers, propagates = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagates


@contextmanager
def allocating_at_most(num_bytes: int) -> Iterator[None]:
    """Fail if Python or numpy allocated more than this on top at any moment."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= num_bytes, f"{peak} bytes were allocated; {num_bytes} are allowed"


def hostile_or_none(source: Source, question: Message, honest: RecordDict) -> Message | None:
    """Return a hostile reply, or None if Flower can't make one from the bytes: it would never reach the strategy."""
    try:
        return hostile_reply(source, question, honest)
    except Exception:
        return None


def check_group(source: Source) -> None:
    """One hostile reply, then honest ones: nothing raises, nothing large is allocated, and the gradient is right."""
    slot = source.whole(0, 6)
    reply = hostile_or_none(source, QUESTIONS[slot], HONEST[slot])
    if reply is None:
        return
    group = GroupRound(group=0, nodes=NODES, byzantine=2, decoder=DECODER, sections=SECTIONS, dtype=torch.float32)
    with allocating_at_most(100_000 + 4 * size_of(reply)):
        group.receive({slot: reply})
    share = group._shares.get(slot)
    if share is None:
        reason = group._malformed[NODES[slot]]
        assert reason
        assert reason.isprintable()
        assert len(reason) <= 300
        if reply.has_error():
            return
        try:
            read_share(reply, LENGTH, torch.float32)
        except InvalidReplyError:
            return
        raise AssertionError("a readable share was refused")
    assert_is_the_replys(share, reply)
    group.receive({slot: HONEST_REPLIES[slot]})
    assert group._shares[slot] is share, "the first reply counts"
    if torch.equal(share, SHARES[slot]):
        return
    for other in range(7):
        if other != slot:
            group.receive({other: HONEST_REPLIES[other]})
    gradient = group.decode(last=False)
    assert_is_right(gradient, group.report)
    assert {*group.report.corrupt_nodes, *group.report.malformed_nodes} <= {NODES[slot]}, group.report


def check_digests(source: Source) -> None:
    """The same for replies with digests, of which one or two are hostile, while other nodes may rest."""
    resting = set(range(source.whole(3, 7), 7))
    group = DigestGroupRound(
        group=0,
        nodes=NODES,
        byzantine=2,
        decoder=DECODER,
        sections=SECTIONS,
        dtype=torch.float32,
        resting=set(resting),
        digest_key=KEY,
        can_decode_by_algebra=True,
    )
    hostile = {source.whole(0, 6), source.whole(0, 6)}
    gradients: list[Tensor | None] = []
    for slot in (*group.asked, *sorted(resting)):
        if slot in resting:
            group.wake(late=True)
        reply = None
        if slot in hostile:
            reply = hostile_or_none(source, QUESTIONS[slot], WITH_DIGESTS[slot])
            if reply is None:
                continue
            with allocating_at_most(100_000 + 4 * size_of(reply)):
                group.receive({slot: reply})
        group.receive({slot: REPLIES_WITH_DIGESTS[slot]})
        votes = list(group._votes.values())
        assert all(type(vote) is bytes and len(vote) == 7 * 32 for vote in votes)
        assert group._shares.keys() <= group._votes.keys()
        gradients.append(group.decode(last=False))
    gradients.append(group.decode(last=True))
    found = [gradient for gradient in gradients if gradient is not None]
    assert len(found) == 1, group.report
    assert_is_right(found[0], group.report)
    named = {*group.report.corrupt_nodes, *group.report.malformed_nodes, *group.report.different_bits}
    assert named <= {NODES[slot] for slot in hostile}, group.report


def assert_is_right(gradient: Tensor | None, report: GroupReport) -> None:
    assert gradient is not None, report
    error = float((gradient[:DIM] - GRADIENT).norm() / GRADIENT.norm())
    assert error <= max(1e-5, report.error_bound), (error, report)


def assert_is_the_replys(share: Tensor, reply: Message) -> None:
    """An accepted share is what was asked for, and uses the reply's own bytes."""
    assert share.shape == (LENGTH,)
    assert share.dtype == torch.float32
    data = reply.content.array_records["share"]["share"].data
    header = npy_header((LENGTH,), np.dtype(np.float32))
    assert len(data) == len(header) + 4 * LENGTH
    assert data.startswith(header)
    assert share.data_ptr() == np.frombuffer(data, np.uint8).ctypes.data + len(header)


# ---- whole strategies ----------------------------------------------------------------------------------------


def check_strategy(source: Source) -> None:
    """One to five hostile replies in a round of 14 nodes, any of them sent twice or to another message, do no harm."""
    verification: Verification = "digest" if one_in(source, 2) else "algebra"
    config = SolonConfig(num_nodes=14, byzantine=2, compression=3, seed=1, group_size=7, verification=verification)
    strategy = SolonStrategy(config, SGD)
    questions, honest = open_round(strategy, 14)
    dim, code = sum(array.numpy().size for array in MODEL.values()), strategy.config.make_code()
    gradient = torch.linspace(0, 1, dim)
    contents = [
        RecordDict({"share": ArrayRecord({"share": to_array(code.encode(gradient, slot % 7))})}) for slot in range(14)
    ]
    if verification == "digest":
        for slot, content in enumerate(contents):
            votes = share_digests(code, gradient, digest_key(1, 2, slot // 7))
            content["digests"] = ConfigRecord({"digests": votes})
    finish_round(strategy, source, questions, contents, honest)


def check_draco(source: Source) -> None:
    """Replies to both of Draco's codes."""
    code = pick(source, ("repetition", "cyclic"))
    strategy = DracoStrategy(6, 1, SGD, code="repetition" if code == "repetition" else "cyclic")
    questions, honest = open_round(strategy, 6)
    share = torch.ones(8) if code == "repetition" else torch.ones(2, 8)
    contents = [RecordDict({"share": ArrayRecord({"share": to_array(share)})}) for _ in range(6)]
    finish_round(strategy, source, questions, contents, honest)


def check_signum(source: Source) -> None:
    """Replies to Signum, with and without buffers."""
    buffers = ("bias",) if one_in(source, 2) else ()
    strategy = SignumStrategy(5, SGD, buffers=buffers)
    questions, honest = open_round(strategy, 5)
    arrays = {"signs": to_array(torch.tensor([170], dtype=torch.uint8))}
    if buffers:
        arrays["buffers"] = to_array(torch.ones(1))
    contents = [RecordDict({"signs": ArrayRecord(dict(arrays))}) for _ in range(5)]
    finish_round(strategy, source, questions, contents, honest)


def open_round(strategy: RoundStrategy[Any], num_nodes: int) -> tuple[list[Message], list[int]]:
    """Return a round's messages, and the numbers of the honest nodes: at first, these are all nodes."""
    grid = InProcessGrid(NO_APP, num_nodes)
    messages = list(strategy.configure_train(2, MODEL, ConfigRecord(), grid))
    for number, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = f"question-{number}"
    return messages, list(range(num_nodes))


def finish_round(
    strategy: RoundStrategy[Any],
    source: Source,
    questions: list[Message],
    contents: list[RecordDict],
    honest: list[int],
) -> None:
    """Make some nodes hostile, some of them twice, and aggregate."""
    replies: list[Message] = []
    for _ in range(source.whole(1, 5)):
        number = pick(source, honest)
        reply = hostile_or_none(source, questions[number], contents[number])
        if reply is not None:
            replies.append(reply)
    replies += [Message(contents[i], reply_to=questions[i]) for i in honest if not one_in(source, 10)]
    if one_in(source, 5):
        replies.reverse()
    assert strategy._open is not None
    played = strategy._open._round
    arrays, metrics = strategy.aggregate_train(2, replies)
    assert metrics is not None
    assert arrays is None or list(arrays) == list(MODEL)
    assert strategy._open is None
    if isinstance(played, VectorRound):
        assert len(played._sent) == 0


# ---- other questions to nodes --------------------------------------------------------------------------------


def check_metrics(source: Source) -> None:
    """Metrics of a few nodes: the result is finite, and within the values of the honest nodes, which are the majority.

    The names of parameters without a gradient are also read from the hostile replies.
    """
    honest_values = [float(source.whole(0, 10)) for _ in range(3)]
    replies = [
        Message(RecordDict({"metrics": MetricRecord({"accuracy": value})}), reply_to=QUESTIONS[i])
        for i, value in enumerate(honest_values)
    ]
    for node in (3, 4):
        reply = hostile_or_none(source, QUESTIONS[node], RecordDict({"metrics": MetricRecord({"accuracy": 1e9})}))
        if reply is not None:
            replies.append(reply)
    with allocating_at_most(100_000 + 4 * sum(size_of(reply) for reply in replies)):
        assert all(isinstance(name, str) for reply in replies for name in read_unreached(reply))
        medians = median_metrics(replies, num_nodes=5)
    assert medians is not None
    assert list(medians) == ["accuracy"]
    value = medians["accuracy"]
    assert isinstance(value, float)
    assert min(honest_values) <= value <= max(honest_values)


def check_calibration(source: Source) -> None:
    """Two of seven nodes send anything: rtol stays in the range of the five honest ones, and only the two are named."""

    def answer(question: Message) -> Message | None:
        if question.metadata.dst_node_id > 2:
            return Message(HONEST[0], reply_to=question)
        return hostile_or_none(source, question, HONEST[0])

    model = ArrayRecord({"weight": to_array(torch.zeros(DIM))})
    grid = ScriptedGrid(answer, num_nodes=7)
    found = calibrate(grid, model, SolonConfig(num_nodes=7, byzantine=2, compression=3), timeout=0.0)
    assert (found.noise, found.rtol) == (0.0, 1e-6)
    assert {*found.outliers, *found.malformed, *found.silent} <= {1, 2}
    assert str(found).replace("\n", "").isprintable()
    assert len(str(found)) < 2000


def check_silo(source: Source) -> None:
    """The answer to "which silo are you in?" is a text of 1 to 200 characters, or none."""
    roster = Roster(SolonConfig(num_nodes=7, byzantine=2, compression=3, grouping="silo"))
    grid = ScriptedGrid(
        lambda question: hostile_or_none(source, question, RecordDict({"silo": ConfigRecord({"name": "hospital"})}))
    )
    nodes = roster._meet(connected_nodes(grid), strangers=False)
    learn_silos(grid, nodes, timeout=0.0, label=lambda record: record.label)
    for record in nodes:
        assert record.silo is None or (isinstance(record.silo, str) and 0 < len(record.silo) <= 200)


def check_exchange(source: Source) -> None:
    """One reply claims to answer something else, or makes the Grid raise. The other node's reply still arrives."""

    def answer(question: Message) -> Message:
        if question.metadata.dst_node_id == 2:
            return Message(HONEST[0], reply_to=question)
        reply = hostile_reply(source, question, HONEST[0])
        if one_in(source, 3):
            claimed = pick(source, ("", "question-2", "question-70"))
            reply.metadata.__dict__["_reply_to_message_id"] = claimed
        return reply

    grid = ScriptedGrid(answer, num_nodes=2)
    received: dict[int, Message] = {}

    def receive(batch: list[tuple[int, Message]]) -> bool:
        assert not set(received) & {key for key, _ in batch}
        received.update(batch)
        return False

    exchange(grid, {1: question_to(1), 2: question_to(2)}, 0.0, receive)
    assert received[2].content is HONEST[0]
    assert set(received) <= {1, 2}


NO_APP = Regression().client_app()


class ScriptedGrid(InProcessGrid):
    """Nodes that send what they are told to send."""

    def __init__(self, answer: Callable[[Message], Message | None], num_nodes: int = 1) -> None:
        super().__init__(NO_APP, num_nodes)
        self._answer = answer

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = [self._answer(self._waiting.pop(i)) for i in list(message_ids) if i in self._waiting]
        return [reply for reply in replies if reply is not None]


CHECKS = (
    *(check_group, check_digests, check_metrics, check_silo, check_exchange, check_calibration),
    *(check_draco, check_signum, check_strategy),
)
SLOW = (check_calibration, check_draco, check_signum, check_strategy)  # milliseconds each, for a whole round
