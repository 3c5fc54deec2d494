"""Signum with majority vote, which sends one bit for each coordinate."""

import logging
import math
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor

from solon_fl.baselines.vectors import Layout, VectorStrategy, Verdict
from solon_fl.clients.gradient import flatten
from solon_fl.clients.keeping import downlink_mod
from solon_fl.errors import ConfigurationError
from solon_fl.strategies.model import ServerModel
from solon_fl.task import ARRAYS, CONFIG
from solon_fl.wire import to_array, trusted_tensor

__all__ = ["SignumStrategy", "majority_of_signs", "signum_mod"]

SIGNS = "signs"  # node -> server: an ArrayRecord with "signs" and, if the model has any, "buffers"
STATE = "solon_fl.signum"  # in Context.state: the momentum
BLOCK = 1 << 16  # bytes of each node that are counted at once
logger = logging.getLogger("flwr")


class SignumStrategy(VectorStrategy):
    """signSGD with momentum and majority vote: nodes send signs, and the server steps by the sign of the majority.

    Put `signum_mod` on the nodes' train function. This is a baseline to compare Solon with.

    Parameters
    ----------
    num_nodes : int
        P, the number of nodes in the run.
    optimizer : callable
        As for `SolonStrategy`. Its gradient is the vote: +1, -1, or 0 for a tie. The paper uses SGD with a small
        learning rate, and without momentum because the nodes have it.
    buffers, on_round
        See `SolonStrategy`. There is no vote on the buffers' changes. Nodes send them as they are, and the server takes
        the median of each entry.

    Notes
    -----
    Guarantee: a coordinate's vote is right if the honest nodes with the right sign outnumber the honest nodes with the
    wrong sign and the liars together. Attacks that shift coordinates whose honest signs are nearly balanced (ALIE)
    change the vote.

    Memory: n d / 8 bytes of replies and a few MB.

    Differs from the paper: the bit of an exact zero is drawn at random, so that zeros cancel. In the paper, sign(0) = 0
    is a third value, which one bit can't express.

    References
    ----------
    Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with majority vote is communication efficient and fault
    tolerant", ICLR 2019, algorithm 1. The code of DETOX votes on sign(sum of gradients), which is another method.
    """

    def summary(self) -> None:
        """Log the settings."""
        logger.info("\t├──> Signum with majority vote of %d nodes", self.num_nodes)

    def layout(self, model: ServerModel) -> tuple[str, Layout]:
        """See `VectorStrategy.layout`."""
        num_buffers = int(model.is_buffer.sum())
        layout: Layout = {"signs": ((math.ceil((model.dim - num_buffers) / 8),), torch.uint8)}
        if num_buffers:
            layout["buffers"] = ((num_buffers,), model.vector.dtype)
        return SIGNS, layout

    def combine(self, sent: Mapping[int, dict[str, Tensor]], model: ServerModel) -> Verdict:
        """See `VectorStrategy.combine`."""
        is_buffer = model.is_buffer
        votes = majority_of_signs([arrays["signs"] for arrays in sent.values()], int((~is_buffer).sum()))
        direction = torch.empty_like(model.vector)
        direction[~is_buffer] = votes.to(direction.dtype)
        if is_buffer.any():
            changes = torch.stack([arrays["buffers"] for arrays in sent.values()])
            direction[is_buffer] = changes.quantile(0.5, dim=0) if len(changes) > 1 else changes[0]
        return direction, ()


def majority_of_signs(packed: list[Tensor], dim: int) -> Tensor:
    """Return the majority's sign of each coordinate: -1, 0 (a tie) or 1, (dim,) int8.

    Parameters
    ----------
    packed : list of Tensor, (ceil(dim / 8),) uint8
        Each node's signs, one bit for each coordinate, most significant bit first; 1 is plus.
    """
    votes = np.empty(8 * len(packed[0]), dtype=np.int8)
    for start in range(0, len(packed[0]), BLOCK):
        block = np.stack([bits[start : start + BLOCK].numpy() for bits in packed])
        plus = np.unpackbits(block, axis=1).sum(axis=0, dtype=np.int32)
        votes[8 * start : 8 * start + len(plus)] = np.sign(2 * plus - len(packed))
    return torch.from_numpy(votes[:dim])


def signum_mod(momentum: float = 0.9, buffers: tuple[str, ...] = ()) -> Mod:
    """Return a mod that sends the signs of a train function's gradients, with momentum, for `SignumStrategy`.

    Put it on the train function of a ClientApp: ``@app.train(mods=[signum_mod()])``. The function must return the
    gradient of one of the node's own batches in its only ArrayRecord: one array per floating-point entry of the model,
    with the same names and order, and a buffer's change at the buffer's place.

    Parameters
    ----------
    momentum : float
        beta of ``m = beta m + (1 - beta) g``, in [0, 1); 0 is signSGD. The node's Context keeps m.
    buffers : tuple of str
        The strategy's buffers, ``buffer_names(model)``, whose changes are sent as they are.

    Raises
    ------
    ConfigurationError
        If the momentum is out of its range.

    References
    ----------
    Bernstein et al., ICLR 2019, algorithm 1.
    """
    if not 0 <= momentum < 1:
        raise ConfigurationError(f"momentum must be in [0, 1); got momentum={momentum}.")

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        return downlink_mod(message, context, lambda whole, own: answer(whole, own, call_next))

    def answer(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        reply = call_next(message, context)
        if reply is None or reply.has_error():
            return reply
        (record,) = reply.content.array_records.values()
        tensors = {name: trusted_tensor(array) for name, array in record.items()}
        change = {name: tensor for name, tensor in tensors.items() if name in buffers}
        gradient = flatten({name: tensor for name, tensor in tensors.items() if name not in buffers})
        average = _averaged(gradient, momentum, context)
        arrays = {"signs": _packed_signs(average, _random_bits(message, context, average))}
        if change:
            arrays["buffers"] = to_array(flatten(change))
        return Message(RecordDict({SIGNS: ArrayRecord(arrays)}), reply_to=message)

    return mod


def _averaged(gradient: Tensor, momentum: float, context: Context) -> Tensor:
    """Update the momentum in the node's state and return it."""
    state = context.state.array_records.get(STATE)
    average = trusted_tensor(state[ARRAYS]) if state is not None else torch.zeros_like(gradient)
    average.mul_(momentum).add_(gradient, alpha=1 - momentum)
    context.state[STATE] = ArrayRecord({ARRAYS: to_array(average)})
    return average


def _random_bits(message: Message, context: Context, like: Tensor) -> Tensor:
    """Return random bits that depend on the node and the round only."""
    server_round = message.content.config_records[CONFIG]["server-round"]
    words = np.random.SeedSequence([int(str(server_round)), context.node_id]).generate_state(1, np.uint64)
    rng = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
    return torch.randint(0, 2, like.shape, generator=rng, dtype=torch.bool, device="cpu")


def _packed_signs(values: Tensor, bits_of_zeros: Tensor) -> Array:
    plus = torch.where(values == 0, bits_of_zeros, values > 0)
    return to_array(torch.from_numpy(np.packbits(plus.numpy())))
