"""Running a scenario."""

import gc
import importlib.util
import math
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import nn
from torch.nn import functional

from solon_fl.clients import Batch
from solon_fl.errors import CheckpointError, ConfigurationError
from solon_fl.simulations.datasets import Dataset, load_dataset
from solon_fl.simulations.datasets.models import build_model
from solon_fl.simulations.run.grid import InProcessGrid
from solon_fl.simulations.run.nodes import ImageClient, make_client_app
from solon_fl.simulations.run.outcome import RecordedCheckpoints, RoundRecord
from solon_fl.simulations.run.scenario import Scenario
from solon_fl.simulations.run.strategies import STRATEGIES
from solon_fl.strategies import Checkpoints, NodeRecord, RoundReport, SolonStrategy, buffer_names
from solon_fl.task import TASK, SolonTask
from solon_fl.wire import to_array, trusted_tensor

__all__ = ["Outcome", "cheap_garbage_collection", "measure_batch_seconds", "run_apps", "simulate"]


@dataclass(kw_only=True)
class Outcome:
    """A finished run.

    Attributes
    ----------
    scenario : Scenario
        What was run.
    records : list of RoundRecord
        One a round, the untrained model first.
    arrays : ArrayRecord
        The final model.
    error : str or None
        Why the run broke off, if it did.
    ledger : tuple of NodeRecord
        What strategy "solon" knows of each node.
    """

    scenario: Scenario
    records: list[RoundRecord] = field(default_factory=list)
    arrays: ArrayRecord = field(default_factory=ArrayRecord)
    error: str | None = None
    ledger: tuple[NodeRecord, ...] = ()

    @property
    def accuracy(self) -> float:
        """Of the final model on the test set, 0..1; nan if there was none."""
        return self.records[-1].accuracy if self.records else math.nan

    @property
    def offences(self) -> dict[int, Counter[str]]:
        """How often each node was named, by its number and by what for: "lying", "silent" or "malformed".

        Numbers are those of `Scenario.liars`.
        """
        counts: dict[int, Counter[str]] = {}
        for record in self.records:
            for number, kind in record.named():
                counts.setdefault(number, Counter())[kind] += 1
        return dict(sorted(counts.items()))


