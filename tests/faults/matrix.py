"""Faults of nodes and of the server as data: how each is provoked, and what its outcome must be.

`docs/reference/faults.md` shows this table; a test keeps the two equal.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from solon_fl.coding.digests import share_digest
from solon_fl.simulations.attacks.mods import MALFORMATIONS, malformed_mod
from solon_fl.task import DIGESTS, SHARE, TASK, SolonTask
from solon_fl.wire import to_array, trusted_tensor

Seen = Literal["lying", "malformed", "silent", "outvoted", "not at all"]
Call = Callable[[], Message]  # computes the honest reply


@dataclass
class Nodes:
    """The faulty nodes of a run: their ids, when they were faulty, and their memory."""

    faulty: frozenset[int]
    fired: set[tuple[int, int]] = field(default_factory=set)  # node id, round
    memory: dict[int, Message] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """One row.

    `act` takes a function that computes the honest reply, the message, the node's id, and the nodes. It returns or
    raises the faulty node's answer. `first_round` is the first round in which the node is seen as `seen`.
    """

    name: str
    happens: str
    seen: Seen
    act: Callable[[Call, Message, int, Nodes], Message | None]
    first_round: int = 1

    def mod(self, nodes: Nodes) -> Mod:
        """Return the mod that makes those nodes faulty, and records the rounds in which they were."""

        def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
            if context.node_id not in nodes.faulty:
                return call_next(message, context)
            nodes.fired.add((context.node_id, int(str(message.metadata.group_id))))
            reply = self.act(lambda: call_next(message, context), message, context.node_id, nodes)
            return reply  # type: ignore[return-value]  # None: the node computes its share, but never sends it

        return mod


@dataclass(frozen=True)
class ProcessFault:
    """A row that needs processes. `test` is the test that provokes it and checks the outcome."""

    name: str
    happens: str
    outcome: str
    test: str


def _raise(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    raise MemoryError("out of memory")


def _raise_within(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    """Raise while the gradient is computed, as if the backward pass met a fault of the device."""
    backward = torch.Tensor.backward

    def failing(*arguments: object, **options: object) -> None:
        raise RuntimeError("device-side assert triggered")

    torch.Tensor.backward = failing  # type: ignore[method-assign]
    try:
        return call()
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]


def _raise_after(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    call()
    raise OSError("disk full")


def _error(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    return Message(Error(code=0, reason="\x1b[2Jnot today\n" * 50), reply_to=message)


def _nothing(call: Call, message: Message, node_id: int, nodes: Nodes) -> None:
    call()


def _with_share(reply: Message, share: torch.Tensor) -> Message:
    reply.content = RecordDict({**reply.content, SHARE: ArrayRecord({SHARE: to_array(share)})})
    return reply


def _share(reply: Message) -> torch.Tensor:
    return trusted_tensor(reply.content.array_records[SHARE][SHARE])


def _filled(value: float) -> Callable[[Call, Message, int, Nodes], Message]:
    def act(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
        reply = call()
        return _with_share(reply, torch.full_like(_share(reply), value))

    return act


def _malformation(how: str) -> Callable[[Call, Message, int, Nodes], Message]:
    def act(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
        context = Context(run_id=1, node_id=node_id, node_config={}, state=RecordDict(), run_config={})
        mod = malformed_mod(None, how)  # type: ignore[arg-type]  # one of MALFORMATIONS
        return mod(message, context, lambda message, context: call())

    return act


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Call, Message, int, Nodes], Message]:
    def act(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
        reply = call()
        old = reply.content.array_records[SHARE][SHARE]
        new = Array(dtype=old.dtype, shape=tuple(old.shape), stype=old.stype, data=change(old.data))
        reply.content = RecordDict({**reply.content, SHARE: ArrayRecord({SHARE: new})})
        return reply

    return act


def _pickle(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    reply = call()
    data = np.array([{"os": "system"}], dtype=object).dumps()
    pickled = ArrayRecord({SHARE: Array("object", (1,), "numpy.ndarray", data)})
    reply.content = RecordDict({**reply.content, SHARE: pickled})
    return reply


def _wrong_record(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    reply = call()
    reply.content = RecordDict({**reply.content, SHARE: ConfigRecord({SHARE: 1.0})})
    return reply


def _replayed(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    """Send the content of the previous round's reply as the answer to this message."""
    reply = call()
    before = nodes.memory.get(node_id)
    nodes.memory[node_id] = Message(reply.content, reply_to=message)
    if before is not None:
        reply.content = before.content
    return reply


