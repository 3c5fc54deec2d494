"""The nodes: a train function as in any Flower app, and the mod that makes its result a Solon share."""

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from own_model.task import Net, load_data
from own_model.task import train as train_net
from solon_fl.clients import SolonTask, solon_mod
from solon_fl.simulations.attacks.registry import make_attack_mod

app = ClientApp()


def lie_if_told(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Attack if the node's config says so, or in a simulation the run's. For trying out: your app has no such mod."""
    node, run = context.node_config, context.run_config
    simulated_liar = str(node.get("partition-id")) in str(run["liars"]).split(",")
    attack = str(node.get("attack") or (run["attack"] if simulated_liar else ""))
    if not attack:
        return call_next(message, context)
    task = SolonTask.from_message(message)
    own_number = task.group * task.group_size + task.slot
    mod = make_attack_mod(attack, frozenset({own_number}), seed=task.seed, code=task.make_code())
    return mod(message, context, call_next)


@app.train(mods=[lie_if_told, solon_mod(returns="model")])
def train(message: Message, context: Context) -> Message:
    """Return the model after one step for each batch of the task: the same on every node of a group."""
    run, data = context.run_config, load_data()
    net = Net()
    net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    samples = [
        batch.sample(len(data.train_labels), int(run["batch-size"]))
        for batch in SolonTask.from_message(message).batches
    ]
    train_net(net, [(data.train_inputs[i], data.train_labels[i]) for i in samples], float(run["learning-rate"]))
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict())}), reply_to=message)
