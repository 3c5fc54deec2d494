"""Runs a scenario from the first round to its outcome."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch import nn
from torch.nn import functional

from solon_fl.errors import CheckpointError, ConfigurationError
from solon_fl.simulations.datasets import Dataset, build_model
from solon_fl.simulations.datasets.splits import check_parts
from solon_fl.simulations.own import seeded_states
from solon_fl.simulations.run.checkpoints import RecordedCheckpoints
from solon_fl.simulations.run.engines import run_apps
from solon_fl.simulations.run.nodes import ImageClient, load_data, make_client_app, try_own_model
from solon_fl.simulations.run.outcome import Outcome
from solon_fl.simulations.run.own_strategies import strategy_named
from solon_fl.simulations.run.round_record import NumberedReport, RoundRecord
from solon_fl.simulations.run.scenario import Scenario
from solon_fl.strategies import Checkpoints, RoundReport, SolonStrategy, buffer_names
from solon_fl.strategies.solon_run import MOST_SILENCES
from solon_fl.wire import model_sha256, to_array, trusted_tensor

__all__ = ["ScenarioServer", "Stopped", "simulate"]


class Stopped(KeyboardInterrupt):
    """Ctrl-C during a run.

    Parameters
    ----------
    outcome : Outcome
        The outcome so far. Its `error` says that the run was stopped.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.error)
        self.outcome = outcome


