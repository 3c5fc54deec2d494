"""The machines of the silos, with a model and the loss of one batch of the silo's own data."""

from functools import cache

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from solon_fl.clients import Batch, SolonClientMixin, answer_silo_queries
from solon_fl.simulations.attacks.registry import lie_if_told
from solon_fl.simulations.datasets import load_dataset
from solon_fl.simulations.datasets.models import build_model


@cache
def silo_data(silo: int, num_silos: int) -> tuple[Tensor, Tensor]:
    """Return a silo's images and labels; each silo has some of the classes, so none could learn them all alone."""
    data = load_dataset("fashion-mnist-6k")
    own = data.train_labels * num_silos // data.num_classes == silo
    return data.train_inputs[own], data.train_labels[own]


class SiloClient(SolonClientMixin):
    """Classifies images of clothes with the data of its silo."""

    def build_model(self, context: Context) -> nn.Module:
        """Return the same network as on the server."""
        return build_model("cnn", (1, 28, 28), num_classes=10, seed=0)

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        """Return the mean loss of this batch's examples, which are the same on every machine of the silo."""
        silos = str(context.run_config["silos"]).split(",")
        all_images, all_labels = silo_data(silos.index(str(context.node_config["silo"])), len(silos))
        chosen = batch.sample(len(all_labels), int(context.run_config["batch-size"]))
        device = self.device()
        return cross_entropy(model(all_images[chosen].to(device)), all_labels[chosen].to(device))


def simulate_silos(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Assign a silo to a simulated node, which has only a partition id; a real node gets its silo when it starts."""
    if "silo" not in context.node_config:
        silos = str(context.run_config["silos"]).split(",")
        context.node_config["silo"] = silos[int(context.node_config["partition-id"]) % len(silos)]
    return call_next(message, context)


app = ClientApp(mods=[simulate_silos])
app.train(mods=[lie_if_told])(SiloClient().train)
answer_silo_queries(app)
