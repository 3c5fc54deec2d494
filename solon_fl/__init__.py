"""Solon for Flower: train on the exact gradient even when some machines return wrong results.

The codes and their decoders are here. The Flower strategy is `solon_fl.strategies.SolonStrategy`, the client side
`solon_fl.clients`, the simulation `solon_fl.simulations`.

Names are imported when they are first asked for: they need torch, and `solon_fl.resident` must not wait for that.
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

if not TYPE_CHECKING:  # a type checker takes the names from above, and would take any other from this

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
