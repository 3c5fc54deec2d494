"""Writers that log every round's figures to experiment trackers."""

import importlib
import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from solon_fl.errors import ConfigurationError
from solon_fl.strategies.monitors import RunStatus

__all__ = ["FigureWriter", "MLflowWriter", "TensorBoardWriter", "WandbWriter", "figures_of"]


def figures_of(status: RunStatus) -> dict[str, float]:
    """Return a round's figures by name.

    ``solon/...`` are the metrics of `RoundReport.to_metrics`: numbers as they are (``bytes-in``, ``seconds-waiting``,
    ...), and lists of nodes or groups as their lengths (``corrupt-nodes``, ``failed-groups``, ...).
    ``evaluation/...`` are the metrics that ``evaluate_fn`` returned. ``node-evaluation/...`` are the medians of the
    metrics that nodes reported.
    """
    number = status.report.round
    found: dict[str, float] = {}
    for prefix, records in (
        ("solon", status.training),
        ("evaluation", status.evaluation),
        ("node-evaluation", status.node_evaluation),
    ):
        for name, value in records.get(number, {}).items():
            found[f"{prefix}/{name}"] = len(value) if isinstance(value, list) else value
    return found


class FigureWriter(ABC):
    """The base class of monitors that write every round's figures; subclasses define `write`."""

    def __call__(self, status: RunStatus) -> None:
        """Write the figures of the status's round."""
        self.write(figures_of(status), status.report.round)

    @abstractmethod
    def write(self, figures: dict[str, float], step: int) -> None:
        """Write a round's figures by name; `step` is the number of the round."""


class TensorBoardWriter(FigureWriter):
    """Writes event files for TensorBoard: ``monitors=TensorBoardWriter("logs")``.

    Parameters
    ----------
    folder : path
        The folder for ``tensorboard --logdir``, made if it is missing.

    Raises
    ------
    ConfigurationError
        If tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        _check_installed("TensorBoardWriter", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def write(self, figures: dict[str, float], step: int) -> None:
        """See `FigureWriter.write`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class WandbWriter(FigureWriter):
    """Logs to a run of Weights & Biases: ``monitors=WandbWriter(wandb.init(project="..."))``.

    Parameters
    ----------
    run : wandb.Run
        The run that ``wandb.init`` returned. With ``mode="offline"``, it needs no network.

    Raises
    ------
    ConfigurationError
        If `run` is not such a run.
    """

    def __init__(self, run: Any) -> None:
        if not callable(getattr(run, "log", None)):
            raise ConfigurationError(
                f"run must be the result of wandb.init; got {run!r}; use WandbWriter(wandb.init())."
            )
        self._run = run

    def write(self, figures: dict[str, float], step: int) -> None:
        """See `FigureWriter.write`."""
        self._run.log(figures, step=step)


class MLflowWriter(FigureWriter):
    """Logs to a run of MLflow: ``monitors=MLflowWriter()`` inside ``with mlflow.start_run():``.

    Parameters
    ----------
    run_id : str, optional
        The run's id. Default: the active run of the thread that trains. MLflow starts one if there is none.

    Raises
    ------
    ConfigurationError
        If mlflow is not installed.
    """

    def __init__(self, run_id: str | None = None) -> None:
        _check_installed("MLflowWriter", "mlflow")
        self._mlflow: Any = importlib.import_module("mlflow")
        self._run_id = run_id

    def write(self, figures: dict[str, float], step: int) -> None:
        """See `FigureWriter.write`."""
        self._mlflow.log_metrics(figures, step=step, run_id=self._run_id)


def _check_installed(what: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigurationError(f"{what} needs {package}, which is not installed; pip install 'solon-fl[{package}]'.")
