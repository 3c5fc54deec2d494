"""Solon for Flower: exact gradients from groups of nodes of which some lie.

The codes and the decoder are here. The Flower strategy is `solon_fl.strategies.SolonStrategy`, the client side
`solon_fl.clients`, the simulation `solon_fl.simulations`.
"""

from .coding import (
    CertificateWarning,
    Decoded,
    DecodeStatus,
    ExhaustiveLocator,
    FourierCode,
    LinearCode,
    LocatingProblem,
    Locator,
    RationalLocator,
    SubspaceLocator,
    VandermondeCode,
)
from .config import SolonConfig
from .errors import ConfigurationError, GroupFailedError, InvalidReplyError, NodesMissingError, SolonError

__all__ = [
    "CertificateWarning",
    "ConfigurationError",
    "DecodeStatus",
    "Decoded",
    "ExhaustiveLocator",
    "FourierCode",
    "GroupFailedError",
    "InvalidReplyError",
    "LinearCode",
    "LocatingProblem",
    "Locator",
    "NodesMissingError",
    "RationalLocator",
    "SolonConfig",
    "SolonError",
    "SubspaceLocator",
    "VandermondeCode",
]
