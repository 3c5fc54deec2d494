"""The code of the how-to for training loops runs as it stands, and does what plain torch does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from solon_fl.clients import Batch
from tests.support import vector_of

PAGE = (Path(__file__).parent.parent / "docs/how-to/training-loop.md").read_text()
SECTIONS = {section.partition("\n")[0]: section for section in PAGE.split("\n## ")}
Names = dict[str, Any]


def code_of(section: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL))


@pytest.fixture
def run() -> Callable[[str], Names]:
    """Return a function that executes the page's first code and that under a heading, and returns all names."""

    def execute(heading: str) -> Names:
        names: Names = {}
        with torch.random.fork_rng(devices=[]):
            exec(code_of(PAGE.partition("\n## ")[0]), names)
            exec(code_of(SECTIONS[heading]), names)
        return names

    return execute


def alone(
    names: Names,
    *,
    rounds: int = 4,
    batches: int = 2,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.1),
    make_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    before_step: Callable[[nn.Module], object] = lambda model: None,
) -> Tensor:
    """Train as one does in plain torch, with the gradients of all batches of two groups accumulated."""
    with torch.random.fork_rng(devices=[]):
        model = names["build_model"]().to(names["Client"]().device())
    optimizer = make_optimizer(list(model.parameters()))
    scheduler = None if make_scheduler is None else make_scheduler(optimizer)
    for number in range(rounds):
        optimizer.zero_grad()
        for index in range(2 * batches):
            batch = Batch(0, number + 1, index, place=number * 2 * batches + index)
            (names["Client"]().batch_loss(model, batch, None) / (2 * batches)).backward()
        before_step(model)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return vector_of(ArrayRecord({name: value.cpu() for name, value in model.state_dict().items()}))


def assert_same(result: Any, expected: Tensor, rtol: float = 1e-6) -> None:
    found = vector_of(result.arrays)
    assert float((found - expected).norm() / expected.norm()) < rtol


def test_every_section_with_code_is_tested() -> None:
    headings = {heading for heading, section in SECTIONS.items() if code_of(section)} - {PAGE.partition("\n")[0]}
    assert headings == set(re.findall(r'run\("(.*?)"\)', Path(__file__).read_text()))


def test_an_epoch_has_each_example_once(run: Callable[[str], Names], monkeypatch: pytest.MonkeyPatch) -> None:
    names, seen, draw = run("Epochs"), {}, Batch.sample_epoch

    def watched(batch: Batch, num_examples: int, batch_size: int) -> Tensor:
        chosen = draw(batch, num_examples, batch_size)
        seen[batch.place] = chosen.tolist()
        return chosen

    monkeypatch.setattr(Batch, "sample_epoch", watched)
    names["train"](names["Client"](), rounds=int(names["rounds_per_epoch"]))
    assert len(seen) == 8
    assert sorted(example for part in seen.values() for example in part) == list(range(64))


def test_batches_per_group_accumulates(run: Callable[[str], Names]) -> None:
    names = run("Gradient accumulation")
    assert_same(names["accumulated"], alone(names, batches=4))


def test_the_exact_average_gradient_is_clipped(run: Callable[[str], Names]) -> None:
    names = run("Gradient clipping")
    norms = []

    def clip(model: nn.Module) -> None:
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.5)))

    assert_same(names["clipped"], alone(names, before_step=clip))
    assert min(norms) > 0.5  # each step was clipped


def test_schedules_are_those_of_torch(run: Callable[[str], Names]) -> None:
    names = run("Learning-rate schedules")
    expected = alone(names, make_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.5))
    assert_same(names["scheduled"], expected)
    assert float((expected - alone(names)).norm()) > 1e-3


def test_nodes_may_compute_in_bfloat16(run: Callable[[str], Names]) -> None:
    names = run("Mixed precision")
    expected = alone(names)
    assert_same(names["mixed"], expected, rtol=1e-2)
    assert float((vector_of(names["mixed"].arrays) - expected).norm()) > 1e-5  # it was bfloat16
    assert {array.dtype for array in names["mixed"].arrays.values()} == {"float32"}
    reports = names["mixed"].train_metrics_clientapp.values()
    assert [report["failed-groups"] for report in reports] == [[], [], [], []]


def test_the_best_model_is_kept_and_the_run_ends_soon_after(run: Callable[[str], Names]) -> None:
    names = run("The best model, and early stopping")
    best, result = names["best"], names["result"]
    losses = [metrics["loss"] for metrics in result.evaluate_metrics_serverapp.values()]
    assert best.loss == min(losses) < losses[-1]
    assert len(losses) - 1 == best.round + best.patience + 1 < 60
    model = names["build_model"]()
    model.load_state_dict(best.arrays.to_torch_state_dict())
    assert (model(names["inputs"]) - names["targets"]).square().mean().item() == best.loss


def test_training_losses_are_reported(run: Callable[[str], Names]) -> None:
    losses = run("Training loss")["losses"]
    assert len(losses) == 4
    assert all(0 < loss < 10 for loss in losses)


def test_two_devices_send_what_one_does(run: Callable[[str], Names]) -> None:
    names = run("Several GPUs in a node")
    assert_same(names["on_two"], alone(names))


def test_nodes_evaluate_with_the_users_metric(run: Callable[[str], Names]) -> None:
    names = run("Evaluation on the nodes")
    assert len(names["errors"]) == 4
    assert names["errors"][-1] < names["errors"][0]
