"""Attacks, each a small class that turns what honest nodes would send into what liars send."""

from .base import Attack
from .code_aware import NearCodeword, OtherGradient, PartialCollusion, ProjectionAware, SameLie
from .omniscient import Alie, InnerProduct, Mimic, MinMax, MinSum
from .simple import BitFlip, Constant, NotFinite, RandomGaussian, Reverse, SignFlip

__all__ = [
    "Alie",
    "Attack",
    "BitFlip",
    "Constant",
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
]
