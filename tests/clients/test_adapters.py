"""Adapters compute the same as Trainer and Lightning, and refuse features that nodes don't support."""

import copy
import importlib
import re
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from solon_fl import ConfigurationError, SolonConfig
from solon_fl.clients import Batch
from solon_fl.clients.hugging_face import TrainerClient
from solon_fl.clients.lightning import LightningClient
from solon_fl.simulations import InProcessGrid

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/hugging-face-and-lightning.md"
CONTEXT = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
WHOLE_EPOCH = SolonConfig(num_nodes=3, byzantine=1, compression=1, batches_per_group=2, code="exact")


# Tests with the packages, in one test because importing them takes seconds


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # by peft
def test_the_page_trains_as_trainer_and_lightning_do_and_lora_ends_as_without_the_liar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)), names)
        assert names["sent"] == {"model.1.weight": (2, 100), "model.1.bias": (2,), "sums_of_frozen_weights": (2,)}
        check_trainer(names)
        check_lightning(names)
        check_settings(names)
        check_dynamic_rope(names)
    check_lora(monkeypatch, capsys)


def check_trainer(names: dict[str, Any], rounds: int = 3) -> None:
    found = names["train"](InProcessGrid(names["app"], 3), CONTEXT, WHOLE_EPOCH, rounds)
    torch.manual_seed(WHOLE_EPOCH.seed)
    trainer = names["make_trainer"](CONTEXT)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.args.gradient_accumulation_steps, trainer.args.max_steps, trainer.args.disable_tqdm = 2, rounds, True
    with warnings.catch_warnings(action="ignore"):  # warnings of Trainer itself
        trainer.train()
    compare(found, trainer.model, before)

    side = names["client"].for_server(CONTEXT, num_rounds=rounds)
    tensors = [value.detach().clone() for value in side.model.parameters() if value.requires_grad]
    optimizer = side.optimizer(tensors)
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    clipped = torch.nn.utils.get_total_norm([tensor.grad for tensor in tensors])
    assert float(clipped) == pytest.approx(trainer.args.max_grad_norm, rel=1e-3)


def check_lightning(names: dict[str, Any], rounds: int = 3) -> None:
    config = SolonConfig(num_nodes=3, byzantine=1, compression=1, batches_per_group=4, code="exact")
    found = names["train_lightning"](InProcessGrid(names["lightning_app"], 3), CONTEXT, config, rounds)
    torch.manual_seed(config.seed)
    module = names["Regression"]()
    before = copy.deepcopy(module.state_dict())
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with warnings.catch_warnings(action="ignore"):  # warnings of Lightning itself
        trainer = names["lightning"].Trainer(max_epochs=rounds, accumulate_grad_batches=4, accelerator="cpu", **quiet)
        trainer.fit(module, names["make_loader"](CONTEXT))
    compare(found, module, before)


def check_settings(names: dict[str, Any]) -> None:
    """Label smoothing, bfloat16 and checkpointing follow the Trainer's settings."""

    precise: list[Any] = []

    def make_trainer(context: Context) -> Any:
        plain = names["make_trainer"](context)
        for value in plain.model.parameters():
            value.data.mul_(20)  # otherwise the loss is that of guessing, in any precision
        precise.append(copy.deepcopy(plain.model))
        settings = {"bf16": True, "label_smoothing_factor": 0.1, "activation_checkpointing": True}
        args = names["TrainingArguments"]("outputs", per_device_train_batch_size=16, use_cpu=True, **settings)
        return names["Trainer"](model=plain.model, args=args, train_dataset=plain.train_dataset)

    client, batch = TrainerClient(make_trainer), Batch(0, 1, 0, place=0)
    model: Any = client.build_model(CONTEXT)
    loss = client.batch_loss(model, batch, CONTEXT)
    start = batch.sample_epoch(32, 16)
    ids = (start[:, None] + torch.arange(8)) % 32
    expected = []
    for mixed in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            logits = precise[0](input_ids=ids).logits.float()
        expected.append(cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=0.1))
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=0)
    assert abs(loss - expected[1]) > 1e-4 * loss
    assert model.model.is_activation_checkpointing


