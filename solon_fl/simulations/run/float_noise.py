"""Calibrates simulated nodes that compute, and therefore round, in different ways."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp import Grid, ServerApp

from solon_fl.checks import check_one_of, check_whole
from solon_fl.clients import SolonTask
from solon_fl.errors import ConfigurationError, SolonError
from solon_fl.simulations.attacks import lone_liar_mod, partition_id
from solon_fl.simulations.datasets import build_model
from solon_fl.simulations.run.engines import run_apps
from solon_fl.simulations.run.nodes import ImageClient, load_data, try_own_model
from solon_fl.simulations.run.scenario import Scenario
from solon_fl.strategies import Calibration, buffer_names, calibrate
from solon_fl.wire import to_array

__all__ = ["Kernels", "NodeKind", "calibrate_scenario"]

Kernels = Literal["onednn", "native"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKind:
    """How a node computes. This decides the order of its additions, and so the rounding of its sums.

    Attributes
    ----------
    threads : int
        Number of torch's threads.
    kernels : "onednn" or "native"
        Torch's CPU kernels to use.
    """

    threads: int = 1
    kernels: Kernels = "onednn"

    def __post_init__(self) -> None:
        check_whole("threads", self.threads, 1)
        check_one_of("kernels", self.kernels, get_args(Kernels))


def calibrate_scenario(
    scenario: Scenario, kinds: Sequence[NodeKind] = (NodeKind(),), *, rounds: int = 1, liars: int | None = None
) -> Calibration:
    """Measure the float noise between a scenario's nodes.

    Parameters
    ----------
    scenario : Scenario
        Model, data, nodes and attack, with strategy "solon". Every node computes, regardless of `compute_once`.
    kinds : sequence of NodeKind
        Kinds that are assigned to the nodes in turn.
    rounds, liars
        See `solon_fl.strategies.calibrate`.

    Raises
    ------
    ConfigurationError
        If the strategy is another one, or if there is an attack and the engine is "ray", whose order of nodes is
        unpredictable.
    GroupFailedError
        If no group could be compared.
    """
    if scenario.strategy != "solon":
        raise ConfigurationError(f"calibration needs strategy='solon'; got strategy={scenario.strategy!r}.")
    if scenario.engine == "ray" and scenario.attack is not None:
        raise ConfigurationError(
            f"calibration with an attack needs engine='in-process'; got engine='ray', attack={scenario.attack!r}."
        )
    dataset = load_data(scenario)
    try_own_model(scenario, dataset)
    client = ImageClient(replace(scenario, compute_once=False), dataset)
    model = build_model(scenario.model, dataset.input_shape, dataset.num_classes, seed=scenario.config.seed)
    arrays = ArrayRecord({name: to_array(value) for name, value in model.state_dict().items()})
    outcome: list[Calibration | SolonError] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            found: Calibration | SolonError = calibrate(
                *(grid, arrays, scenario.config),
                buffers=buffer_names(model),
                train_config=ConfigRecord({"lr": scenario.local_learning_rate}),
                rounds=rounds,
                timeout=scenario.timeout,
                liars=liars,
            )
        except SolonError as error:  # Flower's engine would hide it
            found = error
        outcome.append(found)

    run_apps(server_app, client.client_app([_lying(scenario), _computing_as(tuple(kinds))]), scenario)
    if isinstance(outcome[0], SolonError):
        raise outcome[0]
    return outcome[0]


def _computing_as(kinds: tuple[NodeKind, ...]) -> Mod:
    """Return a mod that makes each node compute like its kind."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        with _computing(kinds[partition_id(context) % len(kinds)]):
            return call_next(message, context)

    return mod


@contextmanager
def _computing(kind: NodeKind) -> Iterator[None]:
    threads, enabled = torch.get_num_threads(), torch.backends.mkldnn.enabled
    torch.set_num_threads(kind.threads)
    # The context manager `flags` would set more than this, with a warning. Its types hide that this is a property.
    setattr(torch.backends.mkldnn, "enabled", kind.kernels == "onednn")  # noqa: B010
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        setattr(torch.backends.mkldnn, "enabled", enabled)  # noqa: B010


def _lying(scenario: Scenario) -> Mod:
    """Return a mod that makes the scenario's liars lie.

    Liars are chosen by partition id here, as calibration gives all nodes of a group the same slot.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if scenario.attack is None or partition_id(context) not in scenario.liars:
            return call_next(message, context)
        attack = lone_liar_mod(scenario.attack, SolonTask.from_message(message))
        return attack(message, context, call_next)

    return mod
