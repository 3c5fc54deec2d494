"""Groups that differ: silos with their own data, groups with different hardware, a referee unlike any of them."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.proto.node_pb2 import NodeInfo
from torch import Tensor, nn

from solon_fl.clients import Batch
from solon_fl.errors import RefereeError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.strategies import LocalReferee, calibrate
from solon_fl.strategies.referee import task_of_referee
from solon_fl.task import SolonTask
from tests.strategies.lies import liars_mod, named, play, quarantined, questions, refereed
from tests.support import Regression, initial_model, record_of, vector_of

SILOS = {"a": 1.0, "b": 3.0}


class Siloed(Regression):
    """Learns a different function in each silo."""

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        inputs = torch.randn(8, 7, generator=batch.generator())
        slope = SILOS[str(context.node_config["silo"])]
        loss: Tensor = (model(inputs) - slope * inputs.sum(1, keepdim=True)).square().mean()
        return loss


class Silos(InProcessGrid):
    """Five nodes per silo, and a trusted one for each."""

    def __init__(self, kinds: dict[int, str]) -> None:
        super().__init__(Siloed().client_app([liars_mod(kinds, lambda server_round, node: True)]), 12)
        self.names = {i: f"{'a' if i <= 5 else 'b'}/{i}" for i in range(1, 11)} | {11: "a/judge", 12: "b/judge"}
        for node_id, name in self.names.items():
            self._contexts[node_id].node_config["silo"] = name[0]
        self.judged: list[tuple[int, int]] = []

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=i, name=name) for i, name in self.names.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        tasks = [(message.metadata.dst_node_id, SolonTask.from_message(message)) for message in kept]
        self.judged += [(node_id, task.group) for node_id, task in tasks if node_id > 10 and task.num_batches > 1]
        return super().push_messages(kept)


def in_silos(kinds: dict[int, str], referee: Any, **changes: Any) -> tuple[Tensor, Any, Any, Silos]:
    grid = Silos(kinds)
    config = refereed(num_nodes=10, byzantine=3, compression=2, grouping="silo", **changes)
    return *play(config, grid=grid, client=Siloed(), referee=referee, timeout=1.0, rounds=3), grid


@pytest.mark.parametrize("referee", ["local", "trusted"])
def test_each_silo_is_judged_by_its_own_data(referee: str) -> None:
    judge = LocalReferee(Siloed()) if referee == "local" else ["a/judge", "b/judge"]
    honest, reports, _, grid = in_silos({}, judge, audit=1.0)
    assert named(reports) == set()
    assert questions(reports) == 6
    assert set(grid.judged) == (set() if referee == "local" else {(11, 0), (12, 1)})
    model, reports, strategy, _ = in_silos(dict.fromkeys((1, 2, 6, 7, 8), "reverse"), judge)
    assert torch.equal(model, honest)
    assert named(reports) == quarantined(strategy) == {1, 2, 6, 7, 8}


class OfMake(Regression):
    """Nodes above six, and referees if so configured, compute with their own rounding, far above float noise."""

    def __init__(self, other: bool = False) -> None:
        super().__init__()
        self.other = other

    def gradient(self, arrays: Any, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
        gradient = super().gradient(arrays, task, context, config)
        noise = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(task.round))
        return gradient * (1 + 1e-2 * noise) if self.other or context.node_id > 6 else gradient


@pytest.mark.parametrize("code", ["exact", "fourier"])
def test_a_group_of_another_make_than_the_referee_is_not_convicted_whatever_is_known_of_others(code: Any) -> None:
    """Group 0 is like the referee, and is known to be so from the first audit on."""
    config = refereed(num_nodes=12, group_size=6, byzantine=4, compression=2, code=code, audit=1.0)
    _, reports, strategy = play(config, client=OfMake(), referee=OfMake(), rounds=4)
    assert named(reports) == quarantined(strategy) == set()
    assert [[asked.contradicted for asked in report.referee_reports.values()] for report in reports] == 4 * [
        [False, True]
    ]
    model = record_of(initial_model())
    with torch.random.fork_rng(devices=[]):
        found = calibrate(InProcessGrid(OfMake().client_app(), 12), model, config, referee=OfMake(), timeout=1.0)
    assert not found.exact
    assert any("no group could be compared" in text or "could not be compared" in text for text in found.warnings)


def refusing(change: Callable[[Tensor], Tensor], first_round: int) -> Regression:
    """Return a client whose gradient is changed from that round on."""

    class Changed(Regression):
        def gradient(self, arrays: Any, task: SolonTask, context: Context, config: dict[str, object]) -> Tensor:
            gradient = super().gradient(arrays, task, context, config)
            return change(gradient) if task.round >= first_round else gradient

    return Changed()


def test_a_referee_whose_gradient_is_not_finite_is_an_error_if_nodes_agree_on_one_that_is() -> None:
    with pytest.raises(RefereeError, match="the referee's gradient of the first batch holds NaN or infinity"):
        play(refereed(), referee=refusing(lambda gradient: gradient * torch.nan, 1))
    with pytest.raises(RefereeError, match="holds NaN or infinity, but its nodes agree on one that does not") as raised:
        play(refereed(audit=1.0), referee=refusing(lambda gradient: gradient * torch.inf, 2))
    assert vector_of(raised.value.result.arrays).isfinite().all()


def test_an_attack_leaves_the_tasks_of_referees_alone() -> None:
    """A referee's slot is 0, like that of a node that may lie."""
    task = task_of_referee(SolonTask.of_run(refereed(), 2, group=0, slot=3, dim=8, buffers=()))
    assert (task.slot, task.group_size) == (0, 1)
    lying = Regression().client_app([attack_mod(Reverse(), {0, 1})])
    grid = InProcessGrid(lying, 5)
    _, reports, strategy = play(refereed(), grid=grid, client=Regression(), referee=LocalReferee(lying))
    assert named(reports) == quarantined(strategy) == {1, 2}
