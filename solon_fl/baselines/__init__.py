"""Baselines to compare Solon with: Draco, Signum, and aggregators of whole gradients."""

from .aggregators import AggregatorStrategy, GradientStrategy
from .draco import CyclicCode, DracoCode, DracoDecoded, DracoStrategy, RepetitionCode, draco_client_app
from .signum import SignumStrategy, signum_mod

__all__ = [
    "AggregatorStrategy",
    "CyclicCode",
    "DracoCode",
    "DracoDecoded",
    "DracoStrategy",
    "GradientStrategy",
    "RepetitionCode",
    "SignumStrategy",
    "draco_client_app",
    "signum_mod",
]