def check_dynamic_rope(names: dict[str, Any]) -> None:
    """Dynamic RoPE's frequencies depend on the longest batch so far, so they differ on a node that missed a round."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    settings = {**sizes, "num_attention_heads": 2, "rope_parameters": rope}
    model = names["LlamaForCausalLM"](names["LlamaConfig"](**settings))
    args = names["TrainingArguments"]("outputs", use_cpu=True)
    client = TrainerClient(lambda context: names["Trainer"](model=model, args=args, train_dataset=[{}]))
    with pytest.raises(ConfigurationError, match="can't compute with rope_type='dynamic'"):
        client.build_model(CONTEXT)


def compare(found: nn.Module, expected: nn.Module, before: dict[str, Tensor]) -> None:
    """Check that two models are equal up to rounding, and were trained."""
    moved = 0.0
    for name, trained in expected.state_dict().items():
        value = trained.cpu()  # the Trainer's model is on the GPU, if there is one
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-3, atol=1e-4)
        moved = max(moved, float((value - before[name]).abs().max()))
    assert moved > 1e-2


def check_lora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples/lora"))
    client, server = (importlib.import_module(f"lora.{name}_app") for name in ("client", "server"))
    project = tomllib.loads((ROOT / "examples/lora/pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert project["components"] == {"serverapp": "lora.server_app:app", "clientapp": "lora.resident:app"}
    digests = []
    for attack in ("reverse", ""):
        capsys.readouterr()
        settings = {**project["config"], "num-nodes": 6, "compression": 1, "num-rounds": 2, "attack": attack}
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings)
        server.app(InProcessGrid(client.app, settings["num-nodes"], run_config=settings), context)
        output = capsys.readouterr().out
        assert re.findall("other bits: (.*)", output) == (["3", "3"] if attack else [])  # partition id 2
        traffic = re.findall(r"([\d.]+) MB sent, ([\d.]+) received", output)
        assert max(float(number) for pair in traffic for number in pair) < 0.5  # 2.8 with the frozen weights
        accuracies = [float(percent) for percent in re.findall(r"accuracy ([\d.]+)%", output)]
        assert accuracies[2] > accuracies[0] + 2
        digests += re.findall("adapters: ([0-9a-f]{64})", output)
    assert digests == digests[:1] * 2


# Tests without the packages


class FakeModule(nn.Linear):
    """The parts of a LightningModule that `LightningClient` uses."""

    automatic_optimization = True

    def __init__(self, configured: Any = None) -> None:
        super().__init__(7, 1)
        self.configured = configured

    def on_before_batch_transfer(self, batch: Any, number: int) -> Any:
        return [part + 1 for part in batch]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, number: int) -> Any:
        return [part.to(device) for part in batch]

    def on_after_batch_transfer(self, batch: Any, number: int) -> Any:
        return [part * 2 for part in batch]

    def training_step(self, batch: Any) -> dict[str, Tensor]:
        return {"loss": self(batch[0]).mean()}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return self.configured(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1))


def loader_of(inputs: Tensor, **settings: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(inputs), batch_size=4, **settings)


def test_a_module_with_hooks_a_dict_and_no_number_is_computed() -> None:
    inputs = torch.randn(8, 7, generator=torch.Generator().manual_seed(0))
    client = LightningClient(lambda context: FakeModule(), lambda context: loader_of(inputs))
    model, batch = client.build_model(CONTEXT).to(client.device()), Batch(0, 1, 0, place=1)
    expected = model(((inputs[batch.sample_epoch(8, 4)] + 1) * 2).to(client.device())).mean()
    torch.testing.assert_close(client.batch_loss(model, batch, CONTEXT), expected)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield torch.ones(7)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([torch.ones(7)], "one torch DataLoader; got a list"),
        (DataLoader(Endless()), "got an IterableDataset, Endless"),
        (loader_of(torch.ones(8, 7), sampler=WeightedRandomSampler([1.0] * 8, 8)), "a WeightedRandomSampler"),
        (DataLoader(TensorDataset(torch.ones(8, 7)), batch_size=None), "a loader with batch_size=None"),
        (DataLoader(range(8), batch_sampler=[[0, 2], [1, 3]]), "a loader with the batch_sampler list"),  # type: ignore[arg-type]
    ],
)
def test_loaders_that_cant_be_followed_are_refused(loader: Any, message: str) -> None:
    client = LightningClient(lambda context: FakeModule(), lambda context: loader)
    with pytest.raises(ConfigurationError, match=message):
        client.batch_loss(client.build_model(CONTEXT), Batch(0, 1, 0, place=0), CONTEXT)


@pytest.mark.parametrize(
    ("configured", "has_scheduler"),
    [
        (lambda optimizer, scheduler: optimizer, False),
        (lambda optimizer, scheduler: [optimizer], False),
        (lambda optimizer, scheduler: ([optimizer], []), False),
        (lambda optimizer, scheduler: ([optimizer], [{"scheduler": scheduler, "interval": "step"}]), True),
        (lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "step"}}, True),
        (lambda optimizer, scheduler: {"optimizer": optimizer}, False),
    ],
)
def test_all_that_configure_optimizers_may_return_is_understood(configured: Any, has_scheduler: bool) -> None:
    side = LightningClient(lambda context: FakeModule(configured), lambda context: None).for_server(CONTEXT)
    assert (side.scheduler is not None) == has_scheduler
    tensors = [value.detach() for value in side.model.parameters()]
    (group,) = side.optimizer(tensors).param_groups
    assert all(one is other for one, other in zip(group["params"], tensors, strict=True))


@pytest.mark.parametrize(
    ("configured", "message"),
    [
        (lambda optimizer, scheduler: None, r"\['NoneType'\]"),
        (lambda optimizer, scheduler: [optimizer, optimizer], r"got \['SGD', 'SGD'\]"),
        (lambda optimizer, scheduler: ([optimizer], [scheduler, scheduler]), "and 2 schedulers"),
        (lambda optimizer, scheduler: ([optimizer], [scheduler]), "interval='epoch', frequency=1"),
        (
            lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "step", "frequency": 5}},
            "interval='step', frequency=5",
        ),
    ],
)
def test_what_a_server_cant_do_is_refused(configured: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LightningClient(lambda context: FakeModule(configured), lambda context: None).for_server(CONTEXT)


def test_a_module_that_optimizes_by_itself_or_is_none_is_refused() -> None:
    manual = FakeModule()
    manual.automatic_optimization = False
    with pytest.raises(ConfigurationError, match="got automatic_optimization=False"):
        LightningClient(lambda context: manual, lambda context: None).build_model(CONTEXT)
    with pytest.raises(ConfigurationError, match="must return a LightningModule; got a Linear"):
        LightningClient(lambda context: nn.Linear(1, 1), lambda context: None).build_model(CONTEXT)


def fake_trainer(**args: Any) -> Any:
    loader = DataLoader(TensorDataset(torch.ones(8, 7)), batch_size=4)
    args = {"gradient_checkpointing": False, "per_device_train_batch_size": 2, **args}
    trainer = SimpleNamespace(args=SimpleNamespace(**args), model=nn.Linear(7, 1), compute_loss=None)
    accelerator = SimpleNamespace(prepare_model=lambda model, evaluation_mode: model)
    return SimpleNamespace(**vars(trainer), accelerator=accelerator, get_train_dataloader=lambda: loader)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (lambda: nn.Linear(1, 1), r"must return a transformers.Trainer; got a Linear"),
        (lambda: fake_trainer(fp16=True), "can't compute with fp16=True"),
        (lambda: fake_trainer(neftune_noise_alpha=5.0), "can't compute with neftune_noise_alpha=5.0"),
    ],
)
def test_trainers_that_cant_be_followed_are_refused(trainer: Callable[[], Any], message: str) -> None:
    client = TrainerClient(lambda context: trainer())
    with pytest.raises(ConfigurationError, match=message):
        client.build_model(CONTEXT)
    with pytest.raises(ConfigurationError, match=message):
        client.for_server(CONTEXT, num_rounds=1)


def test_a_trainer_is_made_once_a_run_and_node() -> None:
    calls: list[Context] = []
    client = TrainerClient(lambda context: calls.append(context) or fake_trainer())  # type: ignore[func-returns-value]
    other = Context(run_id=1, node_id=0, node_config={"silo": "b"}, state=RecordDict(), run_config={})
    models = [client.build_model(context) for context in (CONTEXT, CONTEXT, other)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        models.append(client.build_model(other))
    assert len(calls) == 3
    assert models[0] is models[1]
    assert len(set(map(id, models))) == 3


def test_each_round_starts_from_the_model_as_it_was_made() -> None:
    class Remembering(nn.Linear):
        def __init__(self) -> None:
            super().__init__(7, 1)
            self.longest = 1
            self.register_buffer("table", torch.ones(2), persistent=False)

    trainer = fake_trainer()
    trainer.model = Remembering()
    client = TrainerClient(lambda context: trainer)
    for _ in range(2):
        module: Any = client.build_model(CONTEXT).model
        assert torch.equal(module.table, torch.ones(2))
        assert module.longest == 1
        assert not hasattr(module, "found")
        assert [value.requires_grad for value in module.parameters()] == [True, True]
        module.table.mul_(3)
        module.longest = module.found = 4
        module.requires_grad_(False)
    module.register_buffer("table", torch.zeros(3), persistent=False)
    assert torch.equal(client.build_model(CONTEXT).get_buffer("model.table"), torch.ones(2))


def test_checkpointing_is_switched_on() -> None:
    asked: list[Any] = []

    class Checkpointing(nn.Linear):
        def gradient_checkpointing_enable(self, settings: Any) -> None:
            asked.append(settings)

    trainer = fake_trainer(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    trainer.model = Checkpointing(7, 1)
    TrainerClient(lambda context: trainer).build_model(CONTEXT)
    assert asked == [{"use_reentrant": False}]
