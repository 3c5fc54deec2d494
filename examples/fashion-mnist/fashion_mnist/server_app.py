"""The server, which uses Solon's strategy and prints a line for every round."""

from functools import partial

import torch
from flwr.app import ArrayRecord, Context, MetricRecord, UserConfig
from flwr.serverapp import Grid, ServerApp

from fashion_mnist.client_app import FashionClient
from solon_fl import SolonConfig
from solon_fl.monitoring import LiveReport
from solon_fl.simulations.datasets import load_dataset
from solon_fl.simulations.datasets.models import build_model
from solon_fl.strategies import Checkpoints, LocalReferee, RoundReport, SolonStrategy, TrustedNodes, model_sha256

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and print each round's accuracy and the nodes that lied."""
    run = context.run_config
    data = load_dataset("fashion-mnist-6k")
    model = build_model(str(run["model"]), (1, 28, 28), num_classes=10, seed=0)

    def tell(report: RoundReport) -> None:
        labels = {node.node_id: node.label for node in strategy.ledger.values()}
        lying = ", ".join(labels[node] for node in report.corrupt_nodes) or "nobody"
        different = ", ".join(labels[node] for node in report.different_nodes)
        sent, received = f"{report.bytes_out / 1e6:.2f} MB", f"{report.bytes_in / 1e6:.2f}"
        others = f", other bits: {different}" if different else ""
        others += "".join(f", referee asked: {asked.reason}" for asked in report.referee_reports.values())
        print(f"round {report.round}: {sent} sent, {received} received, lying: {lying}{others}")

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        with torch.inference_mode():
            right = model(data.test_inputs).argmax(1) == data.test_labels
        accuracy = right.float().mean().item()
        print(f"round {server_round}: accuracy {accuracy:.1%}")
        return MetricRecord({"accuracy": accuracy})

    strategy = SolonStrategy(
        SolonConfig(
            num_nodes=int(run["num-nodes"]),
            byzantine=int(run["byzantine"]),
            compression=int(run["compression"]),
            code=str(run["code"]),  # type: ignore[arg-type]  # SolonConfig checks it, and the next three
            verification=str(run["verification"]),  # type: ignore[arg-type]
            redundancy=str(run["redundancy"]),  # type: ignore[arg-type]
            referee=bool(run["referee"]),
            audit=float(run["audit"]),
            downlink=str(run["downlink"]),  # type: ignore[arg-type]
        ),
        optimizer=partial(torch.optim.Adam, lr=float(run["learning-rate"])),
        on_round=tell,
        monitors=LiveReport(str(run["report"])) if run["report"] else (),
        referee=referee_of(run),
        checkpoints=Checkpoints(str(run["checkpoints"])) if run["checkpoints"] else None,
    )
    result = strategy.start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=int(run["num-rounds"]),
        timeout=float(run["round-timeout"]),
        evaluate_fn=evaluate,
    )
    print(f"SHA-256 of the model: {model_sha256(result.arrays)}")
    print(f"{'node':<22}{'state':<13}{'rounds':>6}{'lies':>6}{'malformed':>11}{'not awaited':>13}{'other bits':>12}")
    for node in strategy.ledger.values():
        counts = f"{node.rounds:>6}{node.lying:>6}{node.malformed:>11}{node.silent:>13}{node.different_bits:>12}"
        print(f"{node.label:<22}{node.state:<13}{counts}")


def referee_of(run: UserConfig) -> LocalReferee | TrustedNodes | None:
    """Return the referee of the settings, in this process or on trusted nodes, or None."""
    names = str(run["referee"])
    if names == "server":
        return LocalReferee(FashionClient(), run_config=run)
    return TrustedNodes(names.split(",")) if names else None
