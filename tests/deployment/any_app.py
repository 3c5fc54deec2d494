"""A Flower app as Flower's template makes it, with FedAvg and without Solon."""

from pathlib import Path

__all__ = ["write_app"]

PROJECT = """
[project]
name = "my-app"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr>=1.41"]

[tool.flwr.app]
publisher = "me"

[tool.flwr.app.components]
serverapp = "my_app.server_app:app"
clientapp = "my_app.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 9
round-timeout = 8
"""
CLIENT = '''
import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    """Each node pulls the model to its own number."""
    model = message.content["arrays"]["w"].numpy()
    arrays = ArrayRecord({"w": Array(np.full_like(model, float(context.node_config["number"])))})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
'''
SERVER = """
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    def evaluate(server_round, arrays):
        print(f"after round {server_round}: {arrays['w'].numpy()[0]:g}", flush=True)

    FedAvg(fraction_evaluate=0.0).start(
        grid,
        ArrayRecord({"w": Array(np.zeros(4))}),
        num_rounds=context.run_config["num-server-rounds"],
        timeout=context.run_config["round-timeout"],
        evaluate_fn=evaluate,
    )
"""


def write_app(folder: Path) -> Path:
    """Write the app into a new folder, and return the folder."""
    package = folder / "my-app" / "my_app"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(PROJECT)
    for name, text in {"__init__": "", "client_app": CLIENT, "server_app": SERVER}.items():
        (package / f"{name}.py").write_text(text)
    return package.parent
