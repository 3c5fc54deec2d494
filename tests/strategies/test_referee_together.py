"""A referee works together with all other options of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp.strategy import Strategy
from torch import nn

from solon_fl.clients import SolonTask, solon_mod
from solon_fl.simulations import InProcessGrid
from solon_fl.strategies import Checkpoints, SolonStrategy
from tests.strategies.lies import liars_mod, named, play, quarantined, questions, refereed
from tests.support import REMEMBERING, SGD, Regression, Remembering, initial_model, record_of, vector_of

LIARS = {1: "reverse", 2: "one bit", 7: "another gradient"}  # two in the first group of five, one in the second


def two_groups(**changes: Any) -> Any:
    return refereed(**{"num_nodes": 10, **changes})


OPTIONS: dict[str, dict[str, Any]] = {
    "update": {"mode": "update"},
    "digests": {"verification": "digest", "num_nodes": 6},
    "reactive": {"redundancy": "reactive"},
    "reactive, a node more": {"redundancy": "reactive", "group_size": 6, "num_nodes": 12},
    "enough for algebra": {"redundancy": "reactive", "group_size": 7, "num_nodes": 14},
    "patches": {"downlink": "delta"},
    "weights": {"group_weights": (1.0, 3.0)},
    "fourier": {"code": "fourier"},
    "many": {"redundancy": "reactive", "downlink": "delta", "mode": "update", "verification": "digest", "num_nodes": 6},
}


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_under_every_option_liars_change_nothing_and_are_gone(option: str) -> None:
    config = two_groups(**OPTIONS[option])
    client = Remembering(batch_norm)
    liars = {1: "reverse", 2: "another gradient", config.group_size + 2: "noise"}
    model, reports, strategy = play(config, liars, rounds=6, client=client, model=initial_model(batch_norm))
    honest, quiet, _ = play(config, rounds=6, client=client, model=initial_model(batch_norm))
    assert questions(quiet) == 0
    if config.code == "exact":
        assert torch.equal(model, honest)
    torch.testing.assert_close(model, honest, rtol=1e-4, atol=1e-5)
    assert all(report.failed_groups == () for report in reports)
    assert questions(reports) in ({0} if config.can_decode_by_algebra else {1, 2, 3})
    assert named(reports) == quarantined(strategy) == set(liars)


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def frozen() -> nn.Module:
    model = batch_norm()
    model.get_submodule("0").requires_grad_(False)
    return model


def test_frozen_weights_are_no_part_of_what_it_computes() -> None:
    client = Remembering(frozen)
    for downlink in ("full", "delta"):
        runs = [
            play(two_groups(downlink=downlink), liars, client=client, model=initial_model(frozen))
            for liars in ({}, LIARS)
        ]
        assert torch.equal(runs[0][0], runs[1][0])
        assert quarantined(runs[1][2]) == set(LIARS)


def test_with_patches_it_computes_at_the_copy_that_the_nodes_hold() -> None:
    """The server's own model differs from the copy: at that, no share would be right."""
    config = two_groups(downlink="delta", audit=1.0)
    model, reports, strategy = play(config, rounds=5)
    assert not torch.equal(model, play(two_groups(), rounds=5)[0]), "the copy is rounded"
    assert questions(reports) == 10
    assert named(reports) == quarantined(strategy) == set()


class Named(InProcessGrid):
    """Nodes 1 to 5 are registered as a/1, ..., the others as b/6, ..."""

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=i, name=f"{'a' if i < 6 else 'b'}/{i}") for i in self._contexts]


