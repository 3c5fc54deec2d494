"""Attacks as Flower mods, for the train function of any ClientApp."""

import copy
from collections.abc import Collection
from typing import Literal, cast

import numpy as np
import torch
from flwr.app import Array, ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor

from solon_fl.checks import check_one_of
from solon_fl.coding.digests import DIGEST_SIZE, share_digest
from solon_fl.errors import ConfigurationError
from solon_fl.simulations.attacks.base import Attack
from solon_fl.simulations.attacks.labels import FLIP_LABELS
from solon_fl.simulations.attacks.liars import Addressee, Liars
from solon_fl.task import DIGESTS, SolonTask
from solon_fl.wire import to_array, trusted_tensor

__all__ = [
    "MALFORMATIONS",
    "Malformation",
    "attack_mod",
    "crash_mod",
    "from_round",
    "label_flip_mod",
    "late_mod",
    "malformed_mod",
    "silent_mod",
]

Malformation = Literal["shape", "dtype", "names", "garbage", "forged-header"]
MALFORMATIONS: tuple[Malformation, ...] = ("shape", "dtype", "names", "garbage", "forged-header")


def attack_mod(attack: Attack, liars: Liars | Collection[int] | None = None, seed: int = 0) -> Mod:
    """Return a mod that replaces the vector of a lying node by that of an attack.

    It works on coded shares (of `SolonStrategy`), on the replies of Draco's nodes, and on any other reply with arrays.
    For an omniscient attack, the mod computes the other nodes' vectors: it calls the honest train function in their
    place. All liars of a group collude. Without groups, all liars of the run do.

    Parameters
    ----------
    attack : Attack
        Computes the lies.
    liars : collection of int or Liars, optional
        Numbers of the nodes that lie: ``group * group_size + slot`` in Solon's groups, Draco's own numbers with Draco,
        and else the partition ids. Default: every node that runs this mod.
    seed : int
        Seed of the liars' randomness.
    """
    told = Liars.of(liars)
    crafted: dict[object, Tensor] = {}  # the lies of all colluders, computed once

    def lie_of(node: Addressee, own: Tensor, call_next: ClientAppCallable) -> Tensor:
        server_round = _round_number(node.message)
        if not attack.omniscient:
            return attack.lies(own[None], [0], _generator(seed, node.number, server_round))[0]
        peers = node.peers
        lying = told.rows(node, peers)
        key = (node.context.run_id, server_round, peers, own.numel(), tuple(lying))
        if key not in crafted:
            crafted.clear()
            vectors = own.new_empty(len(peers), own.numel())
            for row, number in zip(vectors, peers, strict=True):
                row.copy_(_vector(node.honest_reply(number, call_next)))
            crafted[key] = attack.lies(vectors, lying, _generator(seed, peers[0], server_round))
        return crafted[key][lying.index(peers.index(node.number))]

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        node = Addressee.of(message, context)
        reply = call_next(message, context)
        if not told.include(node) or reply.has_error() or not reply.content.array_records:  # no arrays: no model yet
            return reply
        lie = lie_of(node, _vector(reply), call_next)
        return _with_digest(_with_vector(reply, lie), message, lie)

    return mod


