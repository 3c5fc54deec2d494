"""Digests: lies become erasures, so r = max(2 s + 1, s + k) nodes are enough. Also: nodes with different bits."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp.typing import Mod
from torch import Tensor

from solon_fl import FourierCode, RealDecoder, SolonConfig
from solon_fl.coding.digests import elect, share_digest, share_digests
from solon_fl.coding.sections import Sections
from solon_fl.errors import ConfigurationError, GroupFailedError
from solon_fl.simulations.attacks import Alie, Constant, NotFinite, RandomGaussian, Reverse, SameLie
from solon_fl.simulations.attacks.mods import MALFORMATIONS, attack_mod, malformed_mod, silent_mod
from solon_fl.simulations.run._compat import become_server
from solon_fl.strategies.digest_group import DigestGroupRound
from solon_fl.task import DIGESTS, SHARE, digest_key
from solon_fl.wire import to_array, trusted_tensor
from tests.support import share_array, small_config, spoil, train, vector_of

LIARS = {1, 4, 6, 8}  # numbers: two of each group of five
LIAR_IDS = (2, 5, 7, 9)


def small(**changes: Any) -> SolonConfig:
    """Two groups of five nodes with s = 2 and k = 3, too small to be decoded by algebra."""
    return small_config(**{"num_nodes": 10, "verification": "digest", **changes})


@pytest.fixture(scope="module")
def honest_model() -> Tensor:
    return vector_of(train(small())[0].arrays)


def with_votes(change: Callable[[bytes, int], object], liars: set[int]) -> Mod:
    """The nodes with these ids send other digests."""

    def spoiled(reply: Message) -> Message:
        record = reply.content[DIGESTS]
        assert isinstance(record, ConfigRecord)
        changed = change(record[DIGESTS], reply.metadata.src_node_id)  # type: ignore[arg-type]
        if changed is None:
            del reply.content[DIGESTS]
        else:
            reply.content[DIGESTS] = ConfigRecord({DIGESTS: changed})  # type: ignore[dict-item]
        return reply

    return spoil(spoiled, liars)


def test_groups_may_be_smaller_than_algebra_needs() -> None:
    assert small().group_size == 5
    assert SolonConfig(num_nodes=15, byzantine=5, compression=10, verification="digest").group_size == 15
    assert SolonConfig(num_nodes=22, byzantine=5, compression=2, verification="digest").group_size == 11
    with pytest.raises(ConfigurationError, match="raise group_size to 5"):
        small(num_nodes=8, group_size=4)
    with pytest.raises(ConfigurationError, match="verification must be one of algebra, digest"):
        small(verification="faith")


ATTACKS: dict[str, tuple[Mod, str]] = {
    "reverse": (attack_mod(Reverse(), LIARS), "corrupt_nodes"),
    "constant": (attack_mod(Constant(), LIARS), "corrupt_nodes"),
    "alie": (attack_mod(Alie(), LIARS), "corrupt_nodes"),
    "random": (attack_mod(RandomGaussian(), LIARS), "corrupt_nodes"),
    "huge": (attack_mod(Reverse(1e30), LIARS), "corrupt_nodes"),
    "same-lie": (attack_mod(SameLie(0.1), LIARS), "corrupt_nodes"),
    "nan": (attack_mod(NotFinite(), LIARS), "malformed_nodes"),
    "silent": (silent_mod(LIARS), "silent_nodes"),
    "no digests": (with_votes(lambda digests, node: None, set(LIAR_IDS)), "malformed_nodes"),
    "too few digests": (with_votes(lambda digests, node: digests[:-1], set(LIAR_IDS)), "malformed_nodes"),
    "no bytes": (with_votes(lambda digests, node: 7, set(LIAR_IDS)), "malformed_nodes"),
    **{how: (malformed_mod(LIARS, how), "malformed_nodes") for how in MALFORMATIONS},
}


@pytest.mark.parametrize("redundancy", ["full", "reactive"])
@pytest.mark.parametrize("name", ATTACKS)
def test_under_attack_the_final_model_is_that_of_the_honest_run(
    name: str, redundancy: str, honest_model: Tensor
) -> None:
    mod, named_as = ATTACKS[name]
    result, reports = train(small(redundancy=redundancy), mods=[mod], timeout=0.2)
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-5, atol=1e-6)
    named = {node for report in reports for node in getattr(report, named_as)}
    assert named <= set(LIAR_IDS)
    assert named == set(LIAR_IDS) or redundancy == "reactive" or named_as == "silent_nodes"
    assert all(report.stepped and report.failed_groups == () for report in reports)


VOTES: dict[str, Callable[[bytes, int], object]] = {
    "the same": lambda digests, node: b"x" * len(digests),
    "different": lambda digests, node: bytes([node]) * len(digests),
    "shifted": lambda digests, node: digests[32:] + digests[:32],
}


@pytest.mark.parametrize("name", VOTES)
def test_s_wrong_votes_have_no_effect(name: str, honest_model: Tensor) -> None:
    result, reports = train(small(), mods=[with_votes(VOTES[name], set(LIAR_IDS))])
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-5, atol=1e-6)
    assert all(report.corrupt_nodes == () for report in reports)
    assert {node for group in reports[0].groups for node in group.different_bits} <= set(LIAR_IDS)


def consistent_liar(factor: float, liars: set[int]) -> Mod:
    """Send a share and digests that agree with each other: those of a multiple of the gradient."""

    def lie(reply: Message) -> Message:
        share = factor * trusted_tensor(share_array(reply.content)["share"])
        return _replace(reply, share, 5 * share_digest(share, digest_key(0, 1, 0)))

    return spoil(lie, liars)


def _replace(reply: Message, share: Tensor, digests: bytes) -> Message:
    reply.content["share"] = ArrayRecord({"share": to_array(share)})
    reply.content[DIGESTS] = ConfigRecord({DIGESTS: digests})
    return reply


def test_liars_whose_shares_match_their_own_digests_are_outvoted(honest_model: Tensor) -> None:
    result, reports = train(small(), mods=[consistent_liar(-2.0, set(LIAR_IDS))])
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-5, atol=1e-6)
    assert all(set(report.corrupt_nodes) <= set(LIAR_IDS) for report in reports)


def test_reactive_groups_with_digests_are_as_small_as_can_be() -> None:
    _, reports = train(small(redundancy="reactive"))
    assert [report.nodes_asked for report in reports] == 5 * [2 * 3]
    assert all(report.escalated_groups == () for report in reports)
    config = SolonConfig(
        num_nodes=20, byzantine=5, compression=10, verification="digest", redundancy="reactive", group_size=20
    )
    _, reports = train(config, rounds=2)
    assert [report.nodes_asked for report in reports] == [10, 10]


def other_bits(nodes: set[int]) -> Mod:
    """The nodes with these ids compute on other hardware: their shares and digests differ in the last bit."""

    def change(reply: Message) -> Message:
        share = trusted_tensor(share_array(reply.content)["share"])
        nudged = torch.nextafter(share, torch.full_like(share, float("inf")))
        number = reply.metadata.src_node_id
        return _replace(reply, nudged, bytes([number]) * len(reply.content[DIGESTS][DIGESTS]))  # type: ignore[arg-type]

    return spoil(change, nodes)


def test_nodes_whose_bits_differ_are_named_but_are_no_liars(
    honest_model: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="flwr"):
        result, reports = train(small(), mods=[other_bits({1, 8})])
    torch.testing.assert_close(vector_of(result.arrays), honest_model, rtol=1e-5, atol=1e-6)
    assert all(report.corrupt_nodes == () for report in reports)
    assert {node for report in reports for group in report.groups for node in group.different_bits} <= {1, 8}
    assert caplog.text.count("compute different bits") <= 2


def test_where_all_bits_differ_a_large_group_is_decoded_by_algebra(caplog: pytest.LogCaptureFixture) -> None:
    config = small_config(verification="digest", group_size=7)  # r = 7 is enough for algebra
    honest = vector_of(train(small_config())[0].arrays)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        result, reports = train(config, mods=[other_bits(set(range(1, 15))), attack_mod(Reverse(), {2, 9})])
    torch.testing.assert_close(vector_of(result.arrays), honest, rtol=1e-4, atol=1e-5)
    assert all(report.corrupt_nodes == (3, 10) for report in reports)
    assert "decoded by algebra" in caplog.text


def test_where_all_bits_differ_a_small_group_fails_and_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.ERROR, logger="flwr"),
        pytest.raises(GroupFailedError, match="no group could be decoded in the first round"),
    ):
        train(small(), mods=[other_bits(set(range(1, 11)))], rounds=1)
    assert "by a single bit" in caplog.text


def test_s_plus_1_liars_are_beyond_the_guarantee() -> None:
    """They elect any digests they like. This is the price of believing s + 1 votes."""
    _, reports = train(small(), mods=[consistent_liar(-2.0, {1, 2, 3})], rounds=1)
    assert 0 in reports[0].failed_groups or reports[0].groups[0].status != "clean"


def test_digests_of_another_round_or_group_are_worth_nothing() -> None:
    keys = {digest_key(seed, number, group) for seed in (0, 1) for number in (1, 2) for group in (0, 1)}
    share = torch.arange(5.0)
    assert len({share_digest(share, key) for key in keys}) == 8


def test_digests_are_those_of_each_share() -> None:
    code = FourierCode(group_size=7, compression=3)
    gradient = torch.linspace(-1, 1, 20)
    digests = share_digests(code, gradient, b"key")
    assert len(digests) == 7 * 32
    for slot in range(7):
        assert share_digest(code.encode(gradient, slot), b"key") == digests[32 * slot : 32 * (slot + 1)]


def test_an_election_needs_its_votes() -> None:
    assert elect([b"a", b"a", b"b"], 2) == b"a"
    assert elect([b"a", b"b"], 2) is None
    assert elect([], 1) is None


def test_nodes_compute_with_deterministic_algorithms_only_if_digests_are_asked_for() -> None:
    seen = []
    original = torch.Tensor.backward

    def backward(self: Tensor, *arguments: Any, **named: Any) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        original(self, *arguments, **named)  # type: ignore[no-untyped-call]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", backward)
        train(small(), rounds=1)
        assert all(seen)
        seen.clear()
        train(small_config(), rounds=1)
        assert not any(seen)
    assert not torch.are_deterministic_algorithms_enabled()


FOUR_OF_FOURTEEN = {2, 5, 9, 12}  # two in each group of seven
WRONG_BITS: dict[str, Mod] = {
    "of the digests": with_votes(VOTES["different"], FOUR_OF_FOURTEEN),
    "of the share": spoil(
        lambda reply: _replace(
            reply,
            torch.nextafter(trusted_tensor(share_array(reply.content)["share"]), torch.tensor(float("inf"))),
            reply.content[DIGESTS][DIGESTS],  # type: ignore[arg-type]
        ),
        FOUR_OF_FOURTEEN,
    ),
}


@pytest.mark.parametrize("what", WRONG_BITS)
def test_who_escalates_with_other_bits_is_named_and_soon_rests(what: str) -> None:
    """It is not an offence, but no node can make the others compute forever: it causes at most one escalation."""
    config = small(num_nodes=14, group_size=7, redundancy="reactive")
    _, reports = train(config, mods=[WRONG_BITS[what]], rounds=20)
    escalations = [group for report in reports for group in report.groups if group.escalated]
    assert 1 <= len(escalations) <= len(FOUR_OF_FOURTEEN)
    assert all(group.different_bits and set(group.different_bits) <= FOUR_OF_FOURTEEN for group in escalations)
    assert all(set(group.escalated_by) <= set(group.different_bits) for group in escalations)
    assert all(group.escalated_by for group in escalations)
    assert all(report.corrupt_nodes == report.malformed_nodes == () for report in reports)
    assert all(report.stepped for report in reports)


@pytest.mark.parametrize(
    ("odd", "blamed"), [({1}, (11,)), ({1, 2, 5}, ())], ids=["one of other make", "and two liars who copy it"]
)
def test_liars_who_side_with_a_node_of_other_make_do_not_get_the_others_to_rest(
    odd: set[int], blamed: tuple[int, ...]
) -> None:
    """With six nodes and s = 2, the three elect their list, and nothing shows which nodes are the odd ones."""
    become_server()
    code, key = FourierCode(group_size=6, compression=3), b"k" * 16
    usual = torch.randn(30, generator=torch.Generator().manual_seed(0))
    other = torch.nextafter(usual, torch.tensor(10.0))
    group = DigestGroupRound(
        group=0,
        nodes=(10, 11, 12, 13, 14, 15),
        byzantine=2,
        decoder=RealDecoder(code, byzantine=0, stragglers=3),
        sections=Sections.whole(10),
        dtype=torch.float32,
        resting={3, 4, 5},
        digest_key=key,
        can_decode_by_algebra=False,
    )

    def receive(slots: set[int]) -> Tensor | None:
        for slot in sorted(slots):
            gradient = other if slot in odd else usual
            digests = ConfigRecord({DIGESTS: share_digests(code, gradient, key)})
            share = ArrayRecord({SHARE: to_array(code.encode(gradient, slot))})
            message = Message(RecordDict(), 10 + slot, MessageType.TRAIN)
            group.receive({slot: Message(RecordDict({SHARE: share, DIGESTS: digests}), reply_to=message)})
        return group.decode(last=False)

    assert receive({0, 1, 2}) is None  # they disagree, so the others are asked
    assert group.wake(late=False) == [3, 4, 5]
    gradient = receive({3, 4, 5})
    assert gradient is not None
    torch.testing.assert_close(gradient, usual)
    assert group.report.escalated_by == blamed
