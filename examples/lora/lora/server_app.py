"""The server, which uses Solon's strategy with the Trainer's optimizer and schedule."""

from typing import Any

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from lora.client_app import client
from lora.task import load_examples, test
from solon_fl import SolonConfig
from solon_fl.strategies import Checkpoints, RoundReport, SolonStrategy, buffer_names, model_sha256

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the adapters, and print each round's accuracy at continuing texts and the nodes that lied."""
    run = context.run_config
    config = SolonConfig(
        num_nodes=int(run["num-nodes"]),
        byzantine=int(run["byzantine"]),
        compression=int(run["compression"]),
        code=str(run["code"]),  # type: ignore[arg-type]  # SolonConfig checks it
    )
    trained = client.for_server(context, num_rounds=int(run["num-rounds"]), seed=config.seed)
    model: Any = trained.model.model
    _, tested = load_examples(str(run["model"]), str(run["text"]))

    def tell(report: RoundReport) -> None:
        labels = {node.node_id: node.label for node in strategy.ledger.values()}
        lying = ", ".join(labels[node] for node in report.corrupt_nodes) or "nobody"
        different = ", ".join(labels[node] for node in report.different_nodes)
        sent, received = f"{report.bytes_out / 1e6:.2f} MB", f"{report.bytes_in / 1e6:.2f}"
        others = f", other bits: {different}" if different else ""
        print(f"round {report.round}: {sent} sent, {received} received, lying: {lying}{others}")

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        trained.model.load_state_dict(arrays.to_torch_state_dict())
        accuracy = test(model, tested)
        print(f"round {server_round}: accuracy {accuracy:.1%}")
        return MetricRecord({"accuracy": accuracy})

    strategy = SolonStrategy(
        config,
        trained.optimizer,
        scheduler=trained.scheduler,
        buffers=buffer_names(trained.model),
        on_round=tell,
        checkpoints=Checkpoints(str(run["checkpoints"])) if run["checkpoints"] else None,
    )
    result = strategy.start(
        grid,
        ArrayRecord(trained.model.state_dict()),
        num_rounds=int(run["num-rounds"]),
        timeout=float(run["round-timeout"]),
        evaluate_fn=evaluate,
    )
    print(f"SHA-256 of the adapters: {model_sha256(result.arrays)}")
    if run["save-to"]:
        trained.model.load_state_dict(result.arrays.to_torch_state_dict())
        model.save_pretrained(str(run["save-to"]))
    print(f"{'node':<22}{'state':<13}{'rounds':>6}{'lies':>6}{'malformed':>11}{'not awaited':>13}{'other bits':>12}")
    for node in strategy.ledger.values():
        counts = f"{node.rounds:>6}{node.lying:>6}{node.malformed:>11}{node.silent:>13}{node.different_bits:>12}"
        print(f"{node.label:<22}{node.state:<13}{counts}")
