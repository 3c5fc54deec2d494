import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian

from solon_fl.baselines import GradientStrategy
from solon_fl.clients import Batch
from solon_fl.simulations import InProcessGrid
from solon_fl.wire import to_array
from tests.support import SGD, Regression, initial_model, record_of, train, vector_of


def plain_app() -> ClientApp:
    """Node n computes batch n % 7 of group n // 7, so that all nodes compute the batches of Solon's groups."""
    client, app = Regression(), ClientApp()

    @app.train()
    def plain(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        server_round = int(str(message.content.config_records["config"]["server-round"]))
        batch = Batch(0, server_round, number)
        gradient = client.mean_gradient(message.content.array_records["arrays"], [batch], (), context)
        arrays = ArrayRecord({"weight": to_array(gradient[:7].view(1, 7)), "bias": to_array(gradient[7:])})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 8})}), reply_to=message)

    return app


def test_with_fedavg_an_honest_run_equals_solons() -> None:
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=14, min_available_nodes=14)
    strategy = GradientStrategy(inner, SGD)
    result = strategy.start(InProcessGrid(plain_app(), 14), record_of(initial_model()), num_rounds=5)
    torch.testing.assert_close(vector_of(result.arrays), vector_of(train()[0].arrays), rtol=1e-5, atol=1e-6)


def test_another_aggregator_steps_with_what_it_makes_of_the_gradients() -> None:
    inner = FedMedian(fraction_evaluate=0.0, min_train_nodes=14, min_available_nodes=14)
    strategy = GradientStrategy(inner, SGD)
    result = strategy.start(InProcessGrid(plain_app(), 14), record_of(initial_model()), num_rounds=1)
    client, arrays = Regression(), record_of(initial_model())
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    gradients = torch.stack([client.mean_gradient(arrays, [Batch(0, 1, n)], (), context) for n in range(14)]).cpu()
    median = torch.quantile(gradients.double(), 0.5, dim=0)
    expected = vector_of(arrays) - 0.1 * median
    torch.testing.assert_close(vector_of(result.arrays), expected, rtol=1e-5, atol=1e-6)
