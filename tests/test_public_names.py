import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import solon_fl
from solon_fl import baselines, clients, coding, monitoring, pages, resident, simulations, strategies
from solon_fl.clients import hugging_face, lightning

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
import solon_fl
from solon_fl.coding import RealDecoder, FourierCode

code = FourierCode(group_size=4, compression=2)
shares = {slot: code.encode(torch.ones(4), slot) for slot in range(4)}
assert RealDecoder(code, byzantine=1).decode(shares).ok
assert solon_fl.SolonConfig(num_nodes=4, byzantine=1, compression=2).make_decoder().decode(shares).ok
"""

CODING_NAMES = [
    "CertificateWarning",
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
]
ERROR_NAMES = ["ConfigurationError", "GroupFailedError", "InvalidReplyError", "NodesMissingError", "SolonError"]
PUBLIC_NAMES: dict[ModuleType, list[str]] = {
    solon_fl: [*CODING_NAMES, *ERROR_NAMES, "SolonConfig"],
    coding: [*CODING_NAMES, "ClassOutcome", "smallest_group"],  # further names that the config uses
    clients: [
        "Batch",
        "SolonClientMixin",
        "SolonTask",
        "TrainedOnly",
        "answer_silo_queries",
        "downlink_mod",
        "share_reply",
        "solon_mod",
    ],
    hugging_face: ["TrainerClient"],
    lightning: ["LightningClient"],
    strategies: [
        "Calibration",
        "Checkpoints",
        "GroupReport",
        "LocalReferee",
        "NodeRecord",
        "RefereeReport",
        "RoundReport",
        "RunStatus",
        "SolonStrategy",
        "TrustedNodes",
        "buffer_names",
        "calibrate",
        "model_sha256",
    ],
    monitoring: [
        "FigureWriter",
        "LiveReport",
        "MLflowWriter",
        "Monitor",
        "RunStatus",
        "TensorBoardWriter",
        "WandbWriter",
    ],
    pages: [
        "Bar",
        "BarChart",
        "Curve",
        "KINDS",
        "LineChart",
        "NodeMap",
        "NodeRow",
        "Span",
        "page_html",
        "templates_are_there",
        "write_page",
    ],
    resident: ["resident"],
    baselines: [
        "AggregatorStrategy",
        "CyclicCode",
        "DracoCode",
        "DracoDecoded",
        "DracoStrategy",
        "GradientStrategy",
        "RepetitionCode",
        "SignumStrategy",
        "draco_client_app",
        "signum_mod",
    ],
    simulations: [
        "ATTACKS",
        "DATASETS",
        "MODELS",
        "STRATEGIES",
        "Dataset",
        "InProcessGrid",
        "NodeKind",
        "Outcome",
        "RoundRecord",
        "Scenario",
        "build_model",
        "calibrate_scenario",
        "load_dataset",
        "Stopped",
        "simulate",
    ],
}


@pytest.mark.slow
def test_coding_needs_nothing_of_flower() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_FLOWER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", PUBLIC_NAMES, ids=lambda module: module.__name__)
def test_public_names_are_these(module: ModuleType) -> None:
    assert sorted(module.__all__) == sorted(PUBLIC_NAMES[module])


@pytest.mark.parametrize("module", PUBLIC_NAMES, ids=lambda module: module.__name__)
def test_every_public_name_exists_and_is_explained(module: ModuleType) -> None:
    for name in module.__all__:
        value = getattr(module, name)  # a class or a function, except for tables and aliases like CodeName
        assert value.__doc__ or not (inspect.isclass(value) or inspect.isroutine(value)), name


def test_every_error_is_also_a_standard_one() -> None:
    assert issubclass(solon_fl.ConfigurationError, ValueError)
    assert issubclass(solon_fl.InvalidReplyError, ValueError)
    assert issubclass(solon_fl.GroupFailedError, RuntimeError)
    for name in ERROR_NAMES:
        assert issubclass(getattr(solon_fl, name), solon_fl.SolonError)
