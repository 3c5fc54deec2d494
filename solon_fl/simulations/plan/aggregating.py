"""The server's work under baselines that only aggregate gradients, for timing."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import MultiKrum
from torch import Tensor

from solon_fl.baselines.rules import bulyan
from solon_fl.baselines.signum import majority_of_signs
from solon_fl.simulations.run._compat import become_server
from solon_fl.task import ARRAYS
from solon_fl.wire import to_array

__all__ = ["AGGREGATORS", "Aggregator", "aggregation", "least_nodes"]

Aggregator = Literal["signum", "multikrum", "bulyan"]
AGGREGATORS: tuple[Aggregator, ...] = get_args(Aggregator)


def least_nodes(name: Aggregator, liars: int) -> int:
    """Return how many nodes an aggregator needs to tolerate so many liars."""
    return {"signum": 2 * liars + 1, "multikrum": 2 * liars + 3, "bulyan": 4 * liars + 3}[name]


def aggregation(name: Aggregator, vectors: Tensor, liars: int) -> Callable[[], object]:
    """Return a function that aggregates vectors once, starting from replies in the form in which they arrive.

    Parameters
    ----------
    name : "signum", "multikrum" or "bulyan"
        MultiKrum is Flower's. Bulyan is `solon_fl.baselines.rules.bulyan`.
    vectors : Tensor, (n, d), float32 or float64
        The gradient of each node.
    liars : int
        Number of liars among all nodes.
    """
    if name == "signum":
        dim = vectors.shape[1]
        rng = torch.Generator().manual_seed(0)
        packed = list(torch.randint(256, (len(vectors), -(-dim // 8)), dtype=torch.uint8, generator=rng))
        return lambda: majority_of_signs(packed, dim)
    if name == "bulyan":
        sent = list(vectors)
        return lambda: bulyan(torch.stack(sent), liars)
    become_server()
    strategy = MultiKrum(num_malicious_nodes=liars, num_nodes_to_select=len(vectors) - liars)
    arrays = [to_array(vector) for vector in vectors]

    def aggregate() -> object:
        replies = []
        for array in arrays:  # new replies each time, because aggregation consumes them
            content = RecordDict({ARRAYS: ArrayRecord({"vector": array}), "metrics": MetricRecord({"num-examples": 1})})
            replies.append(Message(content, reply_to=Message(RecordDict(), 1, MessageType.TRAIN)))
        return strategy.aggregate_train(1, replies)

    return aggregate
