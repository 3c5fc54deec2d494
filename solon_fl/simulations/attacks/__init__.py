"""Attacks by Byzantine nodes, and the Flower mods that carry them out."""

from .alie import Alie, TunedAlie
from .base import Attack
from .code_aware import BelowTolerance, Encoded, NearCodeword, OtherGradient, PartialCollusion, ProjectionAware, SameLie
from .fang import FangKrum, FangTrimmedMean
from .labels import flips_labels, seen_labels
from .liars import Liars, RegroupedLiars, partition_id, place_number
from .mods import MALFORMATIONS, attack_mod, crash_mod, from_round, label_flip_mod, late_mod, malformed_mod, silent_mod
from .omniscient import FallOfEmpires, InnerProduct, Mimic, MinMax, MinSum
from .own import try_own_attack
from .registry import ATTACKS, NamedAttack, attack_named, lie_if_told, lone_liar_mod, make_attack_mod
from .simple import BitFlip, Constant, NotFinite, RandomGaussian, Reverse, SignFlip
from .tuning import Aggregate, damage

__all__ = [
    "ATTACKS",
    "MALFORMATIONS",
    "Aggregate",
    "Alie",
    "Attack",
    "BelowTolerance",
    "BitFlip",
    "Constant",
    "Encoded",
    "FallOfEmpires",
    "FangKrum",
    "FangTrimmedMean",
    "InnerProduct",
    "Liars",
    "Mimic",
    "MinMax",
    "MinSum",
    "NamedAttack",
    "NearCodeword",
    "NotFinite",
    "OtherGradient",
    "PartialCollusion",
    "ProjectionAware",
    "RandomGaussian",
    "RegroupedLiars",
    "Reverse",
    "SameLie",
    "SignFlip",
    "TunedAlie",
    "attack_mod",
    "attack_named",
    "crash_mod",
    "damage",
    "flips_labels",
    "from_round",
    "label_flip_mod",
    "late_mod",
    "lie_if_told",
    "lone_liar_mod",
    "make_attack_mod",
    "malformed_mod",
    "partition_id",
    "place_number",
    "seen_labels",
    "silent_mod",
    "try_own_attack",
]