def test_silos() -> None:
    config = two_groups(grouping="silo")
    runs = [play(config, liars, grid=Named(REMEMBERING.client_app([liars_mod(liars)]), 10)) for liars in ({}, LIARS)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert quarantined(runs[1][2]) == set(LIARS)
    assert [record.silo for record in runs[1][2].ledger.values()] == 5 * ["a"] + 5 * ["b"]


def test_a_spare_fills_the_place_of_who_is_convicted_and_may_lie_in_its_turn() -> None:
    config = two_groups()
    liars = {**LIARS, 11: "reverse"}
    model, reports, strategy = play(config, liars, num_spares=3, rounds=5)
    assert torch.equal(model, play(config, rounds=5)[0])
    assert quarantined(strategy) == set(liars)
    assert set(reports[1].groups[0].nodes) == {3, 4, 5, 11, 12}
    assert strategy._latest is not None
    assert strategy._latest.roster.num_convicted(0) == 1, "the place of 11 is empty, that of 2 is filled"
    assert strategy._latest.roster.num_convicted(1) == 0


def test_places_drawn_anew() -> None:
    """There are two liars in all, so no group of any round has more than s."""
    config = two_groups(regroup="round")
    for seed in range(4):
        model, reports, strategy = play(
            config,
            {1: "reverse", 7: "another gradient"},
            lambda server_round, node: server_round >= node // 2,
            rounds=6,
            projection_seed=seed,
        )
        assert torch.equal(model, play(config, rounds=6, projection_seed=seed)[0])
        assert named(reports) == quarantined(strategy) == {1, 7}
        assert questions(reports) == 2, "an empty place is that of a convict"


def test_a_run_that_goes_on_from_a_checkpoint_is_equal_bit_by_bit_and_convicts_stay_convicted(tmp_path: Path) -> None:
    config = two_groups(audit=0.3)

    def lies_in(server_round: int, node: int) -> bool:
        return server_round >= (1 if node == 1 else 4)

    whole, reports, _ = play(config, LIARS, lies_in, rounds=6)
    parts, first, _ = play(config, LIARS, lies_in, rounds=3, checkpoints=Checkpoints(tmp_path, every=1))
    parts, second, strategy = play(config, LIARS, lies_in, rounds=6, checkpoints=Checkpoints(tmp_path, every=1))
    assert torch.equal(whole, parts)
    assert [set(report.referee_reports) for report in reports] == [
        set(report.referee_reports) for report in (*first, *second)
    ]
    assert [report.round for report in second] == [4, 5, 6]
    assert second[0].groups[0].nodes == (None, 2, 3, 4, 5)
    assert quarantined(strategy) == set(LIARS)
    assert {
        record.node_id: record.convicted for record in strategy.ledger.values() if record.convicted
    } == dict.fromkeys(LIARS, 1)


def test_flowers_own_start() -> None:
    models = []
    for liars in ({}, LIARS):
        reports: list[Any] = []
        strategy = SolonStrategy(two_groups(), SGD, on_round=reports.append, referee=REMEMBERING)
        grid = InProcessGrid(REMEMBERING.client_app([liars_mod(liars)]), 10)
        models.append(vector_of(Strategy.start(strategy, grid, record_of(initial_model()), num_rounds=4).arrays))
        assert quarantined(strategy) == set(liars)
        assert questions(reports) == (2 if liars else 0)
    assert torch.equal(*models)


def ordinary_app(*mods: Any) -> ClientApp:
    """An ordinary Flower train function, which `solon_mod` turns into a node."""
    client, app = Regression(), ClientApp()

    @app.train(mods=[*mods, solon_mod()])
    def train_function(message: Message, context: Context) -> Message:
        task = SolonTask.from_message(message)
        gradient = client.mean_gradient(message.content.array_records["arrays"], task.batches, (), context)
        named = {"weight": gradient[:7].view(1, 7), "bias": gradient[7:]}
        return Message(RecordDict({"gradient": ArrayRecord(named)}), reply_to=message)

    return app


def test_a_client_app_with_the_mod_is_a_referee() -> None:
    config = two_groups()
    runs = [
        play(config, referee=ordinary_app(), grid=InProcessGrid(ordinary_app(liars_mod(liars)), 10))
        for liars in ({}, LIARS)
    ]
    assert torch.equal(runs[0][0], runs[1][0])
    assert quarantined(runs[1][2]) == set(LIARS)


def test_groups_are_settled_each_by_itself() -> None:
    config = two_groups(num_nodes=15)
    liars = {1: "reverse", 2: "reverse", 6: "nan"}
    model, reports, _ = play(config, liars)
    assert torch.equal(model, play(config)[0])
    assert [(set(report.referee_reports), report.convicted_nodes) for report in reports] == [
        ({0, 1}, (1, 2, 6)),
        *3 * [(set(), ())],
    ]
    assert reports[1].groups[0].nodes.count(None) == 2
    assert reports[1].groups[2].nodes.count(None) == 0
