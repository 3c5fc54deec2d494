"""The nodes, with a model and the loss of one batch."""

from functools import cache

from flwr.app import Context
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from solon_fl.clients import Batch, SolonClientMixin
from solon_fl.simulations.attacks.registry import lie_if_told
from solon_fl.simulations.datasets import Dataset, load_dataset
from solon_fl.simulations.datasets.models import build_model


@cache
def fashion() -> Dataset:
    """Return the 6,000 images that come with solon_fl; each process reads them once."""
    return load_dataset("fashion-mnist-6k")


class FashionClient(SolonClientMixin):
    """Classifies images of clothes."""

    def build_model(self, context: Context) -> nn.Module:
        """Return the same network as on the server."""
        return build_model(str(context.run_config["model"]), (1, 28, 28), num_classes=10, seed=0)

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        """Return the mean loss of this batch's examples, which are the same on every node of a group."""
        data = fashion()
        chosen = batch.sample(len(data.train_labels), int(context.run_config["batch-size"]))
        images, labels = data.train_inputs[chosen], data.train_labels[chosen]
        device = self.device()
        return cross_entropy(model(images.to(device)), labels.to(device))


app = FashionClient().client_app(mods=[lie_if_told])
