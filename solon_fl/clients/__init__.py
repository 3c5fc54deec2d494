"""The client side: what runs on the nodes."""

from solon_fl.clients.core import answer_silo_queries, share_reply
from solon_fl.clients.draco import draco_client_app
from solon_fl.clients.mixin import SolonClientMixin
from solon_fl.clients.mod import solon_mod
from solon_fl.clients.signum import signum_mod
from solon_fl.task import Batch, SolonTask

__all__ = [
    "Batch",
    "SolonClientMixin",
    "SolonTask",
    "answer_silo_queries",
    "draco_client_app",
    "share_reply",
    "signum_mod",
    "solon_mod",
]
