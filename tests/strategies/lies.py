"""Everything that a liar may send to a run with a referee: whole lies, tiny ones, and lies beside the share."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp.typing import Mod
from flwr.serverapp import Grid
from torch import Tensor, nn

from solon_fl import SolonConfig
from solon_fl.coding.digests import share_digests
from solon_fl.coding.sections import spread
from solon_fl.simulations import InProcessGrid
from solon_fl.strategies import RoundReport, SolonStrategy, buffer_names
from solon_fl.task import ARRAYS, DIGESTS, SHARE, TASK, UNREACHED, SolonTask, share_name
from solon_fl.wire import coded_sizes, to_array, trusted_tensor
from tests.support import REMEMBERING, SGD, initial_model, record_of, small_config, vector_of

Call = Callable[[], Message]
RATE = ConfigRecord({"lr": 0.05})  # of local steps, in mode "update"
Lie = Callable[[Message, SolonTask, Message, Call], Message]  # takes reply, task, message, and a function for replies


def refereed(**changes: Any) -> SolonConfig:
    """One group of s + k + e = 5 nodes, of which two may lie. Every share is a third of the gradient."""
    s, k, e = (changes.setdefault(*entry) for entry in (("byzantine", 2), ("compression", 3), ("stragglers", 0)))
    digest = changes.get("verification") == "digest"
    changes.setdefault("num_nodes", (max(s + 1, k) if digest else s + k) + e)
    return small_config(**{"referee": True, "code": "exact", "batches_per_group": 2, **changes})


def shares_of(reply: Message) -> dict[str, Tensor]:
    return {name: trusted_tensor(array).clone() for name, array in reply.content.array_records[SHARE].items()}


def with_shares(reply: Message, change: Callable[[Tensor], Tensor]) -> Message:
    """Change every share in a reply."""
    reply.content[SHARE] = ArrayRecord({name: to_array(change(share)) for name, share in shares_of(reply).items()})
    return reply


def changed(change: Callable[[Tensor], Tensor]) -> Lie:
    return lambda reply, task, message, call: with_shares(reply, change)


def flipped(share: Tensor, bit: int = 0) -> Tensor:
    """Flip one bit of the first number."""
    flipped = share.clone()
    flipped.view(torch.int32)[0] ^= 1 << bit
    return flipped


def noise(reply: Message, task: SolonTask, message: Message, call: Call) -> Message:
    generator = torch.Generator().manual_seed(1000 * task.round + task.slot)
    return with_shares(reply, lambda share: torch.randn(share.shape, generator=generator))


def vector_of_group(task: SolonTask, message: Message, call: Call) -> Tensor:
    """Compute the group's gradient as a referee does, padded for the task's code."""
    message.content[TASK] = replace(task, slot=0, group_size=1, compression=1, also=()).to_record()
    vector = shares_of(call())[SHARE]
    message.content[TASK] = task.to_record()
    sizes = coded_sizes(message.content.array_records[ARRAYS], task.frozen)
    return spread(vector, sizes, task.make_code().multiple)


def of_another_gradient(change: Callable[[Tensor, SolonTask], Tensor]) -> Lie:
    """Send the reply of an honest node for another gradient: its shares, and digests that match all of them."""

    def lie(reply: Message, task: SolonTask, message: Message, call: Call) -> Message:
        vector = change(vector_of_group(task, message, call), task)
        code = task.make_code()
        slots = {SHARE: task.slot, **{share_name(slot): slot for slot in task.also}}
        reply.content[SHARE] = ArrayRecord({name: to_array(code.encode(vector, slot)) for name, slot in slots.items()})
        if task.verification == "digest":
            reply.content[DIGESTS] = ConfigRecord({DIGESTS: share_digests(code, vector, task.digest_key)})
        return reply

    return lie


def same_random_gradient(vector: Tensor, task: SolonTask) -> Tensor:
    return torch.randn(vector.shape, generator=torch.Generator().manual_seed(task.round))


def with_digests(change: Callable[[bytes], bytes]) -> Lie:
    def lie(reply: Message, task: SolonTask, message: Message, call: Call) -> Message:
        if task.verification == "digest":
            digests = reply.content.config_records[DIGESTS][DIGESTS]
            assert isinstance(digests, bytes)
            reply.content[DIGESTS] = ConfigRecord({DIGESTS: change(digests)})
        return reply

    return lie


def says_unreached(*names: str) -> Lie:
    def lie(reply: Message, task: SolonTask, message: Message, call: Call) -> Message:
        reply.content[UNREACHED] = ConfigRecord({"names": list(names)})
        return reply

    return lie


def malformed(reply: Message, task: SolonTask, message: Message, call: Call) -> Message:
    reply.content[SHARE] = ArrayRecord({SHARE: to_array(torch.zeros(1))})
    return reply


LIES: dict[str, Lie] = {
    "reverse": changed(lambda share: -share),
    "noise": noise,
    "zeros": changed(torch.zeros_like),
    "huge": changed(lambda share: torch.full_like(share, 3e38)),
    "nan": changed(lambda share: torch.full_like(share, math.nan)),
    "one infinity": changed(lambda share: torch.cat([share[:-1], torch.tensor([math.inf])])),
    "one bit": changed(flipped),
    "a high bit": changed(lambda share: flipped(share, 30)),
    "times 1 + 1e-7": changed(lambda share: share * (1 + 2e-7)),
    "times 1 + 1e-4": changed(lambda share: share * (1 + 1e-4)),
    "another gradient": of_another_gradient(same_random_gradient),
    "the reverse gradient": of_another_gradient(lambda vector, task: -vector),
    "minus ten times the gradient": of_another_gradient(lambda vector, task: -10 * vector),
    "half the gradient": of_another_gradient(lambda vector, task: vector / 2),
    "nearly the gradient": of_another_gradient(lambda vector, task: vector * (1 + 1e-6)),
    "digests of zeros": with_digests(lambda digests: bytes(len(digests))),
    "shuffled digests": with_digests(lambda digests: digests[32:] + digests[:32]),
    "no parameter has a gradient": says_unreached("weight", "bias"),
    "one has none": says_unreached("bias"),
    "malformed": malformed,
}


def liars_mod(kinds: Mapping[int, str], lies_in: Callable[[int, int], bool] = lambda server_round, node: True) -> Mod:
    """Return a mod by which the nodes with these ids lie, each in its own way, in the rounds that `lies_in` selects."""

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        task = SolonTask.from_message(message) if TASK in message.content else None
        reply: Message = call_next(message, context)
        if task is None or context.node_id not in kinds or not lies_in(task.round, context.node_id):
            return reply
        if reply.has_error() or SHARE not in reply.content:
            return reply
        return LIES[kinds[context.node_id]](reply, task, message, lambda: call_next(message, context))

    return mod


def silent(nodes: set[int], since: int = 1) -> Mod:
    def mod(message: Message, context: Context, call_next: Any) -> Message:
        if context.node_id in nodes and TASK in message.content and SolonTask.from_message(message).round >= since:
            return None  # type: ignore[return-value]  # a node that never answers
        reply: Message = call_next(message, context)
        return reply

    return mod


def questions(reports: list[RoundReport]) -> int:
    """Return how often the referee was asked in a run."""
    return sum(len(report.referee_reports) for report in reports)


def named(reports: list[RoundReport]) -> set[int]:
    """Return all nodes that were accused of anything."""
    found = set[int]()
    for report in reports:
        found |= {*report.corrupt_nodes, *report.different_nodes, *report.malformed_nodes, *report.convicted_nodes}
    return found


def quarantined(strategy: SolonStrategy) -> set[int]:
    return {record.node_id for record in strategy.ledger.values() if record.state == "quarantined"}


def play(
    config: SolonConfig,
    kinds: Mapping[int, str] | None = None,
    lies_in: Callable[[int, int], bool] = lambda server_round, node: True,
    *,
    mods: Iterable[Mod] = (),
    client: Any = REMEMBERING,
    referee: Any = None,
    model: nn.Module | None = None,
    grid: Grid | None = None,
    num_spares: int = 0,
    rounds: int = 4,
    timeout: float = 0.05,
    **options: Any,
) -> tuple[Tensor, list[RoundReport], SolonStrategy]:
    """Train with these liars; return the final model, the reports of all rounds and the strategy."""
    model, reports = model or initial_model(), list[RoundReport]()
    strategy = SolonStrategy(
        config,
        SGD,
        buffers=buffer_names(model),
        on_round=lambda report: reports.append(report),
        referee=(referee or client) if config.referee else None,
        **{"projection_seed": 1, **options},
    )
    app = client.client_app([liars_mod(kinds or {}, lies_in), *mods])
    grid = grid or InProcessGrid(app, config.num_nodes + num_spares)
    result = strategy.start(grid, record_of(model), num_rounds=rounds, timeout=timeout, train_config=RATE)
    return vector_of(result.arrays), reports, strategy