def simulate(
    scenario: Scenario,
    on_round: Callable[[RoundRecord], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Outcome:
    """Run a scenario and return its outcome.

    Parameters
    ----------
    scenario : Scenario
        The scenario to run. It gives the same accuracies each time on the same machine. With the engine in this
        process, the random states of Python, numpy and torch are seeded for your own code, and restored afterwards.
    on_round : callable, optional
        Called after every round, including round 0.
    checkpoints : Checkpoints, optional
        Where to save the run. If it was saved there before, it continues from there: the outcome includes the earlier
        rounds, but `on_round` is not called for them again. Only for Solon's strategies.

    Raises
    ------
    Stopped
        On Ctrl-C. This KeyboardInterrupt holds the outcome so far.
    CheckpointError
        If there are checkpoints of another scenario.
    ConfigurationError
        If checkpoints are given for another strategy, the data can't be found or does not suit the model, batch_size
        exceeds the number of examples, dirichlet leaves a node without examples, or the engine is not installed.
    """
    if checkpoints is not None and strategy_named(scenario.strategy).client != "solon":
        raise ConfigurationError(f"checkpoints need strategy='solon'; got strategy={scenario.strategy!r}.")
    dataset = load_data(scenario)
    if scenario.batch_size > len(dataset.train_labels):
        raise ConfigurationError(
            f"batch_size must be at most the number of training examples; got batch_size={scenario.batch_size}, "
            f"dataset {dataset.name} has {len(dataset.train_labels)}."
        )
    if scenario.dirichlet is not None:
        check_parts(len(dataset.train_labels), scenario.config.num_nodes)
    try_own_model(scenario, dataset)
    outcome = Outcome.of(scenario)
    try:
        with seeded_states(scenario.config.seed):  # the user's own code may draw from them
            liars = scenario.make_liars()
            client_app = make_client_app(ImageClient(scenario, dataset), liars)
            server = ScenarioServer(outcome, dataset, on_round, checkpoints)
            run_apps(server.app(), client_app, scenario, liars)
    except KeyboardInterrupt as interrupt:
        outcome.error = f"stopped in round {len(outcome.records)} of {scenario.rounds}"
        raise Stopped(outcome) from interrupt
    return outcome


class ScenarioServer:
    """The server of a run: it trains, tests the model after every round, and fills in the outcome.

    Parameters
    ----------
    outcome : Outcome
        The outcome of a run that has not begun.
    dataset : Dataset
        The scenario's data.
    on_round, checkpoints
        See `simulate`.
    """

    def __init__(
        self,
        outcome: Outcome,
        dataset: Dataset,
        on_round: Callable[[RoundRecord], None] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        scenario = outcome.scenario
        self._outcome = outcome
        self._dataset = dataset
        self._on_round = on_round
        self._checkpoints = None if checkpoints is None else RecordedCheckpoints(checkpoints, outcome)
        self._model = build_model(scenario.model, dataset.input_shape, dataset.num_classes, seed=scenario.config.seed)
        self._report: RoundReport | None = None  # of the latest round
        self._started = time.monotonic()
        self._grid: Grid | None = None
        self._looked_at = self._clocks()
        self._silences: dict[int, int] = {}  # consecutive silent rounds, by node id

    def app(self) -> ServerApp:
        """Return the ServerApp."""
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            self.train(grid, self._outcome.scenario.timeout)

        return app

    def train(self, grid: Grid, timeout: float) -> None:
        """Train on the grid's nodes, with so many seconds for each round. An exception becomes the outcome's error."""
        outcome, scenario = self._outcome, self._outcome.scenario
        self._grid = grid
        initial_arrays = ArrayRecord({name: to_array(value) for name, value in self._model.state_dict().items()})
        arguments: dict[str, Any] = {} if self._checkpoints is None else {"checkpoints": self._checkpoints}
        if outcome.has_referee:
            # It shares nothing with the nodes, so that its measured seconds include all of its computation.
            arguments["referee"] = ImageClient(replace(scenario, compute_once=False), self._dataset)
        strategy = scenario.make_strategy(buffer_names(self._model), self._keep, **arguments)
        random.seed(scenario.config.seed)  # Flower's own strategies order the nodes at random
        try:
            result = strategy.start(
                grid,
                initial_arrays,
                num_rounds=scenario.rounds,
                timeout=timeout,
                train_config=ConfigRecord({"lr": scenario.local_learning_rate}),
                evaluate_fn=self._evaluate,
            )
            outcome.arrays = result.arrays
        except (ConfigurationError, CheckpointError):
            raise
        except Exception as error:  # an attack that aborts a strategy is a result, not a crash
            outcome.error = f"{type(error).__name__}: {str(error).strip()}"
        finally:
            outcome.model_sha256 = model_sha256(outcome.arrays) if outcome.arrays else ""
            if isinstance(strategy, SolonStrategy):
                outcome.ledger = tuple(strategy.ledger.values())

    def _keep(self, report: RoundReport) -> None:
        self._report = report

    def _waited(self, report: RoundReport) -> bool:
        """Return whether the server would have waited for its deadline, and count the silent rounds of each node."""
        unheard = {node for node, rounds in self._silences.items() if rounds >= MOST_SILENCES}
        waited = strategy_named(self._outcome.scenario.strategy).waited(report, unheard)
        self._silences = {node: self._silences.get(node, 0) + 1 for node in report.silent_nodes}
        return waited

    @staticmethod
    def _clocks() -> tuple[float, float]:
        """Return the time of the clock and the CPU time of this process, in seconds."""
        return time.monotonic(), time.process_time()

    def _cpu_share(self) -> float | None:
        """Return `RoundRecord.cpu_share` since the last call."""
        (before, used_before), (now, used) = self._looked_at, self._clocks()
        self._looked_at = now, used
        in_process = self._outcome.scenario.engine == "in-process"
        return (used - used_before) / (now - before) if in_process and now > before else None

    def _evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Test the model after a round, and add the round's record to the outcome."""
        if (error := getattr(self._grid, "own_code_error", None)) is not None:
            raise error  # the user's broken attack must not look like crashing nodes
        scenario, report = self._outcome.scenario, self._report
        self._model.load_state_dict({name: trusted_tensor(array) for name, array in arrays.items()})
        accuracy, loss = _test(self._model, self._dataset)
        regrouped = scenario.config.regroup == "round"
        record = RoundRecord(
            round=server_round,
            accuracy=accuracy,
            loss=loss,
            seconds=time.monotonic() - self._started,
            report=None if report is None else NumberedReport.of(report, regrouped=regrouped),
            waited=report is not None and self._waited(report),
            model_sha256=model_sha256(arrays),
            cpu_share=self._cpu_share(),
        )
        self._outcome.arrays = arrays
        self._outcome.records.append(record)
        if self._on_round is not None:
            self._on_round(record)
        return MetricRecord({"accuracy": accuracy, "loss": loss})


def _test(model: nn.Module, dataset: Dataset) -> tuple[float, float]:
    """Return accuracy (0..1) and mean loss on the test set."""
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(inputs) for inputs in torch.split(dataset.test_inputs, 1000)])
    correct = (outputs.argmax(1) == dataset.test_labels).double().mean()
    return float(correct), float(functional.cross_entropy(outputs, dataset.test_labels))