def simulate(
    scenario: Scenario,
    on_round: Callable[[RoundRecord], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Outcome:
    """Run a scenario and return its outcome.

    Parameters
    ----------
    scenario : Scenario
        What to run. The same scenario gives the same accuracies on the same machine.
    on_round : callable, optional
        Called after every round, round 0 included.
    checkpoints : Checkpoints, optional
        Where to save the run, and to go on with it if it is there: then the outcome has the rounds before too, and
        they are not given to `on_round` again. For strategy "solon" only.

    Raises
    ------
    CheckpointError
        If there are checkpoints of another scenario.
    ConfigurationError
        If checkpoints are given for another strategy, the data can't be found, the model is not for such data,
        batch_size exceeds the data, or the engine is not installed.
    """
    if checkpoints is not None and STRATEGIES[scenario.strategy].client != "solon":
        raise ConfigurationError(f"checkpoints are for strategy='solon'; got strategy={scenario.strategy!r}.")
    dataset = _dataset(scenario.dataset, scenario.data_dir)
    if scenario.batch_size > len(dataset.train_labels):
        raise ConfigurationError(
            f"batch_size must be at most the number of training examples; got batch_size={scenario.batch_size}, "
            f"dataset {dataset.name} has {len(dataset.train_labels)}."
        )
    outcome = Outcome(scenario=scenario)
    places = set(scenario.liars)
    client_app = make_client_app(ImageClient(scenario, dataset), places)
    run_apps(_server_app(outcome, dataset, on_round, checkpoints), client_app, scenario, places)
    return outcome


def run_apps(server_app: ServerApp, client_app: ClientApp, scenario: Scenario, places: set[int] | None = None) -> None:
    """Run a Flower app on the scenario's engine, with its number of nodes; for `places` see `_GridOfColluders`."""
    if scenario.engine == "ray":
        _run_on_ray(server_app, client_app, scenario.config.num_nodes)
    else:
        num_nodes = scenario.config.num_nodes
        if places is None:
            grid = InProcessGrid(client_app, num_nodes)
        else:
            grid = _GridOfColluders(client_app, num_nodes, scenario.liars, places)
        context = Context(run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={})
        with cheap_garbage_collection():
            server_app(grid, context)


class _GridOfColluders(InProcessGrid):
    """Lets the liars, who collude, know the places of all of them as soon as they have their tasks.

    Parameters
    ----------
    client_app, num_nodes
        See `InProcessGrid`.
    liars : collection of int
        The nodes that lie, numbered from 0.
    places : set of int
        What the attack goes by: the liars' places in this round, group * group_size + slot.
    """

    def __init__(self, client_app: ClientApp, num_nodes: int, liars: Collection[int], places: set[int]) -> None:
        super().__init__(client_app, num_nodes)
        self._liars = liars
        self._places = places

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `InProcessGrid.push_messages`."""
        kept = list(messages)
        tasks = {m.metadata.dst_node_id - 1: SolonTask.from_message(m) for m in kept if TASK in m.content}
        if tasks:
            lying = {task.group * task.group_size + task.slot for node, task in tasks.items() if node in self._liars}
            self._places.clear()
            self._places.update(lying)
        return super().push_messages(kept)


@contextmanager
def cheap_garbage_collection() -> Iterator[None]:
    """Let garbage collections look at nothing that is there already.

    Flower's Krum and Bulyan collect garbage once a node, 0.1 s each with torch loaded: the seconds measured for them
    would be those of the collector.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@lru_cache(maxsize=1)
def _dataset(name: str, data_dir: Path | None) -> Dataset:
    """Load a data set, or keep that of the run before."""
    return load_dataset(name, data_dir)


def measure_batch_seconds(scenario: Scenario) -> float:
    """Return how long one node takes for the gradient of one batch here, seconds (median of 5)."""
    dataset = _dataset(scenario.dataset, scenario.data_dir)
    client = ImageClient(replace(scenario, compute_once=False), dataset)
    context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
    model = client.build_model(context)
    arrays = ArrayRecord({name: to_array(value) for name, value in model.state_dict().items()})
    seconds = []
    for number in range(6):
        started = time.monotonic()
        client.mean_gradient(arrays, [Batch(0, 0, number)], buffer_names(model), context)
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds[1:])  # the first warms up


def _server_app(
    outcome: Outcome,
    dataset: Dataset,
    on_round: Callable[[RoundRecord], None] | None,
    checkpoints: Checkpoints | None,
) -> ServerApp:
    """Return the ServerApp that runs the outcome's scenario and fills in the outcome."""
    scenario = outcome.scenario
    model = build_model(scenario.model, dataset.input_shape, dataset.num_classes, seed=scenario.config.seed)
    initial_arrays = ArrayRecord({name: to_array(value) for name, value in model.state_dict().items()})
    reports: list[RoundReport] = []
    saved = None if checkpoints is None else RecordedCheckpoints(checkpoints, scenario, outcome.records)
    started = time.monotonic()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict({name: trusted_tensor(array) for name, array in arrays.items()})
        accuracy, loss = _test(model, dataset)
        report = reports[-1] if reports and server_round else None
        record = RoundRecord(
            round=server_round,
            accuracy=accuracy,
            loss=loss,
            seconds=time.monotonic() - started,
            report=report,
            waited=report is not None and STRATEGIES[scenario.strategy].waited(report),
            regrouped=scenario.config.regroup == "round",
        )
        outcome.arrays = arrays
        outcome.records.append(record)
        if on_round is not None:
            on_round(record)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        arguments = {} if saved is None else {"checkpoints": saved}
        strategy = scenario.make_strategy(buffer_names(model), reports.append, **arguments)
        random.seed(scenario.config.seed)  # Flower's own strategies sample, and thus order, nodes with it
        try:
            result = strategy.start(
                grid,
                initial_arrays,
                num_rounds=scenario.rounds,
                timeout=scenario.timeout,
                train_config=ConfigRecord({"lr": scenario.local_learning_rate}),
                evaluate_fn=evaluate,
            )
            outcome.arrays = result.arrays
        except (ConfigurationError, CheckpointError):
            raise
        except Exception as error:  # an attack that aborts a strategy is a result, not a crash
            outcome.error = f"{type(error).__name__}: {str(error).strip()}"
        if isinstance(strategy, SolonStrategy):
            outcome.ledger = tuple(strategy.ledger.values())

    return app


def _test(model: nn.Module, dataset: Dataset) -> tuple[float, float]:
    """Return accuracy (0..1) and mean loss on the test set."""
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(inputs) for inputs in torch.split(dataset.test_inputs, 1000)])
    correct = (outputs.argmax(1) == dataset.test_labels).double().mean()
    return float(correct), float(functional.cross_entropy(outputs, dataset.test_labels))


def _run_on_ray(server_app: ServerApp, client_app: ClientApp, num_nodes: int) -> None:
    """Run on Flower's own simulation engine."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError(
            "engine='ray' needs Flower's simulation engine; ray is not installed; pip install 'solon-fl[ray]'."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from flwr.simulation import run_simulation

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=num_nodes,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
