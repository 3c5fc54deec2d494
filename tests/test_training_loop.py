"""The code of the how-tos for training loops runs unchanged, with the same results as plain torch."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from solon_fl import GroupFailedError, RealDecoder, SolonConfig
from solon_fl.clients import Batch
from solon_fl.config import Verification
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import BelowTolerance
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.strategies import SolonStrategy
from tests.support import vector_of

HOW_TO = Path(__file__).parent.parent / "docs/how-to"
NAMES_OF_PAGES = (
    *("data-loaders", "dropout-and-batchnorm", "evaluate-and-stop-early"),
    *("schedules-and-clipping", "several-gpus"),
)
PAGES = [(HOW_TO / f"{name}.md").read_text() for name in NAMES_OF_PAGES]
SECTIONS = {section.partition("\n")[0]: section for page in PAGES for section in page.split("\n## ")[1:]}
Names = dict[str, Any]


def code_of(section: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL))


(SETUP,) = {code_of(page.partition("\n## ")[0]) for page in PAGES}  # the same on all pages


@pytest.fixture
def run() -> Callable[..., Names]:
    """Return a function that executes the pages' first code and the code under a heading, and returns all names.

    In between, the second argument replaces names.
    """

    def execute(heading: str, change: Callable[[Names], Names] = lambda names: {}) -> Names:
        names: Names = {}
        with torch.random.fork_rng(devices=[]):
            exec(SETUP, names)
            names.update(change(dict(names)))
            exec(code_of(SECTIONS[heading]), names)
        return names

    return execute


def alone(
    names: Names,
    *,
    client: str = "Client",
    rounds: int = 4,
    batches: int = 2,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.1),
    make_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    before_step: Callable[[nn.Module], object] = lambda model: None,
    after_step: Callable[[nn.Module], object] = lambda model: None,
) -> Tensor:
    """Train in plain torch, accumulating the gradients of all batches of two groups."""
    with torch.random.fork_rng(devices=[]):
        model = names["build_model"]().to(names["Client"]().device())
    optimizer = make_optimizer(list(model.parameters()))
    scheduler = None if make_scheduler is None else make_scheduler(optimizer)
    for number in range(rounds):
        optimizer.zero_grad()
        for index in range(2 * batches):
            batch = Batch(0, number + 1, index, place=number * 2 * batches + index)
            (names[client]().batch_loss(model, batch, None) / (2 * batches)).backward()
        before_step(model)
        optimizer.step()
        after_step(model)
        if scheduler is not None:
            scheduler.step()
    return vector_of(ArrayRecord({name: value.cpu() for name, value in model.state_dict().items()}))


def assert_same(result: Any, expected: Tensor, rtol: float = 1e-6) -> None:
    found = vector_of(result.arrays)
    assert float((found - expected).norm() / expected.norm()) < rtol


def test_every_section_with_code_is_tested() -> None:
    headings = {heading for heading, section in SECTIONS.items() if code_of(section)}
    assert headings == set(re.findall(r'(?:run\(|SECTIONS\[)"(.*?)"[],)]', Path(__file__).read_text()))


def test_an_epoch_has_each_example_once(run: Callable[..., Names], monkeypatch: pytest.MonkeyPatch) -> None:
    names, seen, draw = run("Epochs"), {}, Batch.sample_epoch

    def watched(batch: Batch, num_examples: int, batch_size: int) -> Tensor:
        chosen = draw(batch, num_examples, batch_size)
        seen[batch.place] = chosen.tolist()
        return chosen

    monkeypatch.setattr(Batch, "sample_epoch", watched)
    names["train"](names["Client"](), rounds=int(names["rounds_per_epoch"]))
    assert len(seen) == 8
    assert sorted(example for part in seen.values() for example in part) == list(range(64))


def test_a_data_loader_gets_the_batches_of_the_task(run: Callable[..., Names]) -> None:
    names = run("Give the DataLoader the task's batches")
    node = type("Node", (), {"build_model": names["Client"].build_model, "client_app": lambda _: names["app"]})()
    result = names["train"](node)
    assert_same(result, alone(names, client="LoadingClient"))
    assert_same(names["loaded"], vector_of(result.arrays))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # torch's forks
def test_worker_processes_load_the_batches_and_a_running_loader_is_noticed(run: Callable[..., Names]) -> None:
    names = run("Give the DataLoader the task's batches")
    exec(code_of(SECTIONS["Worker processes"]), names)
    assert_same(names["train"](names["PrefetchingClient"](), rounds=1), alone(names, rounds=1))
    exec(code_of(SECTIONS["Why a running loader breaks equality"]), names)
    (message,) = re.findall(r"GroupFailedError: (.*?), \.\.\.", PAGES[0], flags=re.DOTALL)
    with pytest.raises(GroupFailedError, match=re.escape(message.replace("\n", " "))):
        names["train"](names["RunningClient"]())


def test_all_nodes_drop_the_same(run: Callable[..., Names]) -> None:
    names = run("Dropout")
    reports = names["dropped"].train_metrics_clientapp.values()
    assert [(report["failed-groups"], report["corrupt-nodes"]) for report in reports] == [([], [])] * 4
    without = names["train"](names["Client"]())
    assert float((vector_of(names["dropped"].arrays) - vector_of(without.arrays)).norm()) > 1e-3


def test_statistics_are_trained(run: Callable[..., Names]) -> None:
    state = run("BatchNorm")["normalised"].arrays.to_torch_state_dict()
    assert int(state["1.num_batches_tracked"]) == 8
    assert float(state["1.running_mean"].abs().max()) > 1e-3


def test_batches_per_group_accumulates(run: Callable[..., Names]) -> None:
    names = run("Gradient accumulation")
    assert_same(names["accumulated"], alone(names, batches=4))


def test_the_exact_average_gradient_is_clipped(run: Callable[..., Names]) -> None:
    names = run("Gradient clipping")
    norms = []

    def clip(model: nn.Module) -> None:
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.5)))

    assert_same(names["clipped"], alone(names, before_step=clip))
    assert min(norms) > 0.5  # each step was clipped


def tied_model() -> nn.Module:
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 1))
    model[2].weight = model[0].weight  # the second name of one tensor
    return model


def test_a_tied_weight_counts_once_in_the_norm(run: Callable[..., Names]) -> None:
    names = run("Gradient clipping", lambda _: {"build_model": tied_model})

    def clip(model: nn.Module) -> None:
        assert float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.5)) > 0.5

    expected = alone(names, before_step=clip)
    assert_same(names["clipped_tied"], expected)
    assert float((vector_of(names["clipped"].arrays) - expected).norm()) > 1e-3  # so the page has a second recipe
    untied = run("Gradient clipping")
    assert_same(untied["clipped_tied"], vector_of(untied["clipped"].arrays))


@pytest.mark.parametrize("tied", [False, True])
def test_weight_decay_goes_by_name(run: Callable[..., Names], tied: bool) -> None:
    names = run("Weight decay by name", lambda _: {"build_model": tied_model} if tied else {})

    def decaying_weights(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in parameters if p.ndim == number], "weight_decay": decay}
            for number, decay in ((2, 0.1), (1, 0.0))
        ]
        return torch.optim.AdamW(groups, lr=0.01)

    expected = alone(names, make_optimizer=decaying_weights)
    assert_same(names["decayed"], expected)
    without = alone(names, make_optimizer=lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0))
    assert float((expected - without).norm()) > 1e-3


def test_weights_are_clamped_after_each_step(run: Callable[..., Names]) -> None:
    names = run("Weight constraints")

    @torch.no_grad()
    def clamp(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.clamp_(-0.3, 0.3)

    assert_same(names["clamped"], alone(names, after_step=clamp))
    assert float(alone(names).abs().max()) > 0.3  # the parameter did change


def test_schedules_are_those_of_torch(run: Callable[..., Names]) -> None:
    names = run("Learning-rate schedules")
    expected = alone(names, make_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.5))
    assert_same(names["scheduled"], expected)
    assert float((expected - alone(names)).norm()) > 1e-3


def test_nodes_may_compute_in_bfloat16(run: Callable[..., Names]) -> None:
    names = run("Mixed precision")
    expected = alone(names)
    assert_same(names["mixed"], expected, rtol=1e-2)
    assert float((vector_of(names["mixed"].arrays) - expected).norm()) > 1e-5  # bfloat16 was used
    assert {array.dtype for array in names["mixed"].arrays.values()} == {"float32"}
    reports = names["mixed"].train_metrics_clientapp.values()
    assert [report["failed-groups"] for report in reports] == [[], [], [], []]


def test_the_best_model_is_kept_and_the_run_ends_soon_after(run: Callable[..., Names]) -> None:
    names = run("The best model, and early stopping")
    best, result = names["best"], names["result"]
    losses = [metrics["loss"] for metrics in result.evaluate_metrics_serverapp.values()]
    assert best.loss == min(losses) < losses[-1]
    assert len(losses) - 1 == best.round + best.patience + 1 < 60
    model = names["build_model"]()
    model.load_state_dict(best.arrays.to_torch_state_dict())
    assert (model(names["inputs"]) - names["targets"]).square().mean().item() == best.loss


def test_the_average_is_that_of_plain_torch(run: Callable[..., Names]) -> None:
    names = run("Averaged weights (EMA, SWA)")
    kept: list[AveragedModel] = []
    decay = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]  # torch's

    def average(model: nn.Module) -> None:
        if not kept:
            kept.append(AveragedModel(model, multi_avg_fn=decay))
        kept[0].update_parameters(model)

    last = alone(names, after_step=average)
    expected = kept[0].cpu().state_dict()
    found = names["averaged"].state_dict()
    assert found.pop("n_averaged") == expected.pop("n_averaged") == 4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert float((vector_of(ArrayRecord(found)) - last).norm()) > 1e-3


def test_numpy_is_seeded_by_the_batch(run: Callable[..., Names]) -> None:
    names = run("Augmentation, and counters")
    expected = alone(names, client="AugmentingClient")
    assert_same(names["augmented"], expected)
    assert float((expected - alone(names)).norm()) > 1e-3


class Heads(nn.Module):
    """A model whose two heads take turns, according to the round in `turn`."""

    turn = 0

    def __init__(self) -> None:
        super().__init__()
        torch.default_generator.manual_seed(0)
        self.heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.heads[self.turn](inputs)
        return output


def test_what_a_round_does_not_use_stays_where_it_is(run: Callable[..., Names]) -> None:
    def turning(names: Names) -> Names:
        def batch_loss(self: object, model: Heads, batch: Batch, context: object) -> Tensor:
            model.turn = batch.round % 2
            loss: Tensor = names["Client"].batch_loss(self, model, batch, context)
            return loss

        return {"build_model": Heads, "Client": type("Turning", (names["Client"],), {"batch_loss": batch_loss})}

    names = run("Parameters that a round does not use", turning)
    assert_same(names["turns"], alone(names, make_optimizer=partial(torch.optim.AdamW, lr=0.1)))


class Rows(nn.Module):
    """An embedding with many rows that are never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.default_generator.manual_seed(0)
        self.embedding, self.output = nn.Embedding(120, 8), nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.output(self.embedding((inputs.abs() * 5).long().clamp(max=19)).mean(1))
        return output