def _generator(seed: int, number: int, server_round: int) -> torch.Generator:
    """Return the random generator of a liar, or of a group of liars, for one round."""
    words = np.random.SeedSequence([seed, number, server_round]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


def _with_digest(reply: Message, message: Message, lie: Tensor) -> Message:
    """Let the liar's digests, if it sends any, claim that its lie is the true share of its slot."""
    record = reply.content.get(DIGESTS)
    if isinstance(record, ConfigRecord):
        task = SolonTask.from_message(message)
        digests = bytearray(cast(bytes, record[DIGESTS]))
        digests[DIGEST_SIZE * task.slot : DIGEST_SIZE * (task.slot + 1)] = share_digest(lie, task.digest_key)
        reply.content[DIGESTS] = ConfigRecord({DIGESTS: bytes(digests)})
    return reply


def silent_mod(liars: Liars | Collection[int] | None = None) -> Mod:
    """Return a mod that makes nodes silent: they return None, and Flower delivers no reply."""
    told = Liars.of(liars)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if told.include(Addressee.of(message, context)):
            return None  # type: ignore[return-value]  # like a broken ClientApp
        return call_next(message, context)

    return mod


def crash_mod(liars: Liars | Collection[int] | None = None) -> Mod:
    """Return a mod that makes nodes crash: the ClientApp raises, and the server gets an error reply."""
    told = Liars.of(liars)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if told.include(Addressee.of(message, context)):
            raise RuntimeError("this node has crashed")
        return call_next(message, context)

    return mod


def late_mod(liars: Liars | Collection[int] | None = None) -> Mod:
    """Return a mod that makes nodes one round late: each answers with its reply to the previous round.

    Flower never pulls a reply after the deadline. This mod is the closest hostile behaviour. A late node does not reply
    in the first round. In each later round it sends the previous round's reply, unchanged, which refers to the previous
    message. The mod stores replies by run and node. If several processes serve the nodes (Ray), each process has only
    the replies that it made, so a node that moves to another process is silent for a round.
    """
    told = Liars.of(liars)
    kept: dict[tuple[int, int], Message] = {}

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if not told.include(Addressee.of(message, context)):
            return reply
        node = (context.run_id, context.node_id)
        late = kept.get(node)
        kept[node] = reply
        return late  # type: ignore[return-value]  # None in the first round: no reply

    return mod


def from_round(mod: Mod, first: int) -> Mod:
    """Return a mod that applies another mod from round `first` on, and does nothing before."""

    def later(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        return mod(message, context, call_next) if _round_number(message) >= first else call_next(message, context)

    return later


def label_flip_mod(liars: Liars | Collection[int] | None = None) -> Mod:
    """Return a mod that makes nodes poison their data: they train honestly, but on labels C - 1 - y.

    The mod sets "flip-labels" in a copy of the node's config. The client must pass its labels through
    `solon_fl.simulations.attacks.seen_labels`, or it stays honest.
    """
    told = Liars.of(liars)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if told.include(Addressee.of(message, context)):
            context = copy.copy(context)
            context.node_config = {**context.node_config, FLIP_LABELS: True}
        return call_next(message, context)

    return mod


def malformed_mod(liars: Liars | Collection[int] | None = None, how: Malformation | None = None) -> Mod:
    """Return a mod that makes nodes send invalid replies.

    Parameters
    ----------
    liars : collection of int or Liars, optional
        As for `attack_mod`.
    how : str, optional
        One of `MALFORMATIONS`. Default: each node has its own, chosen by its number.
    """
    if how is not None:
        check_one_of("how", how, MALFORMATIONS)
    told = Liars.of(liars)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        node = Addressee.of(message, context)
        reply = call_next(message, context)
        if not told.include(node) or reply.has_error():
            return reply
        return _malformed(reply, how or MALFORMATIONS[node.number % len(MALFORMATIONS)])

    return mod


def _round_number(message: Message) -> int:
    """Return the server round, which every Flower strategy puts into the message's config."""
    for record in message.content.config_records.values():
        if isinstance(number := record.get("server-round"), int):
            return number
    raise ConfigurationError("an attack needs the server round; the message has no config with 'server-round'.")


def _arrays(reply: Message) -> dict[tuple[str, str], Array]:
    return {
        (record_name, name): array
        for record_name, record in reply.content.array_records.items()
        for name, array in record.items()
        if array.dtype.startswith("float")
    }


def _vector(reply: Message) -> Tensor:
    """Return all floating-point arrays of a reply as one vector."""
    return torch.cat([trusted_tensor(array).reshape(-1) for array in _arrays(reply).values()])


def _with_vector(reply: Message, vector: Tensor) -> Message:
    """Return the reply with the vector's values in its arrays."""
    start = 0
    for (record_name, name), array in _arrays(reply).items():
        old = trusted_tensor(array)
        values = vector[start : start + old.numel()].view(old.shape).to(old.dtype)
        reply.content.array_records[record_name][name] = to_array(values)
        start += old.numel()
    return reply


def _malformed(reply: Message, how: Malformation) -> Message:
    """Corrupt the first array of every record of a reply."""
    for record in reply.content.array_records.values():
        name, array = next(iter(record.items()))
        values = trusted_tensor(array)
        if how == "shape":
            record[name] = to_array(torch.cat([values.reshape(-1), values.reshape(-1)]))
        elif how == "dtype":
            record[name] = to_array(values.to(torch.int64))
        elif how == "names":
            record["unexpected"] = record.pop(name)
        elif how == "garbage":
            garbage = np.random.default_rng(0).bytes(len(array.data))
            record[name] = Array(dtype=array.dtype, shape=tuple(array.shape), stype=array.stype, data=garbage)
        else:
            # The same number of bytes, but a header that promises 100 billion numbers.
            forged = array.data.replace(f"({values.shape[0]},".encode(), b"(99999999999,", 1)[: len(array.data)]
            record[name] = Array(dtype=array.dtype, shape=tuple(array.shape), stype=array.stype, data=forged)
    return reply
