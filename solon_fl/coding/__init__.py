"""The mathematics: codes, locators and the decoder. Needs torch and numpy, and nothing of Flower."""

from .code import Code
from .decoded import ClassOutcome, Decoded, DecodeStatus
from .decoder import BeyondBound, CertificateWarning, Decoder, smallest_group
from .fourier import FourierCode
from .locating import LocatingProblem, Locator
from .locators import ExhaustiveLocator, InformationSetLocator, RationalLocator, SubspaceLocator
from .vandermonde import VandermondeCode

__all__ = [
    "BeyondBound",
    "CertificateWarning",
    "ClassOutcome",
    "Code",
    "DecodeStatus",
    "Decoded",
    "Decoder",
    "ExhaustiveLocator",
    "FourierCode",
    "InformationSetLocator",
    "LocatingProblem",
    "Locator",
    "RationalLocator",
    "SubspaceLocator",
    "VandermondeCode",
    "smallest_group",
]
