"""The nodes of the simulation."""

import json
from functools import cache

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from solon_fl.simulations.run import ImageClient, Scenario, make_client_app, rebuilt

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer as the scenario's node with this partition id."""
    return nodes(str(context.run_config["scenario"]))(message, context)


@cache
def nodes(scenario: str) -> ClientApp:
    """Return the ClientApp of a scenario."""
    return make_client_app(ImageClient(rebuilt(Scenario, json.loads(scenario))))
