"""Attacks, each a small class that turns what honest nodes would send into what liars send."""

from .base import Attack
from .code_aware import BelowTolerance, Encoded, NearCodeword, OtherGradient, PartialCollusion, ProjectionAware, SameLie
from .labels import flips_labels, seen_labels
from .omniscient import Alie, FallOfEmpires, InnerProduct, Mimic, MinMax, MinSum
from .simple import BitFlip, Constant, NotFinite, RandomGaussian, Reverse, SignFlip
from .tuning import Aggregate, damage

__all__ = [
    "Aggregate",
    "Alie",
    "Attack",
    "BelowTolerance",
    "BitFlip",
    "Constant",
    "Encoded",
    "FallOfEmpires",
    "InnerProduct",
    "Mimic",
    "MinMax",
    "MinSum",
    "NearCodeword",
    "NotFinite",
    "OtherGradient",
    "PartialCollusion",
    "ProjectionAware",
    "RandomGaussian",
    "Reverse",
    "SameLie",
    "SignFlip",
    "damage",
    "flips_labels",
    "seen_labels",
]
