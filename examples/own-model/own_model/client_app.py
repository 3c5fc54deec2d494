"""The nodes: a train function as in any Flower app, and a mod that turns its result into a Solon share."""

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from own_model.task import Net, load_data
from own_model.task import train as train_net
from solon_fl.clients import SolonTask, solon_mod
from solon_fl.simulations.attacks.registry import lie_if_told

app = ClientApp()


@app.train(mods=[lie_if_told, solon_mod(returns="model")])
def train(message: Message, context: Context) -> Message:
    """Return the model after one step for each batch of the task; it is the same on every node of a group."""
    run, data = context.run_config, load_data()
    net = Net()
    net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    samples = [
        batch.sample(len(data.train_labels), int(run["batch-size"]))
        for batch in SolonTask.from_message(message).batches
    ]
    train_net(net, [(data.train_inputs[i], data.train_labels[i]) for i in samples], float(run["learning-rate"]))
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict())}), reply_to=message)
