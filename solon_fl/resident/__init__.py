"""Nodes that stay up: in a deployment, one process computes all messages of a node, where Flower starts one for each.

Nothing here imports torch.
"""

from solon_fl.resident.app import resident

__all__ = ["resident"]
