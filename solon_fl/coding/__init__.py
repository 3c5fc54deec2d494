"""The codes and decoders. This package needs torch, numpy and scipy, but not Flower."""

from .code import Code
from .decoded import ClassOutcome, Decoded, DecodeStatus
from .decoder import Decoder, smallest_group
from .exact.code import ExactCode
from .exact.decoder import ExactDecoder
from .real.code import RealCode
from .real.decoder import CertificateWarning, RealDecoder
from .real.fourier import FourierCode
from .real.locating import LocatingProblem, Locator
from .real.locators import ExhaustiveLocator, InformationSetLocator, RationalLocator, SubspaceLocator
from .real.vandermonde import VandermondeCode

__all__ = [
    "CertificateWarning",
    "ClassOutcome",
    "Code",
    "DecodeStatus",
    "Decoded",
    "Decoder",
    "ExactCode",
    "ExactDecoder",
    "ExhaustiveLocator",
    "FourierCode",
    "InformationSetLocator",
    "LocatingProblem",
    "Locator",
    "RationalLocator",
    "RealCode",
    "RealDecoder",
    "SubspaceLocator",
    "VandermondeCode",
    "smallest_group",
]
