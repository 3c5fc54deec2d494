"""Robust rules: functions of the nodes' vectors and of the number of liars among them."""

from .base import Rule, liars_among, ready_for
from .bulyan import bulyan, krum_scores

__all__ = ["Rule", "bulyan", "krum_scores", "liars_among", "ready_for"]