def _late(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message | None:
    """Answer with the previous round's reply, which names the message that it answers."""
    before = nodes.memory.get(node_id)
    nodes.memory[node_id] = call()
    return before


def _as_slot(call: Call, message: Message, slot: int) -> Message:
    """Compute the share of another slot."""
    task = message.content.config_records[TASK]
    mine = task["slot"]
    task["slot"] = slot
    try:
        return call()
    finally:
        task["slot"] = mine


def _swapped(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    """The faulty nodes of the group take each other's slots."""
    mine = message.content.config_records[TASK]["slot"]
    others = sorted(nodes.faulty)
    return _as_slot(call, message, others[1] - 1 if mine == others[0] - 1 else others[0] - 1)


def _copied(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    """Each faulty node sends the share of an honest one, slot 0."""
    return _as_slot(call, message, 0)


def _random_noise(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    reply = call()
    noise = torch.randn(_share(reply).shape, generator=torch.Generator().manual_seed(node_id))
    return _with_share(reply, noise)


def _slow(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    threading.Event().wait(0.02)  # later than the others, but before the deadline
    return call()


def _digests(change: Callable[[bytes], bytes | int | None]) -> Callable[[Call, Message, int, Nodes], Message]:
    """Send the right share with other digests, or without digests."""

    def act(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
        reply = call()
        digests = change(_digests_of(reply))
        records = {name: record for name, record in reply.content.items() if name != DIGESTS}
        if digests is not None:
            records[DIGESTS] = ConfigRecord({DIGESTS: digests})
        reply.content = RecordDict(records)
        return reply

    return act


def _digests_of(reply: Message) -> bytes:
    digests = reply.content.config_records[DIGESTS][DIGESTS]
    assert isinstance(digests, bytes)
    return digests


def _old_digests(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    """Send the right share with the digests of the previous round."""
    before = nodes.memory.get(node_id)
    reply = call()
    nodes.memory[node_id] = Message(reply.content, reply_to=message)
    if before is not None:
        reply.content = RecordDict({**reply.content, DIGESTS: before.content[DIGESTS]})
    return reply


def _consistent_lie(call: Call, message: Message, node_id: int, nodes: Nodes) -> Message:
    """Send minus twice the share, with digests of what all nodes would then send: the same on every faulty node."""
    task = SolonTask.from_message(message)
    lies = [-2 * _share(_as_slot(call, message, slot)) for slot in range(task.group_size)]
    reply = _with_share(call(), lies[task.slot])
    digests = b"".join(share_digest(lie, task.digest_key) for lie in lies)
    reply.content[DIGESTS] = ConfigRecord({DIGESTS: digests})
    return reply


FAULTS = (
    Fault("crash before computing", "the node's program raises at once", "malformed", _raise),
    Fault("crash while computing", "the backward pass raises", "malformed", _raise_within),
    Fault("crash after computing", "the node's program raises after its computation", "malformed", _raise_after),
    Fault("error reply", "the reply is an error with control characters in its text", "malformed", _error),
    Fault("no reply", "the node computes its share, but never sends it", "silent", _nothing),
    Fault("slow", "the node replies later than the others, but in time", "not at all", _slow),
    Fault("late", "the reply to a round arrives in the next one", "silent", _late),
    Fault("wrong names", "the share has another name", "malformed", _malformation("names")),
    Fault("wrong record", "a ConfigRecord in place of the share", "malformed", _wrong_record),
    Fault("wrong shape", "an array of twice the share's length", "malformed", _malformation("shape")),
    Fault("wrong dtype", "int64 in place of float32", "malformed", _malformation("dtype")),
    Fault("forged header", "a header that announces 745 GiB", "malformed", _malformation("forged-header")),
    Fault("garbage", "random bytes in place of an array", "malformed", _malformation("garbage")),
    Fault("truncated bytes", "half of the share's bytes", "malformed", _bytes(lambda data: data[: len(data) // 2])),
    Fault("2x payload", "the share's bytes twice", "malformed", _bytes(lambda data: data * 2)),
    Fault("no bytes", "an array without any bytes", "malformed", _bytes(lambda data: b"")),
    Fault("pickle", "a pickled object in place of an array", "malformed", _pickle),
    Fault("NaN", "every number is NaN", "malformed", _filled(float("nan"))),
    Fault("infinity", "every number is infinite", "malformed", _filled(float("inf"))),
    Fault("zeros", "every number is zero", "lying", _filled(0.0)),
    Fault("denormals", "every number is 1e-40", "lying", _filled(1e-40)),
    Fault("huge", "every number is 3e38", "lying", _filled(3e38)),
    Fault("noise", "random numbers", "lying", _random_noise),
    Fault("replayed share", "the share of the previous round", "lying", _replayed, first_round=2),
    Fault("swapped slots", "two nodes send each other's share", "lying", _swapped),
    Fault("copied share", "two nodes send the share of a third one", "lying", _copied),
)
DIGEST_FAULTS = (  # with verification="digest" only
    Fault("no digests", "the right share without digests", "malformed", _digests(lambda digests: None)),
    Fault("digests of a wrong type", "a number in place of the digests", "malformed", _digests(lambda digests: 7)),
    Fault("digests cut short", "one byte is missing", "malformed", _digests(lambda digests: digests[:-1])),
    Fault("huge digests", "a thousand times as many", "malformed", _digests(lambda digests: 1000 * digests)),
    Fault(
        "wrong digests", "the right share with zeros as digests", "outvoted", _digests(lambda data: bytes(len(data)))
    ),
    Fault(
        "shuffled digests",
        "the right share with the digests in other slots",
        "outvoted",
        _digests(lambda digests: digests[32:] + digests[:32]),
    ),
    Fault("replayed digests", "the right share with the digests of the previous round", "outvoted", _old_digests, 2),
    Fault("consistent lie", "a wrong share with digests that match it", "lying", _consistent_lie),
)
assert {"names", "shape", "dtype", "forged-header", "garbage"} == set(MALFORMATIONS)

OUTCOMES = {
    "malformed": "an erasure, because the reply is not a share; logged and reported with the reason; an offence",
    "silent": "an erasure at the round's deadline, unless the group is decoded before; no offence",
    "lying": "located and named every time; an offence",
    "outvoted": "outvoted by s + 1 nodes with equal digests; reported in `different_bits`; no offence",
    "not at all": "used, or no longer needed",
}

OPTIONS: dict[str, dict[str, Any]] = {
    "full redundancy": {},
    "digests": {"num_nodes": 10, "verification": "digest"},
    "digests, algebra possible": {"group_size": 7, "verification": "digest"},
    "reactive": {"redundancy": "reactive"},
    "reactive, with digests": {"num_nodes": 10, "verification": "digest", "redundancy": "reactive"},
    "regrouped": {"regroup": "round"},
    "patches": {"downlink": "delta"},
    "referee": {"num_nodes": 10, "referee": True},
    "referee, with digests": {"num_nodes": 6, "verification": "digest", "referee": True},
    "all together": {
        "num_nodes": 10,
        "verification": "digest",
        "redundancy": "reactive",
        "regroup": "round",
        "downlink": "delta",
    },
}

DEPLOYMENT = "tests/deployment/test_federation.py"
DOWNLINK = "tests/strategies/test_downlink.py"
RESIDENT = "tests/resident/test_resident.py"
STALLS = "test_stalled_replies_hold_up_nobody_and_who_restarts_has_its_place_again"
PROCESS_FAULTS = (
    ProcessFault(
        "lost the model",
        "with patches or frozen weights: a node was restarted, or its folder is gone",
        "it says so and is sent the whole model in the same round; counted as lacking in the ledger; no offence",
        f"{DOWNLINK}::test_a_node_that_lost_the_model_is_sent_all_of_it_in_the_same_round",
    ),
    ProcessFault(
        "always wants the whole model",
        "in every round, it says that it lacks the model, has another version, or has nothing",
        "sent the whole model less and less often; in between, its group only asks it if the others are not enough",
        f"{DOWNLINK}::test_whoever_always_wants_all_of_the_model_gets_it_less_and_less",
    ),
    ProcessFault(
        "applies no patch",
        "it says that it has the new version, but computes with the old one",
        "a wrong share, like any other",
        f"{DOWNLINK}::test_who_applies_no_patch_and_says_it_did_is_found_by_its_share",
    ),
    ProcessFault(
        "away for many rounds",
        "with patches: it rested, was silent or was away",
        "sent the patches that it missed or, if there are too many, the whole model",
        f"{DOWNLINK}::test_after_a_long_absence_all_is_sent_once",
    ),
    ProcessFault(
        "model damaged on a node's disk",
        "with patches or frozen weights: a bit flips in the file, or the file is cut short",
        "the node does not use the file, and says that it lacks the model",
        "tests/clients/test_keeping.py::test_what_is_damaged_on_disk_is_not_used",
    ),
    ProcessFault(
        "node disconnects",
        "it is no longer connected when a round begins",
        "a spare fills in; without a spare, its task is sent anyway, and it is silent",
        "tests/strategies/test_roster.py::test_a_spare_fills_in_and_steps_back",
    ),
    ProcessFault(
        "node reconnects",
        "it is back under another id, with the same key",
        "it has its old place again",
        "tests/strategies/test_roster.py::test_a_node_that_returns_takes_its_old_place_even_under_another_id",
    ),
    ProcessFault(
        "stranger under a known name",
        "it has the name of a node that is away, but another key",
        "treated as a stranger: a spare, or refused",
        "tests/strategies/test_roster.py::test_a_stranger_with_the_name_of_a_node_is_still_a_stranger",
    ),
    ProcessFault(
        "thousands of strangers",
        "they connect after the run began, each with its own key",
        "a few are kept as spares, or as refused, while they are connected; the others are only counted",
        "tests/strategies/test_roster.py::test_a_crowd_of_strangers_is_counted_and_not_kept",
    ),
    ProcessFault(
        "two keys under one name",
        "two nodes are registered under the same name, or nearly the same",
        "the log adds a part of their keys, and warns once",
        "tests/strategies/test_roster.py::test_two_keys_under_one_name_are_told_apart_in_the_log",
    ),
    ProcessFault(
        "reply after the round's deadline",
        "the reply arrives while the next round is under way",
        "dropped; counted as late in the ledger",
        "tests/strategies/test_solon.py::test_an_answer_to_an_earlier_round_is_entered_as_late_and_disturbs_nothing",
    ),
    ProcessFault(
        "slow, but honest",
        "so many nodes reply just before the deadline that no group can do without them; under every option",
        "used, unless a referee settles the group earlier; no offence; the model is that of a run without faults",
        "tests/faults/test_deadline.py::test_the_truth_just_before_the_deadline_is_used_and_no_offence",
    ),
    ProcessFault(
        "no evaluation",
        "with `client_evaluation`, a node that never evaluates",
        "waited for until the deadline once; from then on asked, but not waited for; no offence",
        "tests/strategies/test_solon_start.py::test_a_node_that_does_not_evaluate_is_waited_for_once",
    ),
    ProcessFault(
        "announced, never sent",
        "in a deployment: a reply is announced to the SuperLink in every round, but never sent",
        "silent; delays no other node; counted as stalled in the ledger once a deadline's time has passed; an offence "
        "from the second stall on",
        f"{DEPLOYMENT}::{STALLS}",
    ),
    ProcessFault(
        "dripped",
        "in a deployment: a reply of a hundred objects, of which one arrives every second",
        "treated as a reply that was never sent",
        f"{DEPLOYMENT}::{STALLS}",
    ),
    ProcessFault(
        "restarted in a round",
        "in a deployment: an honest node disconnects after it got its task, and comes back",
        "silent in that round; used from the next one on, in its old place; no offence",
        f"{DEPLOYMENT}::{STALLS}",
    ),
    ProcessFault(
        "died while it sent its reply",
        "a node announces its reply, dies, and comes back",
        "silent in that round; used from the next one on, though Flower waits three minutes for the rest of the reply; "
        "no offence",
        "tests/strategies/test_fetching.py::test_a_node_that_died_while_it_sent_is_heard_as_soon_as_it_is_back",
    ),
    ProcessFault(
        "second reply, reply to another message",
        "a node replies twice, or to a message that it was not sent",
        "dropped",
        "tests/strategies/test_exchange.py::test_a_second_reply_and_a_reply_to_something_else_are_dropped",
    ),
    ProcessFault(
        "reply that Flower can't read",
        "pulling the round's replies raises",
        "a warning; the node counts as silent, and no other node is affected",
        "tests/strategies/test_exchange.py::test_a_reply_that_cannot_be_inflated_costs_only_itself",
    ),
    ProcessFault(
        "kill -9 of the server",
        "at random moments, again and again",
        "the same program resumes from the last checkpoint; the final model is the same to the last bit",
        "tests/simulations/run/test_checkpoints.py::test_kill_9_at_random_moments_changes_nothing",
    ),
    ProcessFault(
        "second server on one checkpoint folder",
        "it starts while the first one runs",
        "it ends before its first round and names the process that uses the folder; a killed server leaves no lock",
        "tests/strategies/test_checkpoint.py::"
        "test_a_second_server_is_refused_before_it_does_anything_and_a_killed_one_leaves_no_lock",
    ),
    ProcessFault(
        "forged checkpoint",
        "its digests match, but its content is not a run's state",
        "the previous one is used; if there is none, a `CheckpointError` names the file",
        "tests/strategies/test_checkpoint.py::test_whatever_the_notes_hold_only_a_checkpoint_error_comes_out",
    ),
    ProcessFault(
        "kill -9 of flwr-serverapp",
        "in a deployment, in the middle of a round; then `flwr run` again",
        "the run resumes after the last saved round; its accuracies are within 0.3 points of those of a run without "
        "faults",
        f"{DEPLOYMENT}::test_a_killed_server_resumes_a_spare_fills_in_and_strangers_are_refused",
    ),
    ProcessFault(
        "kill -9 of a SuperNode",
        "in a deployment, in the middle of a round",
        "silent at first; away once Flower notices (30 to 60 s); then a spare fills in",
        f"{DEPLOYMENT}::test_a_killed_server_resumes_a_spare_fills_in_and_strangers_are_refused",
    ),
    ProcessFault(
        "SuperNode with an unregistered key",
        "in a deployment",
        "the SuperLink refuses it, and it ends",
        f"{DEPLOYMENT}::test_a_killed_server_resumes_a_spare_fills_in_and_strangers_are_refused",
    ),
    ProcessFault(
        "SuperNode that lies",
        "in a deployment: it sends the reverse gradient",
        "named by its registered name; the model learns",
        f"{DEPLOYMENT}::test_the_liar_alone_is_caught_by_name",
    ),
    ProcessFault(
        "Ctrl-C, SIGTERM of a deployment on one machine",
        "in a round, or while nodes start",
        "no process, port or file is left behind",
        "tests/deployment/test_loopback.py::test_an_interrupt_leaves_nothing",
    ),
    ProcessFault(
        "worker killed",
        "with [one process that stays](../how-to/deploy.md#let-one-process-stay): it dies during a message, or between "
        "two",
        "another one computes the message; if that dies, too, an error reply says how",
        f"{RESIDENT}::test_a_worker_that_dies_with_a_message_is_replaced_once",
    ),
    ProcessFault(
        "worker killed in a run",
        "in a deployment, kill -9",
        "another one computes the next round; the run continues",
        "tests/deployment/test_resident.py::test_a_worker_stays_is_replaced_when_killed_and_ends_with_its_supernode",
    ),
    ProcessFault(
        "SuperNode killed under a worker",
        "while the worker computes, or waits",
        "the worker ends within 2 s; no process or file is left behind",
        f"{RESIDENT}::test_a_worker_ends_with_its_supernode_whatever_it_does_and_leaves_nothing",
    ),
    ProcessFault(
        "worker and SuperNode killed",
        "the socket is left behind",
        "the next worker deletes it",
        f"{RESIDENT}::test_who_comes_next_deletes_what_was_left_when_everything_was_killed",
    ),
    ProcessFault(
        "two runs, or an app updated between runs",
        "one node has messages of both",
        "each has its own worker",
        f"{RESIDENT}::test_each_run_has_a_worker_of_its_own_and_so_has_an_updated_app",
    ),
    ProcessFault(
        "worker's folder not private",
        "it belongs to another user, is open to others, or is a link or a file",
        "logged; the message is computed without a worker",
        f"{RESIDENT}::test_a_folder_that_is_not_this_users_alone_is_refused_in_plain_words",
    ),
    ProcessFault(
        "stranger at the worker's socket",
        "another user's process, or one without the key",
        "gets no message and no answer; logged",
        f"{RESIDENT}::test_who_does_not_know_the_key_gets_no_message",
    ),
    ProcessFault(
        "long message",
        "it takes longer than a worker waits for the next one",
        "it is not cut off",
        f"{RESIDENT}::test_an_idle_worker_ends_but_not_in_the_middle_of_a_long_message",
    ),
    ProcessFault(
        "forking process killed",
        "with `solon_fl.resident.supernode`, kill -9",
        "Flower's own program is started for each message; the next SuperNode deletes what is left behind",
        "tests/resident/test_supernode.py::test_without_the_process_that_forks_flowers_own_program_is_started",
    ),
)


def as_markdown(faults: tuple[Fault, ...] = FAULTS) -> str:
    """Return the rows of the page's tables of faults."""
    return "\n".join(f"| {fault.name} | {fault.happens} | {OUTCOMES[fault.seen]} |" for fault in faults)


def options_as_markdown() -> str:
    """Return the rows of the page's table of options."""
    rows = []
    for name, changes in OPTIONS.items():
        settings = ", ".join(f"`{key}={value!r}`".replace("'", '"') for key, value in changes.items())
        rows.append(f"| {name} | {settings or 'the defaults'} |")
    return "\n".join(rows)


def processes_as_markdown() -> str:
    """Return the rows of the page's table of connections and processes."""
    return "\n".join(f"| {fault.name} | {fault.happens} | {fault.outcome} |" for fault in PROCESS_FAULTS)
