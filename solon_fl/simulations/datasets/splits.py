"""Assigns examples to nodes, if each node has its own."""

import numpy as np
import torch
from torch import Tensor

from solon_fl.errors import ConfigurationError

__all__ = ["check_parts", "dirichlet_parts"]


def check_parts(num_examples: int, num_parts: int) -> None:
    """Raise ConfigurationError unless there is an example for every part."""
    if num_examples < num_parts:
        raise ConfigurationError(
            f"with dirichlet every node needs a training example of its own; got num_nodes={num_parts} and "
            f"{num_examples} examples; lower num_nodes, add examples, or leave dirichlet out."
        )


def dirichlet_parts(labels: Tensor, num_parts: int, alpha: float, seed: int) -> list[Tensor]:
    """Return the positions of each part's examples. Each example is in exactly one part.

    The shares of each class are drawn from a symmetric Dirichlet distribution (Hsu, Qi, Brown 2019). A part that would
    be empty gets one example of the largest part.

    Parameters
    ----------
    labels : Tensor of integers, (N,)
        Labels of all examples, N >= num_parts.
    num_parts : int
        Number of parts.
    alpha : float
        Positive. With 0.1, a part has few classes; with 100, all parts are nearly alike.
    seed : int
        The same seed gives the same parts.

    Raises
    ------
    ConfigurationError
        If there are fewer examples than parts.
    """
    check_parts(len(labels), num_parts)
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(num_parts)]
    for label in np.unique(labels.numpy()):
        places = rng.permutation(np.flatnonzero(labels.numpy() == label))
        ends = np.cumsum(rng.dirichlet([alpha] * num_parts)) * len(places)
        for part, piece in zip(parts, np.split(places, ends[:-1].round().astype(int)), strict=True):
            part.append(piece)
    whole = [torch.from_numpy(np.concatenate(part)) for part in parts]
    for number in range(num_parts):
        if not len(whole[number]):
            largest = max(range(num_parts), key=lambda other: len(whole[other]))
            whole[number], whole[largest] = whole[largest][:1], whole[largest][1:]
    return whole
