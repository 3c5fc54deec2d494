"""Solon for Flower: train on the exact gradient even when some machines return wrong results.

The codes and their decoders are here. The Flower strategy is `solon_fl.strategies.SolonStrategy`, the client side
`solon_fl.clients`, the simulation `solon_fl.simulations`.
"""

from .coding import (
    CertificateWarning,
    Code,
    Decoded,
    Decoder,
    DecodeStatus,
    ExactCode,
    ExactDecoder,
    ExhaustiveLocator,
    FourierCode,
    InformationSetLocator,
    LocatingProblem,
    Locator,
    RationalLocator,
    RealCode,
    RealDecoder,
    SubspaceLocator,
    VandermondeCode,
)
from .config import SolonConfig
from .errors import ConfigurationError, GroupFailedError, InvalidReplyError, NodesMissingError, SolonError

__all__ = [
    "CertificateWarning",
    "Code",
    "ConfigurationError",
    "DecodeStatus",
    "Decoded",
    "Decoder",
    "ExactCode",
    "ExactDecoder",
    "ExhaustiveLocator",
    "FourierCode",
    "GroupFailedError",
    "InvalidReplyError",
    "InformationSetLocator",
    "LocatingProblem",
    "Locator",
    "NodesMissingError",
    "RationalLocator",
    "RealCode",
    "RealDecoder",
    "SolonConfig",
    "SolonError",
    "SubspaceLocator",
    "VandermondeCode",
]
