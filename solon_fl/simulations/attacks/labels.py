"""Label flipping: the labels on which a node that poisons its data trains."""

from flwr.app import Context
from torch import Tensor

__all__ = ["FLIP_LABELS", "flips_labels", "seen_labels"]

FLIP_LABELS = "flip-labels"  # entry of the node's config, set by `label_flip_mod`


def flips_labels(context: Context) -> bool:
    """Return whether this node poisons its data, so that its results must be kept apart from those of honest nodes."""
    return context.node_config.get(FLIP_LABELS) is True


def seen_labels(labels: Tensor, num_classes: int, context: Context) -> Tensor:
    """Return the labels that a client should train on: its own, or C - 1 - labels under `label_flip_mod`.

    Parameters
    ----------
    labels : Tensor of integers
        0 <= label < C.
    num_classes : int
        C.
    context : Context
        Of the node, as its train function gets it.
    """
    return num_classes - 1 - labels if flips_labels(context) else labels