@pytest.mark.slow
def test_small_lies_move_unused_rows_under_adam_unless_eps_is_large_or_digests_tell(run: Callable[..., Names]) -> None:
    names = run("Adam, and lies below the tolerance")
    assert_same(names["careful"], alone(names, make_optimizer=partial(torch.optim.Adam, lr=0.01, eps=1e-5)))
    client = run("Epochs", lambda _: {"build_model": Rows})["Client"]()

    def moved(verification: Verification = "algebra", eps: float = 1e-8) -> float:
        config = SolonConfig(num_nodes=10, byzantine=2, compression=6, group_size=10, verification=verification)
        decoder = config.make_decoder()
        assert isinstance(decoder, RealDecoder)
        liars = attack_mod(BelowTolerance(decoder, size=0.02), {1, 3})
        grid = InProcessGrid(client.client_app([liars]), config.num_nodes)
        start = Rows().state_dict()
        strategy = SolonStrategy(config, partial(torch.optim.Adam, lr=0.01, eps=eps))
        arrays = strategy.start(grid, ArrayRecord(start), num_rounds=4, timeout=60).arrays.to_torch_state_dict()
        return float((arrays["embedding.weight"] - start["embedding.weight"])[20:].abs().max())

    with torch.random.fork_rng(devices=[]):
        assert moved() > 0.005
        assert moved(eps=1e-5) < 1e-3
        assert moved("digest") == 0


def test_training_losses_are_reported(run: Callable[..., Names]) -> None:
    losses = run("Training loss")["losses"]
    assert len(losses) == 4
    assert all(0 < loss < 10 for loss in losses)


def test_two_devices_send_what_one_does(run: Callable[..., Names]) -> None:
    names = run("Several GPUs in a node")
    assert_same(names["on_two"], alone(names))


def test_nodes_evaluate_with_the_users_metric(run: Callable[..., Names]) -> None:
    names = run("Evaluation on the nodes")
    assert len(names["errors"]) == 4
    assert names["errors"][-1] < names["errors"][0]
