"""The node's part of Draco."""

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import Tensor

from solon_fl.baselines.draco.task import DracoTask
from solon_fl.clients.keeping import downlink_mod
from solon_fl.clients.mixin import SolonClientMixin
from solon_fl.task import ARRAYS, SHARE, Batch
from solon_fl.wire import to_array

__all__ = ["draco_client_app"]


def draco_client_app(client: SolonClientMixin, mods: list[Mod] | None = None) -> ClientApp:
    """Return a ClientApp that runs a Solon client, with its model and its `batch_loss`, under `DracoStrategy`.

    Parameters
    ----------
    client : SolonClientMixin
        The client, whose `mean_gradient` computes the batches that Draco's code assigns to this node.
    mods : list of Flower mods, optional
        Mods that wrap training.

    Notes
    -----
    Cost: 2 s + 1 or more batches a round. The cyclic code weights the gradient of each batch by a different complex
    number. They are therefore computed one by one, and the reply is a (2, d) array of real and imaginary parts.
    """
    app = ClientApp()

    @app.train(mods=[downlink_mod, *(mods or [])])
    def train(message: Message, context: Context) -> Message:
        task = DracoTask.from_message(message)
        vector = _encoded(client, task, message.content.array_records[ARRAYS], context)
        return Message(RecordDict({SHARE: ArrayRecord({SHARE: to_array(vector)})}), reply_to=message)

    return app


def _encoded(client: SolonClientMixin, task: DracoTask, arrays: ArrayRecord, context: Context) -> Tensor:
    """Return the weighted sum of the gradients of the node's batches."""
    code = task.make_code()
    before = (task.round - 1) * task.num_nodes
    batches = [Batch(task.seed, task.round, number, before + number) for number in code.batches(task.number)]
    if not code.is_complex:  # equal weights
        return client.mean_gradient(arrays, batches, task.buffers, context)
    total: Tensor | None = None
    for batch, weight in zip(batches, code.weights(task.number), strict=True):
        gradient = client.mean_gradient(arrays, [batch], task.buffers, context)
        if total is None:
            total = torch.zeros(2, gradient.numel(), dtype=gradient.dtype, device=gradient.device)
        total[0].add_(gradient, alpha=float(weight.real))
        total[1].add_(gradient, alpha=float(weight.imag))
    assert total is not None
    return total
