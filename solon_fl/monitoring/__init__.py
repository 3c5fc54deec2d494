"""Monitors of a run for a strategy's ``monitors``: a live page, and writers for experiment trackers."""

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
