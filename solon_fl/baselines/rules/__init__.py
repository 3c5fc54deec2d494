"""Robust aggregation rules: functions of the nodes' vectors and of the number of liars among them."""

from .base import Rule, liars_among, ready_for
from .bulyan import bulyan, krum_scores
from .centres import centered_clipping, geometric_median
from .coordinates import trimmed_mean
from .mixing import Bucketing, nnm
from .spectral import caf, dnc

__all__ = [
    "Bucketing",
    "Rule",
    "bulyan",
    "caf",
    "centered_clipping",
    "dnc",
    "geometric_median",
    "krum_scores",
    "liars_among",
    "nnm",
    "ready_for",
    "trimmed_mean",
]
