import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from solon_fl.coding import FourierCode, RealDecoder
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.attacks import ATTACKS, make_attack_mod
from solon_fl.wire import to_array, trusted_tensor
from tests.support import train

DECODER = RealDecoder(FourierCode(group_size=7, compression=3), byzantine=2)
LIARS = frozenset({1, 4, 8, 13})
NAMES = [
    *(
        "reverse",
        "constant",
        "sign-flip",
        "random",
        "alie",
        "alie-fraction",
        "alie-1.5",
        "alie-tuned",
        "ipm",
        "foe",
        "min-max",
    ),
    *(
        "min-sum",
        "fang-krum",
        "fang-trimmed-mean",
        "mimic",
        "label-flip",
        "bit-flip",
        "nan",
        "inf",
        "crash",
        "late",
        "silent",
        "malformed",
    ),
    *(
        "same-lie",
        "constant-encoded",
        "near-codeword",
        "other-gradient",
        "partial-collusion",
        "below-tolerance",
        "projection-aware",
    ),
]


def test_these_are_all_attacks() -> None:
    assert list(ATTACKS) == NAMES
    assert all(0 < len(attack.description) < 90 for attack in ATTACKS.values())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("label-flip", "projection-aware")])
def test_the_liars_are_those_who_misbehave(name: str) -> None:
    """Two attacks are left out: this client has no labels, and shares this short hide nothing from a projection."""
    _, reports = train(mods=[make_attack_mod(name, LIARS, 0, decoder=DECODER)], rounds=1)
    report = reports[0]
    named = {*report.corrupt_nodes, *report.silent_nodes, *report.malformed_nodes}
    liar_ids = {number + 1 for number in LIARS}
    assert report.failed_groups == ()
    if name in ("bit-flip", "partial-collusion", "below-tolerance"):  # some of their lies are tolerated
        assert named <= liar_ids
    else:
        assert named == liar_ids


@pytest.mark.parametrize("name", [name for name in NAMES if ATTACKS[name].needs_code])
def test_attacks_on_the_code_need_one(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"attack='{name}' is made against Solon's code; got decoder=None"):
        make_attack_mod(name, LIARS, 0)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"attack must be one of reverse, .*; got attack='alien'"):
        make_attack_mod("alien", LIARS, 0)


@pytest.mark.parametrize("name", ["alie-tuned", "foe", "min-max", "min-sum"])
def test_the_tuned_attacks_ask_the_aggregator(name: str) -> None:
    asked = []

    def decode(shares: Tensor) -> Tensor:
        asked.append(shares.shape)
        gradient = DECODER.decode(shares).gradient
        assert gradient is not None
        return gradient

    _, reports = train(mods=[make_attack_mod(name, LIARS, 0, decode, DECODER)], rounds=1)
    assert set(asked) == {(7, 4)}  # a group's shares
    assert set(reports[0].corrupt_nodes) == {number + 1 for number in LIARS}


def test_a_seed_reproduces_what_liars_send() -> None:
    def client(message: Message, context: Context) -> Message:
        return Message(RecordDict(dict(message.content)), reply_to=message)

    def sent(seed: int) -> Tensor:
        arrays = ArrayRecord({"w": to_array(torch.ones(5))})
        message = Message(RecordDict({"a": arrays, "config": ConfigRecord({"server-round": 1})}), 2, "train")
        context = Context(run_id=1, node_id=2, node_config={"partition-id": 1}, state=RecordDict(), run_config={})
        reply = make_attack_mod("random", LIARS, seed)(message, context, client)
        return trusted_tensor(reply.content.array_records["a"]["w"])

    assert torch.equal(sent(0), sent(0))
    assert not torch.equal(sent(0), sent(1))
