"""Solon for Flower: train on the exact gradient even when some machines return wrong results.

This package exports the codes, the decoders and the configuration. The Flower strategy is
`solon_fl.strategies.SolonStrategy`. The client side is in `solon_fl.clients`, the simulation in `solon_fl.simulations`.

Names are imported at first use. They need torch, and `solon_fl.resident` must not wait for its import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

if not TYPE_CHECKING:  # type checkers use the imports above; with this function they would accept any name

    def __getattr__(name: str) -> object:
        if name in __all__:
            for room in ("errors", "coding", "config"):
                module = import_module(f".{room}", __name__)
                if name in module.__all__:
                    globals()[name] = getattr(module, name)
                    return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
