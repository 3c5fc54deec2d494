"""The server, which averages the groups' changes of the model with Solon's strategy in mode "update"."""

from functools import partial

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from own_model.task import Net, load_data, test
from solon_fl import SolonConfig
from solon_fl.strategies import Checkpoints, RoundReport, SolonStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and print each round's accuracy and the nodes that lied."""
    run = context.run_config
    data = load_data()
    torch.manual_seed(0)
    net = Net()

    def tell(report: RoundReport) -> None:
        labels = [node.label for node in strategy.ledger.values() if node.node_id in report.corrupt_nodes]
        sent, received = report.bytes_out / 1e6, report.bytes_in / 1e6
        print(
            f"round {report.round}: {sent:.2f} MB sent, {received:.2f} received, lying: {', '.join(labels) or 'nobody'}"
        )

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        net.load_state_dict(arrays.to_torch_state_dict())
        accuracy = test(net, data.test_inputs, data.test_labels)
        print(f"round {server_round}: accuracy {accuracy:.1%}")
        return MetricRecord({"accuracy": accuracy})

    strategy = SolonStrategy(
        SolonConfig(
            num_nodes=int(run["num-nodes"]),
            byzantine=int(run["byzantine"]),
            compression=int(run["compression"]),
            mode="update",
        ),
        optimizer=partial(torch.optim.SGD, lr=1.0),  # adds the average change unscaled
        on_round=tell,
        checkpoints=Checkpoints(str(run["checkpoints"])) if run["checkpoints"] else None,
    )
    strategy.start(
        grid,
        ArrayRecord(net.state_dict()),
        num_rounds=int(run["num-rounds"]),
        timeout=float(run["round-timeout"]),
        evaluate_fn=evaluate,
    )
    print(f"{'node':<22}{'state':<13}{'rounds':>6}{'lies':>6}{'malformed':>11}{'not awaited':>13}")
    for node in strategy.ledger.values():
        counts = f"{node.rounds:>6}{node.lying:>6}{node.malformed:>11}{node.silent:>13}"
        print(f"{node.label:<22}{node.state:<13}{counts}")
