"""Comparing shares with a referee's vector finds every lie, however many there are, and accuses no honest node."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from solon_fl import FourierCode, RealDecoder
from solon_fl.coding import Code, ExactCode
from solon_fl.coding.digests import share_digests
from solon_fl.coding.sections import Sections
from solon_fl.config import make_code, make_decoder
from solon_fl.strategies.digest_group import DigestGroupRound
from solon_fl.strategies.hearing import Findings, hear
from solon_fl.task import DIGESTS, SHARE, UNREACHED, share_name
from solon_fl.wire import to_array
from tests.strategies.lies import flipped
from tests.strategies.test_group import NODES, TENSORS, Keeping, reply, reply_with, small_tensor_shares

COLUMNS = 40
VECTORS = st.integers(0, 1000)


def vector_of(code: Code, seed: int) -> Tensor:
    return torch.randn(code.compression * COLUMNS, generator=torch.Generator().manual_seed(seed))


def shares_of(code: Code, vector: Tensor) -> dict[int, Tensor]:
    return {slot: code.encode(vector, slot) for slot in range(code.group_size)}


def heard(code: Code, shares: dict[int, Tensor], vector: Tensor, **options: Any) -> Findings:
    settings = {"sections": Sections.whole(COLUMNS), "rtol": 1e-6, "byzantine": 2, "otherwise_wrong": ()}
    return hear(shares, vector, code=code, **{**settings, **options})


BIG: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse": lambda share: -share,
    "zeros": torch.zeros_like,
    "huge": lambda share: torch.full_like(share, 3e38),
    "a little": lambda share: share * (1 + 1e-2),
}
ENDLESS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda share: torch.full_like(share, math.nan),
    "one infinity": lambda share: torch.cat([share[:-1], torch.tensor([math.inf])]),
}
TINY: dict[str, Callable[[Tensor], Tensor]] = {"one bit": flipped, "1e-6": lambda share: share * (1 + 1e-6)}


@st.composite
def courts(draw: st.DrawFn) -> tuple[Code, dict[int, str]]:
    size, compression = draw(st.integers(2, 8)), draw(st.integers(1, 7))
    code = make_code(draw(st.sampled_from(["exact", "fourier"])), size, min(compression, size - 1))
    liars = draw(st.permutations(range(size)))[: draw(st.integers(0, size - 1))]
    return code, {slot: draw(st.sampled_from(sorted({**BIG, **ENDLESS, **TINY}))) for slot in liars}


@given(courts(), VECTORS)
def test_of_nodes_that_compute_the_same_bits_those_are_wrong_who_sent_others(court: Any, seed: int) -> None:
    """Any number of liars except all of them: each is found by what it sent, and no other node is."""
    code, kinds = court
    vector = vector_of(code, seed)
    shares = shares_of(code, vector)
    for slot, kind in kinds.items():
        shares[slot] = {**BIG, **ENDLESS, **TINY}[kind](shares[slot])
    found = heard(code, shares, vector, byzantine=len(kinds))
    assert found.wrong == set(kinds)
    assert not found.odd_referee
    is_number = [not isinstance(code, ExactCode) or slot < code.compression or code.compression == 1 for slot in shares]
    assert found.lies == {slot for slot, kind in kinds.items() if kind in BIG and is_number[slot]}
    assert found.not_finite == {slot for slot, kind in kinds.items() if kind in ENDLESS and is_number[slot]}


@given(st.integers(2, 8), st.integers(1, 7), VECTORS, st.data())
def test_honest_nodes_within_rtol_of_the_truth_are_never_accused_and_real_lies_are(
    size: int, compression: int, seed: int, data: st.DataObject
) -> None:
    code = FourierCode(group_size=size, compression=min(compression, size))
    rng = torch.Generator().manual_seed(seed)
    truth = vector_of(code, seed)
    noise = [4e-7 * truth * torch.randn(truth.shape, generator=rng).clamp(-2, 2) for _ in range(size + 1)]
    shares = {slot: code.encode(truth + noise[slot], slot) for slot in range(size)}
    liars = data.draw(st.sets(st.integers(0, size - 1)))
    for slot in liars:
        shares[slot] = shares[slot] * (1 + 1e-4)
    settings = {"otherwise_wrong": None, "byzantine": len(liars), "alike": len(liars) == size}
    found = heard(code, shares, truth + noise[size], **settings)
    assert found.lies == found.wrong == liars
    assert not found.odd_referee
    assert found.right <= set(range(size)) - liars


@pytest.mark.parametrize("compression", [1, 3])
def test_a_referee_of_other_bits_is_odd_and_only_what_is_far_is_a_lie(compression: int) -> None:
    for code in (make_code("exact", 6, compression), make_code("fourier", 6, compression)):
        vector = vector_of(code, 0)
        shares = shares_of(code, vector)
        shares[0] = -shares[0]
        found = heard(code, shares, vector * (1 + 2e-7))
        assert found == Findings(lies=frozenset({0}), odd_referee=True)


def test_a_share_of_zeros_is_the_same_for_every_referee() -> None:
    code = make_code("exact", 6, 4)
    vector = vector_of(code, 0)
    vector[3 * COLUMNS :] = 0
    shares = shares_of(code, vector)
    assert not shares[3].any()
    shares[0] = -9 * shares[0]
    for noise in (2e-7, 0.05):
        found = heard(code, shares, vector * (1 + noise), fewest=4)
        assert found == Findings(lies=frozenset({0}), odd_referee=True)
    assert len(heard(code, shares_of(code, 0 * vector), 0 * vector).right) > 2, "if all is zero that is the truth"


def test_one_node_that_sends_many_shares_is_one_node() -> None:
    """Two of six nodes are left. One of them lies a little in everything that it sends."""
    code = make_code("exact", 6, 5)
    vector = vector_of(code, 0)
    shares = shares_of(code, vector)
    del shares[5]
    for slot in (0, 2, 3):
        shares[slot] = flipped(shares[slot])
    found = heard(code, shares, vector, byzantine=1, further=(2, 3, 4))
    assert found == Findings(different=frozenset({0, 2, 3}), right=frozenset({1}))


def test_who_agreed_on_a_far_gradient_lied_even_where_shares_are_no_numbers() -> None:
    code = make_code("exact", 6, 3)
    vector, other = vector_of(code, 0), vector_of(code, 1)
    shares = shares_of(code, other)
    shares[5] = code.encode(vector, 5)
    found = heard(code, shares, vector, agreed=(other, range(6)))
    assert found.lies == {0, 1, 2, 3, 4}
    near = shares_of(code, vector * (1 + 2e-7))
    assert heard(code, near, vector, agreed=(vector * (1 + 2e-7), range(6))) == Findings(odd_referee=True)


@pytest.mark.parametrize("name", ["exact", "fourier"])
def test_where_nobody_has_what_the_referee_has_only_what_is_farther_than_zeros_is_a_lie(name: str) -> None:
    """Rounding can grow to several percent. Once honest nodes are known to be like the referee, that is no excuse."""
    code = make_code(name, 4, 1)
    vector = vector_of(code, 0)
    for factor, is_lie in ((1.05, False), (0.5, False), (2.1, True), (-1.0, True)):
        shares = shares_of(code, factor * vector)
        for equal_bits in ((), None):
            found = heard(code, shares, vector, otherwise_wrong=equal_bits)
            assert found.lies == (set(range(4)) if is_lie else set())
            assert found.odd_referee
            assert len(found.right) <= 2
            found = heard(code, shares, vector, otherwise_wrong=equal_bits, alike=True)
            assert found.lies == set(range(4))
            assert not found.odd_referee


def test_buffers_are_measured_by_themselves() -> None:
    """However large the buffers are, a lie in the gradient is found."""
    code = FourierCode(group_size=4, compression=1)
    sections = Sections.of([(30, "parameters"), (10, "buffers")], compression=1)
    vector = vector_of(code, 0)
    vector[30:] *= 1e6
    shares = shares_of(code, vector)
    shares[2][:30] *= 1.01
    for of, lies in ((Sections.whole(COLUMNS), set()), (sections, {2})):
        assert heard(code, shares, vector, sections=of, otherwise_wrong=None).lies == lies


# ---- one group -----------------------------------------------------------------------------------------------

CODE = FourierCode(group_size=7, compression=3)
GRADIENT = torch.linspace(-1, 2, 21)


def court(kind: type[Keeping] = Keeping, **changes: Any) -> Keeping:
    """A group of seven that may ask a referee: k = 3, s = 4."""
    decoder = make_decoder(CODE, 4, 0, 1e-6, True)
    settings = {"audit": lambda: False, "rtol": 1e-6, "parameters": ("a", "b"), "decoder": decoder, "byzantine": 4}
    return kind(
        **{"group": 1, "nodes": NODES, "sections": Sections.whole(7), "dtype": torch.float32, **settings, **changes}
    )


def honest(slot: int) -> Message:
    return reply_with(CODE.encode(GRADIENT, slot))


def asked(group: Keeping, replies: dict[int, Message], last: bool = False) -> str | None:
    group.receive(dict(replies))
    group.decode(last=last)
    return group.question


def test_who_disagrees_is_convicted_and_the_gradient_is_the_referees() -> None:
    group = court()
    lie = reply_with(-CODE.encode(GRADIENT, 2))
    assert asked(group, {2: lie, **{slot: honest(slot) for slot in (0, 1, 3, 4, 5, 6)}}) == "shares disagree"
    assert not group.closed
    assert group.gradient is None
    given = group.settle(GRADIENT, (), 1.5)
    assert given is not None
    assert torch.equal(given, GRADIENT)
    report = group.report
    assert (report.status, report.corrupt_nodes, report.silent_nodes) == ("corrected", (72,), ())
    assert report.referee is not None
    assert (report.referee.reason, report.referee.answered, report.referee.seconds) == ("shares disagree", True, 1.5)
    assert (report.referee.convicted, report.referee.acquitted) == ((72,), ())
    assert group.question is None


def test_shares_that_come_after_all_save_the_question() -> None:
    group = court()
    assert asked(group, {slot: honest(slot) for slot in range(5)}, last=True) == "shares missing"
    assert asked(group, {slot: honest(slot) for slot in (5, 6)}) is None
    assert group.closed
    assert group.report.referee is None


def test_it_is_asked_for_missing_shares_only_when_nobody_is_waited_for() -> None:
    group = court()
    assert asked(group, {slot: honest(slot) for slot in range(6)}) is None
    group.wake(late=True)
    assert asked(group, {}) == "shares missing"
    assert asked(court(unheard={6}), {slot: honest(slot) for slot in range(6)}) == "shares missing"


def test_who_garbles_is_convicted_and_who_says_that_it_failed_is_not() -> None:
    group = court()
    replies = {0: reply_with(torch.zeros(3)), 1: reply(Error(code=2, reason="boom")), 2: reply(RecordDict())}
    assert asked(group, {**replies, **{slot: honest(slot) for slot in (3, 4, 5, 6)}}) == "shares missing"
    group.settle(GRADIENT, (), 0.0)
    assert set(group.report.malformed_nodes) == {70, 71, 72}
    assert group.report.garbled_nodes == (70, 72)
    assert group.report.referee is not None
    assert group.report.referee.convicted == (70, 72)


def test_nan_is_garbage_where_the_gradient_is_finite_and_nobodys_fault_where_it_is_not() -> None:
    nan = {slot: reply_with(torch.full((7,), math.nan)) for slot in (0, 1)}
    others = {slot: honest(slot) for slot in range(2, 7)}
    group = court()
    assert asked(group, {**nan, **others}) is not None
    group.settle(GRADIENT, (), 0.0)
    assert group.report.garbled_nodes == (70, 71)
    assert set(group.report.malformed_nodes) == {70, 71}
    group = court(is_usable=lambda vector: bool(vector.isfinite().all()))
    asked(group, {**nan, **others})
    assert group.settle(torch.full((21,), math.nan), (), 0.0) is None
    assert group.report.status == "diverged"
    assert group.report.referee is not None
    assert group.report.referee.convicted == group.report.garbled_nodes == ()


def test_without_an_answer_a_group_that_failed_fails_and_one_that_is_audited_stands() -> None:
    lie = {2: reply_with(-CODE.encode(GRADIENT, 2))}
    for replies, audit, status in ((lie, False, "too-few-shares"), ({2: honest(2)}, True, "clean")):
        group = court(audit=lambda audit=audit: audit)
        assert asked(group, {**replies, **{slot: honest(slot) for slot in (0, 1, 3, 4, 5, 6)}}) is not None
        assert (group.give_up() is None) == (status != "clean")
        assert group.report.status == status
        assert group.report.referee is not None
        assert not group.report.referee.answered


def test_an_audit_is_drawn_once_and_not_before_the_shares_are_there() -> None:
    draws: list[int] = []

    def audit() -> bool:
        draws.append(len(group._shares))
        return True

    group = court(audit=audit)
    for slot in range(7):
        question = asked(group, {slot: honest(slot)})
    assert question == "audit"
    assert asked(group, {}) == "audit"
    assert draws == [7]
    assert group.settle(GRADIENT, (), 0.0) is not None
    assert group.report.status == "clean"
    assert group.report.error_bound > 0, "what was decoded stands"


def test_suspects_are_a_reason_to_ask_until_they_are_acquitted() -> None:
    shares = {slot: reply_with(share) for slot, share in small_tensor_shares(liars=(0, 1)).items()}
    decoder = RealDecoder(CODE, byzantine=2)
    group = court(decoder=decoder, byzantine=2, sections=TENSORS)
    assert asked(group, shares) == "suspects"
    rng = torch.Generator().manual_seed(2)
    gradient = torch.randn(360, generator=rng)
    gradient[300:] *= 1e-9
    given = group.settle(gradient, (), 0.0)
    assert given is not None
    assert torch.equal(given, gradient)
    assert group.report.suspect_nodes == group.report.corrupt_nodes == ()
    assert group.report.referee is not None
    assert group.report.referee.acquitted == NODES[:2]
    for settled, question in ((NODES[:1], "suspects"), (NODES[:2], None)):
        again = court(decoder=decoder, byzantine=2, sections=TENSORS, settled=settled)
        assert asked(again, shares) == question
    assert again.report.suspect_nodes == NODES[:2]


def says(slot: int, *names: str) -> Message:
    message = honest(slot)
    message.content[UNREACHED] = ConfigRecord({"names": list(names)})
    return message


@pytest.mark.parametrize("liars", [3, 4])
def test_who_makes_up_that_a_parameter_has_no_gradient_is_convicted(liars: int) -> None:
    """It also hides that the other one has none, which fewer than s + 1 nodes say. Unknown names are ignored."""
    group = court()
    replies = {slot: says(slot, "a") if slot < liars else says(slot, "b", "x") for slot in range(7)}
    assert asked(group, replies) == "unclear which parameters have gradients"
    group.settle(GRADIENT, ("b",), 0.0)
    assert group.report.unreached == ("b",)
    assert tuple(group.report.malformed_nodes) == NODES[:liars]
    assert group.report.referee is not None
    assert group.report.referee.convicted == NODES[:liars]


def test_of_what_liars_say_beside_a_wrong_share_nothing_counts() -> None:
    group = court()
    replies = {slot: says(slot, "b") for slot in range(7)}
    for slot in range(4):
        replies[slot] = reply_with(-CODE.encode(GRADIENT, slot))
    assert asked(group, replies) == "shares disagree"
    group.settle(GRADIENT, ("b",), 0.0)
    assert group.report.corrupt_nodes == NODES[:4]
    assert group.report.unreached == ("b",)


def test_a_referee_whom_all_contradict_convicts_nobody_of_them() -> None:
    group = court(audit=lambda: True)
    assert asked(group, {slot: says(slot, "a") for slot in range(7)}) == "audit"
    group.settle(GRADIENT, (), 0.0)
    assert group.report.malformed_nodes == {}
    assert group.report.unreached == ()


# ---- digests -------------------------------------------------------------------------------------------------


class KeepingByDigest(Keeping, DigestGroupRound):
    pass


KEY = b"key"


def digest_court(nodes: tuple[int | None, ...], byzantine: int, also: dict[int, tuple[int, ...]]) -> Keeping:
    """Six places, k = 5."""
    code = make_code("exact", 6, 5)
    options = {"digest_key": KEY, "can_decode_by_algebra": False, "needs_equal_bits": True, "also": also}
    decoder = make_decoder(code, 0, 1, 1e-6, True)
    return court(
        KeepingByDigest, nodes=nodes, decoder=decoder, byzantine=byzantine, sections=Sections.whole(4), **options
    )


def sent(slot: int, also: tuple[int, ...], change: Callable[[int, Tensor], Tensor], vector: Tensor) -> Message:
    code = make_code("exact", 6, 5)
    names = {SHARE: slot, **{share_name(further): further for further in also}}
    record = ArrayRecord({name: to_array(change(of, code.encode(vector, of))) for name, of in names.items()})
    digests = share_digests(code, vector, KEY)
    return reply(RecordDict({SHARE: record, DIGESTS: ConfigRecord({DIGESTS: digests})}))


@pytest.mark.parametrize("where", [{0}, {2}, {0, 2, 4}])
def test_who_lies_in_a_share_of_an_empty_place_is_the_one_who_is_convicted(where: set[int]) -> None:
    vector = torch.randn(20, generator=torch.Generator().manual_seed(0))
    also = {0: (2, 4), 1: (3,)}
    group = digest_court((70, 71, None, None, None, None), 1, also)
    replies = {
        0: sent(0, also[0], lambda slot, share: flipped(share) if slot in where else share, vector),
        1: sent(1, also[1], lambda slot, share: share, vector),
    }
    assert asked(group, replies) == "shares disagree"
    given = group.settle(vector, (), 0.0)
    assert given is not None
    assert torch.equal(given, vector)
    assert group.report.referee is not None
    assert group.report.referee.convicted == group.report.different_bits == (70,)
    honest_group = digest_court((70, 71, None, None, None, None), 1, also)
    replies = {slot: sent(slot, also[slot], lambda slot, share: share, vector) for slot in also}
    assert asked(honest_group, replies) is None
    assert honest_group.gradient is not None
    assert torch.equal(honest_group.gradient, vector)
