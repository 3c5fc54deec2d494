"""Resident nodes: in a deployment, one process computes all messages of a node, instead of a new one for each message.

Nothing here imports torch.
"""

from solon_fl.resident.app import resident

__all__ = ["resident"]
