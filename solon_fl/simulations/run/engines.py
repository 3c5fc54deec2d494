"""Runs Flower apps in this process, or on Flower's own simulation engine."""

import importlib.util
import os

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from solon_fl.errors import ConfigurationError
from solon_fl.simulations.attacks import Liars
from solon_fl.simulations.run.grid import ColludersGrid, InProcessGrid
from solon_fl.simulations.run.scenario import Scenario

__all__ = ["run_apps"]


def run_apps(server_app: ServerApp, client_app: ClientApp, scenario: Scenario, liars: Liars | None = None) -> None:
    """Run a Flower app on the scenario's engine, with its number of nodes.

    Parameters
    ----------
    server_app, client_app
        The app.
    scenario : Scenario
        The scenario, which sets the number of nodes and the engine.
    liars : Liars, optional
        The liars that the ClientApp's mods use. In this process they learn each other's tasks.

    Raises
    ------
    ConfigurationError
        If the engine is not installed.
    """
    num_nodes = scenario.config.num_nodes
    if scenario.engine == "ray":
        _run_on_ray(server_app, client_app, num_nodes)
        return
    grid = InProcessGrid(client_app, num_nodes) if liars is None else ColludersGrid(client_app, num_nodes, liars)
    context = Context(run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={})
    server_app(grid, context)


def _run_on_ray(server_app: ServerApp, client_app: ClientApp, num_nodes: int) -> None:
    """Run on Flower's own simulation engine."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError(
            "engine='ray' needs Flower's simulation engine, but ray is not installed; run: pip install 'solon-fl[ray]'."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from flwr.simulation import run_simulation

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=num_nodes,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
