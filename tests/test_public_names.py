import subprocess
import sys

import pytest

import solon_fl
from solon_fl import coding

WITHOUT_FLOWER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "flwr":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
try:
    import flwr
except ImportError:
    pass
else:
    raise SystemExit("the blocker does not block")

import torch
from solon_fl.coding import FourierCode

code = FourierCode(byzantine=1, compression=2)
shares = {slot: code.encode(torch.ones(4), slot) for slot in range(4)}
assert code.decode(shares).ok
"""

DRACO_NAMES = ["CyclicCode", "DracoCode", "DracoDecoded", "RepetitionCode"]  # a baseline: not at the top level
CODING_NAMES = [
    "CertificateWarning",
    "DecodeStatus",
    "Decoded",
    "ExhaustiveLocator",
    "FourierCode",
    "LinearCode",
    "LocatingProblem",
    "Locator",
    "RationalLocator",
    "SubspaceLocator",
    "VandermondeCode",
]
ERROR_NAMES = ["ConfigurationError", "GroupFailedError", "InvalidReplyError", "NodesMissingError", "SolonError"]


@pytest.mark.slow
def test_coding_needs_nothing_of_flower() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_FLOWER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_these() -> None:
    assert sorted(coding.__all__) == sorted([*CODING_NAMES, *DRACO_NAMES])
    assert sorted(solon_fl.__all__) == sorted([*CODING_NAMES, *ERROR_NAMES, "SolonConfig"])


def test_every_public_name_exists_and_is_explained() -> None:
    for module in (solon_fl, coding):
        for name in module.__all__:
            assert getattr(module, name).__doc__


def test_every_error_is_also_a_standard_one() -> None:
    assert issubclass(solon_fl.ConfigurationError, ValueError)
    assert issubclass(solon_fl.InvalidReplyError, ValueError)
    assert issubclass(solon_fl.GroupFailedError, RuntimeError)
    for name in ERROR_NAMES:
        assert issubclass(getattr(solon_fl, name), solon_fl.SolonError)
