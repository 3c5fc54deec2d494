"""The client side, which runs on the nodes."""

from solon_fl.clients.keeping import downlink_mod
from solon_fl.clients.mixin import SolonClientMixin
from solon_fl.clients.mod import solon_mod
from solon_fl.clients.share import answer_silo_queries, share_reply
from solon_fl.clients.trained import TrainedOnly
from solon_fl.task import Batch, SolonTask

__all__ = [
    "Batch",
    "SolonClientMixin",
    "SolonTask",
    "TrainedOnly",
    "answer_silo_queries",
    "downlink_mod",
    "share_reply",
    "solon_mod",
]
