"""The nodes, which compute the Trainer's loss and send a coded share of the adapters' gradient."""

from lora.task import make_trainer
from solon_fl.clients.hugging_face import TrainerClient
from solon_fl.simulations.attacks.registry import lie_if_told

client = TrainerClient(lambda context: make_trainer(context.run_config))
app = client.client_app(mods=[lie_if_told])
