"""Label flipping: a node poisons its data by training on flipped labels."""

from flwr.app import Context
from torch import Tensor

__all__ = ["FLIP_LABELS", "flips_labels", "seen_labels"]

FLIP_LABELS = "flip-labels"  # entry of the node's config, set by `label_flip_mod`


def flips_labels(context: Context) -> bool:
    """Return whether this node poisons its data. If so, its results must not stand in for those of honest nodes."""
    return context.node_config.get(FLIP_LABELS) is True


def seen_labels(labels: Tensor, num_classes: int, context: Context) -> Tensor:
    """Return the labels that a client should train on: its own, or C - 1 - labels under `label_flip_mod`.

    Parameters
    ----------
    labels : Tensor of integers
        The true labels, from 0 to C - 1.
    num_classes : int
        C, the number of classes.
    context : Context
        The node's context, as its train function gets it.
    """
    return num_classes - 1 - labels if flips_labels(context) else labels
