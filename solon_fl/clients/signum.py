"""The node's part of Signum: momentum, and one bit a coordinate."""

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor

from solon_fl.clients.vector import flatten
from solon_fl.errors import ConfigurationError
from solon_fl.task import ARRAYS, CONFIG, SIGNS
from solon_fl.wire import to_array, trusted_tensor

__all__ = ["signum_mod"]

STATE = "solon_fl.signum"  # in Context.state: the momentum


def signum_mod(momentum: float = 0.9, buffers: tuple[str, ...] = ()) -> Mod:
    """Return a mod that sends the signs of the momentum of what a train function returns, for `SignumStrategy`.

    Put it on the train function of a ClientApp: ``@app.train(mods=[signum_mod()])``. That returns the gradient of
    a batch of the node's own in its one ArrayRecord, one array per floating-point entry of the model, same names
    and order; where a buffer stands, its change.

    Parameters
    ----------
    momentum : float
        beta of m = beta m + (1 - beta) g, in [0, 1); 0 is signSGD. m is kept in the node's Context.
    buffers : tuple of str
        Those of the strategy, ``buffer_names(model)``: their changes are sent as they are.

    Raises
    ------
    ConfigurationError
        When called with a momentum out of its range.

    References
    ----------
    Bernstein et al., ICLR 2019, algorithm 1.
    """
    if not 0 <= momentum < 1:
        raise ConfigurationError(f"momentum must be in [0, 1); got momentum={momentum}.")

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
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
    """Return bits that differ from node to node and from round to round, and nothing else."""
    server_round = message.content.config_records[CONFIG]["server-round"]
    words = np.random.SeedSequence([int(str(server_round)), context.node_id]).generate_state(1, np.uint64)
    rng = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
    return torch.randint(0, 2, like.shape, generator=rng, dtype=torch.bool)


def _packed_signs(values: Tensor, bits_of_zeros: Tensor) -> Array:
    plus = torch.where(values == 0, bits_of_zeros, values > 0)
    return to_array(torch.from_numpy(np.packbits(plus.numpy())))
