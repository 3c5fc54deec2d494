"""The server, which uses Solon's strategy with one group per silo and prints a line for every round."""

from functools import partial

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from solon_fl import SolonConfig
from solon_fl.simulations.datasets import load_dataset
from solon_fl.simulations.datasets.models import build_model
from solon_fl.strategies import Checkpoints, RoundReport, SolonStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and print each round's accuracy and the nodes that lied."""
    run = context.run_config
    data = load_dataset("fashion-mnist-6k")
    model = build_model("cnn", (1, 28, 28), num_classes=10, seed=0)

    def tell(report: RoundReport) -> None:
        labels = [node.label for node in strategy.ledger.values() if node.node_id in report.corrupt_nodes]
        sent, received = report.bytes_out / 1e6, report.bytes_in / 1e6
        print(
            f"round {report.round}: {sent:.2f} MB sent, {received:.2f} received, lying: {', '.join(labels) or 'nobody'}"
        )

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        with torch.inference_mode():
            right = model(data.test_inputs).argmax(1) == data.test_labels
        accuracy = right.float().mean().item()
        print(f"round {server_round}: accuracy {accuracy:.1%}")
        return MetricRecord({"accuracy": accuracy})

    strategy = SolonStrategy(
        SolonConfig(
            num_nodes=len(str(run["silos"]).split(",")) * int(run["machines"]),
            group_size=int(run["machines"]),
            byzantine=int(run["byzantine"]),
            compression=int(run["compression"]),
            grouping="silo",  # from the registered names, such as "silo-a/1", or from the nodes' configs
        ),
        optimizer=partial(torch.optim.Adam, lr=float(run["learning-rate"])),
        on_round=tell,
        checkpoints=Checkpoints(str(run["checkpoints"])) if run["checkpoints"] else None,
    )
    strategy.start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=int(run["num-rounds"]),
        timeout=float(run["round-timeout"]),
        evaluate_fn=evaluate,
    )
    print(f"{'node':<22}{'state':<13}{'rounds':>6}{'lies':>6}{'malformed':>11}{'not awaited':>13}")
    for node in strategy.ledger.values():
        counts = f"{node.rounds:>6}{node.lying:>6}{node.malformed:>11}{node.silent:>13}"
        print(f"{node.label:<22}{node.state:<13}{counts}")
