"""Watching a run while it trains: a live page, and writers for tracking tools, for a strategy's ``monitors``."""

from solon_fl.monitoring.live import LiveReport
from solon_fl.monitoring.writers import FigureWriter, MLflowWriter, TensorBoardWriter, WandbWriter
from solon_fl.strategies.monitors import Monitor, RunStatus

__all__ = [
    "FigureWriter",
    "LiveReport",
    "MLflowWriter",
    "Monitor",
    "RunStatus",
    "TensorBoardWriter",
    "WandbWriter",
]
