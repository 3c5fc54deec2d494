"""A Flower mod that turns an ordinary train function into a Solon node."""

from collections.abc import Collection
from typing import Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor

from solon_fl.clients.determinism import deterministic, strictly_deterministic
from solon_fl.clients.failures import explained
from solon_fl.clients.gradient import change_of, flatten
from solon_fl.clients.keeping import downlink_mod
from solon_fl.clients.share import share_reply, without_state
from solon_fl.clients.static import check_returned_static
from solon_fl.errors import ConfigurationError
from solon_fl.task import ARRAYS, SolonTask
from solon_fl.wire import trusted_tensor

__all__ = ["solon_mod"]

NEARLY = 0.1  # a vector this close to the model, as a fraction of its norm, is taken for a model, not a gradient


def solon_mod(returns: Literal["vector", "model"] = "vector", *, keeps_state: bool = False) -> Mod:
    """Return a mod that replaces the arrays that a train function returns with this node's coded share of them.

    Put it on the train function of a ClientApp: ``@app.train(mods=[solon_mod()])``. All nodes of a group must compute
    the same result, so take batches from ``SolonTask.from_message(message).batches``. While the function runs, torch is
    seeded for the group's round, on the CPU and the current GPU, and computes in full float32. Dropout and a
    DataLoader's shuffling thus draw the same numbers on all nodes; ``numpy`` and ``random`` are not seeded. With
    `SolonConfig.verification` "digest", nodes must compute the same bits, so torch uses deterministic kernels.

    MetricRecords and ConfigRecords that the function returns beside the arrays are sent unchanged and unprotected; no
    training depends on them. The server reports the median of a metric named "loss" (`RoundReport.training_loss`).

    Frozen, integer and boolean entries of the model must not change. If the function returns one that did, an error
    names it. The server counts ``num_batches_tracked``; a BatchNorm with ``momentum=None`` must be used once a batch.

    Parameters
    ----------
    returns : "vector" or "model"
        Meaning of the one ArrayRecord that the train function returns. "vector" is the gradient (the mean over the
        task's batches) or, in mode "update", the model's change: one array per floating-point or complex entry of the
        model, with the same names and order, and a buffer's change at the buffer's place. Frozen entries may be left
        out. "model" is the trained model, as in any Flower app (mode "update" only); the mod computes its change.
    keeps_state : bool
        Whether the train function gets the node's own ``context.state``, which persists between rounds. By default,
        the state is empty in every round, and thus the same on all nodes. An honest node whose result depends on
        earlier rounds counts as Byzantine from the first round that it misses, or from its first restart.

    Raises
    ------
    ConfigurationError
        If `returns` is unknown. In a round, if the returned arrays don't fit the model.
    """
    if returns not in ("vector", "model"):
        raise ConfigurationError(f"returns must be 'vector' or 'model'; got returns={returns!r}.")

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        return downlink_mod(message, context, lambda whole, own: answer(whole, own, call_next))

    def answer(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        task = SolonTask.from_message(message)
        if returns == "model" and task.mode == "gradient":
            raise ConfigurationError(
                "solon_mod(returns='model') needs mode='update'; got mode='gradient'; "
                "set SolonConfig(mode='update'), or return gradients and use solon_mod()."
            )
        arrays = message.content.array_records[ARRAYS]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        seed = task.batches[0].torch_seed
        with strictly_deterministic(task.needs_equal_bits), deterministic(seed, device), explained():
            reply = call_next(message, context if keeps_state else without_state(context))
        if reply.has_error():
            return reply
        returned = _only_record(reply)
        frozen = task.frozen
        _check_names(returned, arrays, frozen)
        check_returned_static(returned, arrays, frozen, is_change=returns == "vector")
        vector, model = _moving(returned, frozen), _moving(arrays, frozen)
        if returns == "model":
            vector = change_of(vector, model)
        elif bool((vector - model).norm() < NEARLY * model.norm()):
            raise ConfigurationError(
                "solon_mod(returns='vector') needs the gradient or the model's change; the train function returned "
                "arrays that are nearly the model itself; use solon_mod(returns='model') with mode='update', or return "
                "gradients."
            )
        return share_reply(message, task, vector, _beside(reply))

    return mod


def _only_record(reply: Message) -> ArrayRecord:
    records = list(reply.content.array_records.values())
    if len(records) != 1:
        raise ConfigurationError(f"the train function must return one ArrayRecord; got {len(records)}.")
    return records[0]


def _beside(reply: Message) -> dict[str, MetricRecord | ConfigRecord]:
    """Return a reply's records other than its arrays."""
    records = reply.content.items()
    return {name: record for name, record in records if isinstance(record, (MetricRecord, ConfigRecord))}


def _moving(record: ArrayRecord, frozen: Collection[str]) -> Tensor:
    """Return the entries of a record that are encoded, as one vector."""
    return flatten({name: trusted_tensor(array) for name, array in record.items() if name not in frozen})


def _check_names(returned: ArrayRecord, arrays: ArrayRecord, frozen: Collection[str]) -> None:
    """Check that `returned` holds the model's encoded entries in order; others are allowed."""

    def continuous(record: ArrayRecord) -> dict[str, tuple[int, ...]]:
        floating = {name: array for name, array in record.items() if array.dtype.startswith(("float", "complex"))}
        return {name: tuple(array.shape) for name, array in floating.items() if name not in frozen}

    got, wanted = continuous(returned), continuous(arrays)
    if list(got.items()) != list(wanted.items()):
        odd = sorted(set(got.items()) ^ set(wanted.items())) or "their order"
        raise ConfigurationError(
            "the train function must return one array per floating-point or complex entry of the model that is not "
            f"frozen; they differ in {odd}."
        )
