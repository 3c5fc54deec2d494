"""The server: the scenario's strategy, and a line of JSON for every round."""

import json
from dataclasses import asdict

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from solon_fl.simulations.run import Outcome, RoundRecord, Scenario, ScenarioServer, jsonable, load_data, rebuilt

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and tell of every round what a simulation records of it, with the seconds that the clock shows."""
    scenario = rebuilt(Scenario, json.loads(str(context.run_config["scenario"])))
    outcome = Outcome.of(scenario)

    def tell(record: RoundRecord) -> None:
        print(f"record {json.dumps(jsonable(asdict(record)))}", flush=True)

    ScenarioServer(outcome, load_data(scenario), tell).train(grid, float(context.run_config["round-timeout"]))
    if outcome.error is not None:
        raise RuntimeError(outcome.error)
