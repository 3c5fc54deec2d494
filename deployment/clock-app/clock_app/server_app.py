"""The server, which runs the scenario's strategy and prints a line of JSON for every round."""

import json
from dataclasses import asdict

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from solon_fl.simulations.run import Outcome, RoundRecord, Scenario, ScenarioServer, jsonable, load_data, rebuilt

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and print a simulation's record of every round, with the measured seconds."""
    scenario = rebuilt(Scenario, json.loads(str(context.run_config["scenario"])))
    outcome = Outcome.of(scenario)

    def tell(record: RoundRecord) -> None:
        print(f"record {json.dumps(jsonable(asdict(record)))}", flush=True)

    ScenarioServer(outcome, load_data(scenario), tell).train(grid, float(context.run_config["round-timeout"]))
    if outcome.error is not None:
        raise RuntimeError(outcome.error)
