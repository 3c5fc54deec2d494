"""The server side: the Flower strategy and its parts."""

from solon_fl.strategies.calibrated import Calibration
from solon_fl.strategies.calibration import calibrate
from solon_fl.strategies.checkpoint import Checkpoints
from solon_fl.strategies.entries import buffer_names
from solon_fl.strategies.ledger import NodeRecord
from solon_fl.strategies.monitors import RunStatus
from solon_fl.strategies.referee import LocalReferee, TrustedNodes
from solon_fl.strategies.reports import GroupReport, RefereeReport, RoundReport
from solon_fl.strategies.solon import SolonStrategy
from solon_fl.wire import model_sha256

__all__ = [
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
]
