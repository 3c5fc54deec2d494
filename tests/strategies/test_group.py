"""One group of seven nodes (s = 2, k = 3): its outcome is certain once five shares agree."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from solon_fl import FourierCode, RealDecoder
from solon_fl.coding.digests import share_digests
from solon_fl.coding.real.locating import parity_of
from solon_fl.coding.real.projection import Memory
from solon_fl.coding.sections import Sections
from solon_fl.simulations.run._compat import become_server
from solon_fl.strategies.digest_group import DigestGroupRound
from solon_fl.strategies.group import GroupRound
from solon_fl.wire import to_array

CODE = FourierCode(group_size=7, compression=3)
DECODER = RealDecoder(CODE, byzantine=2)
GRADIENT = torch.linspace(-1, 2, 20)
WHOLE = Sections.whole(7)
PADDED = torch.nn.functional.pad(GRADIENT, (0, 1))
NODES = (70, 71, 72, 73, 74, 75, 76)


class Keeping(GroupRound):
    """A group that keeps the gradient that `decode` returns."""

    gradient: Tensor | None = None

    def receive_one(self, slot: int, reply: Message) -> None:
        self.receive({slot: reply})

    def decode(self, *, last: bool) -> Tensor | None:
        gradient = super().decode(last=last)
        self.gradient = self.gradient if gradient is None else gradient
        return gradient


class KeepingByDigest(Keeping, DigestGroupRound):
    pass


def new_round(decoder: RealDecoder = DECODER, sections: Sections = WHOLE, **changes: Any) -> Keeping:
    return Keeping(
        group=1, nodes=NODES, byzantine=2, decoder=decoder, sections=sections, dtype=torch.float32, **changes
    )


def reply(content: RecordDict | Error) -> Message:
    become_server()
    question = Message(RecordDict(), 70, MessageType.TRAIN)
    return Message(content, reply_to=question)


def reply_with(share: Tensor | Array) -> Message:
    array = to_array(share) if isinstance(share, Tensor) else share
    return reply(RecordDict({"share": ArrayRecord({"share": array})}))


def honest(slot: int) -> Message:
    return reply_with(CODE.encode(GRADIENT, slot))


def test_a_group_closes_when_k_plus_s_shares_agree_and_not_before() -> None:
    group = new_round()
    for slot in (6, 0, 3, 5):
        group.receive_one(slot, honest(slot))
        group.decode(last=False)
        assert not group.closed
    group.receive_one(1, honest(1))
    group.decode(last=False)
    assert group.report is not None
    assert group.report.status == "clean"
    assert group.report.silent_nodes == (72, 74)
    assert group.gradient is not None
    torch.testing.assert_close(group.gradient, PADDED, rtol=1e-5, atol=1e-6)


def test_who_made_others_be_asked_is_reported_and_not_who_was_woken() -> None:
    group = new_round(resting={5, 6})
    for slot in (1, 2, 3):
        group.receive_one(slot, honest(slot))
    group.receive_one(4, reply_with(torch.full((7,), 50.0)))
    group.decode(last=False)
    assert group.wake(late=False) == []
    assert group.wake(late=True) == [5, 6]
    group.receive_one(0, honest(0))  # it was silent until the others were woken
    group.receive_one(5, honest(5))
    group.decode(last=False)
    assert group.report is not None
    assert group.report.corrupt_nodes == (74,)
    assert group.report.silent_nodes == (76,)
    assert group.report.escalated
    assert group.report.escalated_by == (70, 74)


def test_a_lie_among_the_first_five_keeps_the_group_open_until_five_agree() -> None:
    group = new_round()
    group.receive_one(2, reply_with(torch.full((7,), 50.0)))
    for slot in (0, 1, 3, 4):
        group.receive_one(slot, honest(slot))
        group.decode(last=False)
        assert not group.closed
    group.receive_one(5, honest(5))
    group.decode(last=False)
    assert group.report is not None
    assert group.report.corrupt_nodes == (72,)
    assert group.report.silent_nodes == (76,)


def test_forged_agreement_of_k_plus_s_minus_one_shares_is_not_enough() -> None:
    """If agreement of four were enough, two liars and two honest nodes could agree on another gradient."""
    group = new_round()
    lie = GRADIENT + torch.randn(20, generator=torch.Generator().manual_seed(0))
    # Another gradient that agrees with the true one at slots 0 and 1.
    null = torch.linalg.svd(torch.from_numpy(CODE.generator[[0, 1]]))[2][2]
    lie = GRADIENT + torch.outer(torch.ones(7), null).reshape(-1)[:20].float()
    for slot in (0, 1):
        group.receive_one(slot, honest(slot))
    for slot in (2, 3):
        group.receive_one(slot, reply_with(CODE.encode(lie, slot)))
    group.decode(last=False)
    assert not group.closed
    for slot in (4, 5, 6):
        group.receive_one(slot, honest(slot))
    group.decode(last=False)
    assert group.report is not None
    assert group.report.corrupt_nodes == (72, 73)


def test_at_the_deadline_what_is_there_decides() -> None:
    group = new_round()
    for slot in (0, 1, 2, 3, 6):
        group.receive_one(slot, honest(slot))
    group.decode(last=True)
    assert group.report is not None
    assert group.report.status == "clean"
    assert group.report.silent_nodes == (74, 75)


def test_at_the_deadline_fewer_than_k_plus_s_shares_that_agree_are_not_trusted() -> None:
    """Four honest shares would be enough without liars (k = 3), but two of the four may have lied in unison."""
    for there in ((0,), (0, 1, 2), (0, 1, 2, 3)):
        group = new_round()
        for slot in there:
            group.receive_one(slot, honest(slot))
        group.decode(last=True)
        assert group.report is not None
        assert group.report.status == "too-few-shares"
        assert group.gradient is None
        assert group.report.error_bound == math.inf


BAD_REPLIES = {
    "error": lambda: reply(Error(code=2, reason="boom")),
    "empty": lambda: reply(RecordDict()),
    "metrics-named-share": lambda: reply(RecordDict({"share": MetricRecord({"share": 1})})),
    "other-name": lambda: reply(RecordDict({"share": ArrayRecord({"x": to_array(torch.zeros(7))})})),
    "two-arrays": lambda: reply(
        RecordDict({"share": ArrayRecord({"share": to_array(torch.zeros(7)), "x": to_array(torch.zeros(7))})})
    ),
    "long": lambda: reply_with(torch.zeros(14)),
    "double": lambda: reply_with(torch.zeros(7).double()),
    "nan": lambda: reply_with(torch.full((7,), math.nan)),
    "one-inf": lambda: reply_with(torch.tensor([0, 0, 0, math.inf, 0, 0, 0])),
    "forged": lambda: reply_with(Array(dtype="float32", shape=(7,), stype="numpy.ndarray", data=b"\x93NUMPY" * 20)),
}


@pytest.mark.parametrize("name", BAD_REPLIES)
def test_a_reply_that_is_no_share_is_an_erasure_with_a_reason(name: str) -> None:
    group = new_round()
    group.receive_one(4, BAD_REPLIES[name]())
    for slot in (0, 1, 2, 3, 5, 6):
        group.receive_one(slot, honest(slot))
    group.decode(last=False)
    assert group.report is not None
    assert list(group.report.malformed_nodes) == [74]
    assert group.report.malformed_nodes[74]
    assert group.report.corrupt_nodes == ()
    assert group.gradient is not None
    torch.testing.assert_close(group.gradient, PADDED, rtol=1e-5, atol=1e-6)


def test_what_a_node_says_reaches_the_log_as_one_short_line() -> None:
    group = new_round()
    group.receive_one(0, reply(Error(code=2, reason="bad\n[92mINFO: all is well\x1b[2J" + "x" * 10**6)))
    group.decode(last=True)
    assert group.report is not None
    reason = group.report.malformed_nodes[70]
    assert reason.isprintable()
    assert len(reason) <= 300


def test_the_first_reply_of_a_slot_counts() -> None:
    group = new_round()
    for slot in range(7):
        group.receive_one(slot, honest(slot))
        group.receive_one(slot, reply_with(torch.full((7,), 9.0)))  # all slots send the shares of another gradient
    group.decode(last=False)
    assert group.report is not None
    assert group.report.status == "clean"
    assert group.gradient is not None
    torch.testing.assert_close(group.gradient, PADDED, rtol=1e-5, atol=1e-6)
    group.receive_one(0, reply_with(torch.full((7,), 9.0)))  # after closing: ignored
    assert group.report.status == "clean"


def test_more_liars_than_s_fail_loudly() -> None:
    group = new_round()
    for slot in range(7):
        group.receive_one(slot, reply_with(torch.full((7,), float(slot**2))) if slot < 3 else honest(slot))
    group.decode(last=False)
    assert group.report is not None
    assert group.report.status == "undecodable"
    assert group.gradient is None


# ---- with resting nodes --------------------------------------------------------------------------------------------

KEY = b"round"
DIGESTS = share_digests(CODE, GRADIENT, KEY)


def resting_round(digests: bool = False) -> Keeping:
    """Slots 5 and 6 rest, or with digests 3 to 6."""
    if not digests:
        return new_round(resting={5, 6})
    return KeepingByDigest(
        group=1,
        nodes=NODES,
        byzantine=2,
        decoder=DECODER,
        sections=Sections.whole(7),
        dtype=torch.float32,
        resting={3, 4, 5, 6},
        digest_key=KEY,
        can_decode_by_algebra=True,
    )


def voting(slot: int, share: Tensor | None = None, digests: bytes = DIGESTS) -> Message:
    message = reply_with(CODE.encode(GRADIENT, slot) if share is None else share)
    message.content["digests"] = ConfigRecord({"digests": digests})
    return message


BAD: dict[str, Callable[[], Message]] = {
    "lie": lambda: voting(1, torch.full((7,), 9.0)),
    "malformed": lambda: voting(1, torch.zeros(3)),
    "not finite": lambda: voting(1, torch.full((7,), float("nan"))),
    "error": lambda: reply(Error(code=0, reason="no")),
}


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_who_rests_is_asked_once_when_the_last_reply_is_bad(bad: str, digests: bool) -> None:
    group = resting_round(digests)
    asked = group.asked
    for slot in asked:
        assert group.wake(late=False) == []
        group.receive_one(slot, BAD[bad]() if slot == 1 else voting(slot))
        group.receive_one(slot, voting(slot))  # a second reply is dropped
        group.decode(last=False)
        assert not group.closed
    woken = group.wake(late=False)
    assert woken == [slot for slot in range(7) if slot not in asked]
    assert group.wake(late=True) == []
    group.receive_one(woken[0], voting(woken[0]))  # k + s shares agree, or s + 1 votes are equal and k shares match
    group.decode(last=False)
    assert group.report is not None
    assert group.report.escalated
    assert {*group.report.corrupt_nodes, *group.report.malformed_nodes} == {71}
    assert group.gradient is not None
    torch.testing.assert_close(group.gradient, PADDED, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("digests", [False, True])
def test_who_rests_is_asked_late_if_somebody_is_silent_who_may_still_answer(digests: bool) -> None:
    group = resting_round(digests)
    for slot in group.asked[:-1]:
        group.receive_one(slot, voting(slot))
    group.decode(last=False)
    silent = group.asked[-1]
    assert group.wake(late=False) == []
    woken = group.wake(late=True)
    assert woken == list(range(silent + 1, 7))
    group.decode(last=False)
    assert not group.closed
    group.receive_one(silent, voting(silent))
    group.decode(last=False)
    assert group.report is not None
    assert group.report.status == "clean"
    assert group.wake(late=True) == []
    group.receive_one(woken[0], voting(woken[0], torch.zeros(7)))  # too late to do harm
    assert group.report.corrupt_nodes == ()
    assert group.report.nodes == NODES


@pytest.mark.parametrize("late", [False, True])
def test_nodes_that_are_denied_are_asked_when_the_others_at_rest_were_not_enough(late: bool) -> None:
    group = new_round(resting={4, 5, 6}, denied={6})
    for slot in range(3 if late else 4):
        group.receive_one(slot, honest(slot))
    group.decode(last=False)
    assert group.wake(late) == [4, 5]
    assert group.wake(False) == [], "they were just asked"
    group.let_rest(5)
    group.receive_one(4, reply(Error(0, "no")))
    group.decode(last=False)
    assert group.wake(late) == [5, 6]
    for slot in (5, 6):
        group.receive_one(slot, honest(slot))
    group.decode(last=True)
    assert group.report.decoded
    assert group.report.escalated_by == ((73,) if late else ())


def test_a_group_whose_time_is_up_before_its_resting_nodes_were_asked_fails_and_does_not_name_them() -> None:
    for digests in (False, True):
        group = resting_round(digests)
        group.receive_one(0, voting(0))
        group.decode(last=True)
        assert group.report is not None
        assert not group.report.decoded
        assert group.report.nodes == tuple(node for slot, node in enumerate(NODES) if slot < len(group.asked)) + (
            None,
        ) * len(group.resting)
        assert group.report.silent_nodes == NODES[1 : len(group.asked)]


def test_s_liars_with_equal_votes_and_shares_that_match_them_do_not_win() -> None:
    other = -GRADIENT
    votes = share_digests(CODE, other, KEY)
    group = resting_round(digests=True)
    group.receive_one(0, voting(0, CODE.encode(other, 0), votes))
    group.receive_one(1, voting(1, CODE.encode(other, 1), votes))
    group.receive_one(2, voting(2))
    group.decode(last=False)
    assert group.wake(late=False) == [3, 4, 5, 6]
    group.receive_one(3, voting(3))
    group.decode(last=False)
    assert not group.closed
    group.receive_one(4, voting(4))
    group.decode(last=False)
    assert group.report is not None
    assert group.report.corrupt_nodes == (70, 71)


# Closing early


class Counting(RealDecoder):
    """Records how many shares each decode was given."""

    def decode(self, shares: Any, **options: Any) -> Any:
        self.tried = [*getattr(self, "tried", []), len(shares)]
        return super().decode(shares, **options)


def test_only_new_shares_are_a_reason_to_decode_again() -> None:
    decoder = Counting(DECODER.code, byzantine=2)
    group = new_round(decoder)
    for slot in range(7):
        lie = reply_with(torch.full((7,), 9.0 + slot))
        group.receive_one(slot, lie if slot < 2 else honest(slot))
        for _ in range(3):
            group.decode(last=False)
    assert group.closed
    assert decoder.tried == [5, 6, 7]


def test_before_it_is_late_a_group_closes_only_if_the_result_is_precise() -> None:
    decoder = Counting(DECODER.code, byzantine=2)
    group = new_round(decoder, early_error=1e-12)
    for slot in range(6):
        group.receive_one(slot, honest(slot))
        assert group.decode(last=False) is None
    assert decoder.tried == [5, 6]
    assert group.wake(late=True) == []
    assert group.decode(last=False) is not None
    assert decoder.tried == [5, 6, 6]
    assert group.report.silent_nodes == (NODES[6],)


def test_when_all_have_answered_there_is_nothing_to_wait_for() -> None:
    group = new_round(early_error=1e-12)
    for slot in range(7):
        group.receive_one(slot, honest(slot))
    assert group.decode(last=False) is not None


def test_with_fewer_shares_than_can_be_precise_no_decode_is_tried_before_it_is_late() -> None:
    decoder = Counting(DECODER.code, byzantine=2)
    group = new_round(decoder, enough=6)
    for slot in range(5):
        group.receive_one(slot, honest(slot))
    assert group.decode(last=False) is None
    assert not hasattr(decoder, "tried")
    group.wake(late=True)
    assert group.decode(last=False) is not None


def test_nodes_at_rest_are_asked_if_the_others_agree_but_not_precisely() -> None:
    group = new_round(resting={5, 6}, early_error=1e-12)
    for slot in range(5):
        group.receive_one(slot, honest(slot))
    assert group.decode(last=False) is None
    assert group.wake(late=False) == [5, 6]
    for slot in (5, 6):
        group.receive_one(slot, honest(slot))
    assert group.decode(last=False) is not None
    assert group.report.escalated
    assert group.report.escalated_by == ()


@pytest.mark.parametrize(("s", "k"), [(1, 3), (2, 6), (5, 5), (5, 10)])
def test_lies_that_disagree_among_the_first_do_not_vanish_when_all_are_asked(s: int, k: int) -> None:
    """The tolerance does not grow with the number of shares: nodes that made the others compute are suspects."""
    code = FourierCode(group_size=2 * s + k, compression=k)
    decoder, rng = RealDecoder(code, byzantine=s), np.random.default_rng(s)
    gradient = torch.from_numpy(rng.normal(size=40 * k).astype(np.float32))
    shares = {slot: code.encode(gradient, slot) for slot in range(code.group_size)}
    noise = code.group_size**0.5 * decoder.rtol * float(np.median([float(share.norm()) for share in shares.values()]))
    disagreeing = 0
    for size in np.repeat([1.5, 2.5, 3.0, 3.5, 5.0], 12):
        first = np.sort(rng.choice(code.group_size, k + s, replace=False)).tolist()
        liar = int(rng.choice(first))
        parity = parity_of(code.generator[first])[:, first.index(liar)]
        direction = torch.from_numpy(rng.normal(size=40))
        lie = size * noise / float(np.linalg.norm(parity)) * direction / direction.norm()
        sent = shares | {liar: (shares[liar].double() + lie).float()}
        memory = Memory(torch.Generator().manual_seed(int(rng.integers(2**31))))
        early = decoder.decode({slot: sent[slot] for slot in first}, needed=k + s, memory=memory, last=False)
        full = decoder.decode(sent, needed=k + s, memory=memory)
        assert full.ok
        if not early.ok:
            disagreeing += 1
            assert full.corrupt_slots or full.suspect_slots
    assert disagreeing >= 12


# A small tensor, in which lies look like the noise of the other tensors

TENSORS = Sections.of([(300, "parameters"), (60, "parameters")], compression=3)
SMALL = slice(100, 120)  # its columns


def small_tensor_shares(liars: tuple[int, ...], noise: float = 0.0) -> dict[int, Tensor]:
    rng = torch.Generator().manual_seed(2)
    gradient = torch.randn(360, generator=rng)
    gradient[300:] *= 1e-9
    shares = {slot: CODE.encode(gradient, slot) for slot in range(7)}
    for slot, share in shares.items():
        share[SMALL] += (3e-8 if slot in liars else noise) * torch.randn(20, generator=rng)
    return shares


def test_lies_in_a_small_tensor_are_waited_out() -> None:
    group = new_round(sections=TENSORS, early_error=1e-3)
    shares = small_tensor_shares(liars=(0, 1))
    for slot in range(6):
        group.receive({slot: reply_with(shares[slot])})
        assert group.decode(last=False) is None
    group.receive({6: reply_with(shares[6])})
    group.decode(last=False)
    assert group.report.suspect_nodes == NODES[:2]
    assert group.gradient is not None
    assert float(group.gradient[300:].norm()) < 1e-7
    assert group.noise_only == set()


def test_a_tensor_of_noise_is_waited_for_once_in_a_run() -> None:
    noise_only: set[int] = set()
    shares = small_tensor_shares(liars=(), noise=1e-9)
    for rounds in range(2):
        group = new_round(sections=TENSORS, early_error=1e-3, noise_only=noise_only)
        for slot in range(7):
            group.receive({slot: reply_with(shares[slot])})
            group.decode(last=False)
            if group.closed:
                break
        assert (slot, group.report.status) == ((6, "clean") if rounds == 0 else (4, "clean"))
    assert noise_only == {1}


# Parameters that no loss depends on


def saying(slot: int, names: Any) -> Message:
    share = CODE.encode(GRADIENT, slot)
    records: dict[str, Any] = {"share": ArrayRecord({"share": to_array(share)})}
    if names is not None:
        records["unreached"] = ConfigRecord({"names": names}) if isinstance(names, list) else names
    return reply(RecordDict(records))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([["a", "b"]] * 5, ("a", "b")),
        ([["a"], ["a"], ["a"], None, None], ("a",)),  # one of three is honest
        ([["a"], ["a"], None, None, None], ()),
        ([["a"], ["a", "b"], ["b", "a"], ["b"], ["c"]], ("a", "b")),
        ([["a"] * 9, ["a"] * 9, None, None, None], ()),
        ([MetricRecord({"names": 1})] * 5, ()),
        ([[1, 2]] * 5, ()),
        ([ConfigRecord({"other": ["a"]})] * 5, ()),
    ],
)
def test_more_than_s_nodes_must_say_that_a_parameter_has_no_gradient(
    said: list[Any], expected: tuple[str, ...]
) -> None:
    group = new_round(parameters="abc")
    for slot, names in enumerate(said):
        group.receive({slot: saying(slot, names)})
    group.decode(last=True)
    assert group.report.unreached == expected


def test_what_nodes_say_of_parameters_that_do_not_exist_is_not_kept() -> None:
    group = new_round(parameters="a")
    for slot in range(5):
        group.receive({slot: saying(slot, ["a", *map(str, range(slot * 1000))])})
        group.decode(last=False)
    assert group.report.unreached == ("a",)
