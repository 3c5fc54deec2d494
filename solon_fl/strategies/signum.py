"""Signum with majority vote: one bit a coordinate."""

import logging
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from solon_fl.strategies.model import ServerModel
from solon_fl.strategies.vectors import Layout, VectorStrategy, Verdict
from solon_fl.task import SIGNS

__all__ = ["SignumStrategy", "majority_of_signs"]

BLOCK = 1 << 16  # bytes of every node counted at once
logger = logging.getLogger("flwr")


class SignumStrategy(VectorStrategy):
    """signSGD with momentum and majority vote: nodes send signs, the server steps by the sign that most sent.

    Put `solon_fl.clients.signum_mod` on the nodes' train function. A baseline: it is what Solon is compared with.

    Parameters
    ----------
    num_nodes : int
        P, nodes in the run.
    optimizer : callable
        As for `SolonStrategy`; it is given the vote, +1, -1 or 0 for a tie, as the gradient. The paper's is SGD
        without momentum (that is the nodes') and a small learning rate.
    buffers, on_round
        See `SolonStrategy`. The buffers' changes have no sign to vote on: nodes send them as they are, and the
        server takes the median of each entry.

    Notes
    -----
    Guarantee: a coordinate's vote is right if the honest nodes whose sign is right outnumber the others and the
    liars; attacks that shift where honest signs are nearly balanced (ALIE) turn the vote.
    Memory: n d / 8 bytes of replies and a few MB.
    Differs from the paper: the bit of an exact zero is drawn at random, so that zeros cancel; in the paper sign(0) = 0
    is a third value, which one bit can't carry.

    References
    ----------
    Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with majority vote is communication efficient and fault
    tolerant", ICLR 2019, algorithm 1. DETOX's code votes sign(sum of gradients) instead, which is another method.
    """

    def summary(self) -> None:
        """Log the settings."""
        logger.info("\t├──> Signum with majority vote of %d nodes", self.num_nodes)

    def _layout(self, model: ServerModel) -> tuple[str, Layout]:
        num_buffers = int(model.is_buffer.sum())
        layout: Layout = {"signs": ((math.ceil((model.dim - num_buffers) / 8),), torch.uint8)}
        if num_buffers:
            layout["buffers"] = ((num_buffers,), model.vector.dtype)
        return SIGNS, layout

    def _combine(self, sent: Mapping[int, dict[str, Tensor]], model: ServerModel) -> Verdict:
        is_buffer = model.is_buffer
        votes = majority_of_signs([arrays["signs"] for arrays in sent.values()], int((~is_buffer).sum()))
        direction = torch.empty_like(model.vector)
        direction[~is_buffer] = votes.to(direction.dtype)
        if is_buffer.any():
            changes = torch.stack([arrays["buffers"] for arrays in sent.values()])
            direction[is_buffer] = changes.quantile(0.5, dim=0) if len(changes) > 1 else changes[0]
        return direction, ()


def majority_of_signs(packed: list[Tensor], dim: int) -> Tensor:
    """Return the sign that most of n nodes sent for each coordinate: -1, 0 (a tie) or 1, (dim,) int8.

    Parameters
    ----------
    packed : list of Tensor, (ceil(dim / 8),) uint8
        A bit a coordinate, most significant first: 1 for plus.
    """
    votes = np.empty(8 * len(packed[0]), dtype=np.int8)
    for start in range(0, len(packed[0]), BLOCK):
        block = np.stack([bits[start : start + BLOCK].numpy() for bits in packed])
        plus = np.unpackbits(block, axis=1).sum(axis=0, dtype=np.int32)
        votes[8 * start : 8 * start + len(plus)] = np.sign(2 * plus - len(packed))
    return torch.from_numpy(votes[:dim])
