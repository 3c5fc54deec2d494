"""Round reports for TensorBoard."""

import importlib.util
from pathlib import Path
from typing import Any

from solon_fl.errors import ConfigurationError
from solon_fl.strategies.reports import RoundReport

__all__ = ["TensorBoardWriter"]


class TensorBoardWriter:
    """Writes every round's figures where TensorBoard reads them: a strategy's ``on_round=TensorBoardWriter("logs")``.

    Numbers are written as they are (bytes-in, seconds-waiting, largest-error-bound, ...), lists of nodes and groups
    as their lengths (corrupt-nodes, failed-groups, ...), all under "solon/".

    Parameters
    ----------
    folder : path
        For ``tensorboard --logdir``; made if it is not there.

    Raises
    ------
    ConfigurationError
        If tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigurationError(
                "TensorBoardWriter needs tensorboard, which is not installed; pip install 'solon-fl[tensorboard]'."
            )
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, report: RoundReport) -> None:
        """Write one round."""
        for name, value in report.to_metrics().items():
            figure = len(value) if isinstance(value, list) else value
            self._writer.add_scalar(f"solon/{name}", figure, report.round)
        self._writer.flush()
