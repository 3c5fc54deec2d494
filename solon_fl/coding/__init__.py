"""The mathematics: codes, locators and the decoder. Needs torch and numpy, and nothing of Flower."""

from .code import CertificateWarning, LinearCode
from .decoder import Decoded, DecodeStatus
from .draco import DracoCode, DracoDecoded
from .draco_cyclic import CyclicCode
from .draco_repetition import RepetitionCode
from .exhaustive import ExhaustiveLocator
from .fourier import FourierCode
from .locating import LocatingProblem, Locator
from .rational import RationalLocator
from .subspace import SubspaceLocator
from .vandermonde import VandermondeCode

__all__ = [
    "CertificateWarning",
    "CyclicCode",
    "DecodeStatus",
    "Decoded",
    "DracoCode",
    "DracoDecoded",
    "ExhaustiveLocator",
    "FourierCode",
    "LinearCode",
    "LocatingProblem",
    "Locator",
    "RationalLocator",
    "RepetitionCode",
    "SubspaceLocator",
    "VandermondeCode",
]
