"""Whatever nodes keep, lose or claim: each has the model that it computes with, and the server's link is spared."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import nn

from solon_fl import SolonConfig
from solon_fl.baselines import (
    AggregatorStrategy,
    DracoStrategy,
    GradientStrategy,
    SignumStrategy,
    draco_client_app,
    signum_mod,
)
from solon_fl.clients import Batch, downlink_mod, keeping
from solon_fl.clients.keeping import ModelStore
from solon_fl.errors import ConfigurationError, GroupFailedError
from solon_fl.parts import MODEL
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import Reverse
from solon_fl.simulations.attacks.mods import attack_mod, silent_mod
from solon_fl.simulations.run._compat import become_server
from solon_fl.strategies import Checkpoints, RoundReport, SolonStrategy, buffer_names, model_sha256
from solon_fl.strategies.downlink import ModelSender
from solon_fl.strategies.model import ServerModel
from solon_fl.task import TASK
from solon_fl.wire import to_array, trusted_tensor
from tests.support import SGD, Regression, Remembering, initial_model, record_of, small_config

SLOW_SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
ROUNDS = 5


class Wide(nn.Module):
    """4,501 trained numbers, statistics, and (if `frozen`) 900 numbers that are not trained."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(7, 500)
        self.norm = nn.BatchNorm1d(500, affine=False, track_running_stats=not frozen)
        self.last = nn.Linear(500, 1)
        self.register_buffer("table", torch.arange(3))
        if frozen:
            self.backbone = nn.Parameter(torch.ones(900), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.norm(self.first(inputs)).tanh())
        return result


CLIENT = Remembering(Wide)
WHOLE = sum(len(array.data) for array in record_of(Wide()).values())


class Nodes:
    """Nodes that each keep their own model, as on separate machines."""

    def __init__(self) -> None:
        self.stores: dict[int, ModelStore] = {}

    def store_of(self, context: Context) -> ModelStore:
        return self.stores.setdefault(context.node_id, ModelStore())


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    own = Nodes()
    monkeypatch.setattr(keeping, "store_of", own.store_of)
    return own  # type: ignore[return-value]


def config_of(**changes: Any) -> SolonConfig:
    return small_config(**{"downlink": "delta", "code": "exact", "group_size": 7, **changes})


def run(
    config: SolonConfig | None = None,
    mods: list[Mod] | None = None,
    *,
    outside: list[Mod] | None = None,
    rounds: int = ROUNDS,
    make_model: Any = Wide,
    grid: InProcessGrid | None = None,
    num_spares: int = 0,
    timeout: float = 30.0,
    flowers_loop: bool = False,
    **arguments: Any,
) -> tuple[str, list[RoundReport], SolonStrategy]:
    """Train; return the model's SHA-256, the reports and the strategy. Mods in `outside` see what really travels."""
    config, model, reports = config or config_of(), initial_model(make_model), list[RoundReport]()
    client = CLIENT if make_model is Wide else Regression(make_model)
    strategy = SolonStrategy(
        config, SLOW_SGD, buffers=buffer_names(model), on_round=reports.append, projection_seed=0, **arguments
    )
    app = ClientApp(mods=outside or [])
    inner = client.client_app(mods)
    app.train()(lambda message, context: inner(message, context))
    app.evaluate()(lambda message, context: inner(message, context))
    grid = grid or InProcessGrid(app, config.num_nodes + num_spares)
    start = Strategy.start if flowers_loop else SolonStrategy.start
    result = start(strategy, grid, record_of(model), num_rounds=rounds, timeout=timeout)
    return model_sha256(result.arrays), reports, strategy


def honest(**changes: Any) -> str:
    return run(config_of(**changes))[0]


def at(rounds: set[int], node_ids: set[int], action: Any) -> Mod:
    """Return a mod by which these nodes do something else in these rounds."""

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        server_round = message.content.config_records["config"]["server-round"]
        if context.node_id in node_ids and server_round in rounds and TASK in message.content:
            reply: Message = action(message, context, call_next)
            return reply
        passed: Message = call_next(message, context)
        return passed

    return mod


def no_answer(message: Message, context: Context, call_next: Any) -> None:
    return None


def says(**kept: Any) -> Any:
    """Return an action: the node replies correctly, and claims this about what it keeps."""

    def action(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        reply.content[MODEL] = ConfigRecord(kept)
        return reply

    return action


def lacks(message: Message, context: Context, call_next: Any) -> Message:
    """The node says that it lacks the model, whatever it is sent."""
    record = ConfigRecord({"version": "", "fixed": "", "lacks": True})
    return Message(RecordDict({MODEL: record}), reply_to=message)


ALL = set(range(1, ROUNDS + 1))


# ---- the guarantee -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"code": "fourier"},
        {"verification": "digest"},
        {"redundancy": "reactive"},
        {"redundancy": "reactive", "verification": "digest"},
        {"regroup": "round"},
        {"stragglers": 1, "compression": 2},
    ],
    ids=str,
)
def test_liars_change_no_bit_of_a_run_with_patches(options: dict[str, Any]) -> None:
    sha256, reports, _ = run(config_of(**options), [attack_mod(Reverse(), {1, 4})])
    assert all(report.stepped for report in reports)
    assert not any(report.lacking_nodes for report in reports)
    if options.get("code") != "fourier":
        assert sha256 == honest(**options)
    if options.get("code") != "fourier" and "regroup" not in options:
        assert {node for report in reports for node in report.different_nodes} == {2, 5}


def test_after_the_first_round_a_message_is_an_eighth_of_the_model_and_statistics() -> None:
    _, reports, _ = run()
    statistics = 2 * (4 * 500 + 128) + 136
    assert reports[0].bytes_out == 14 * WHOLE
    assert all(report.bytes_out <= 14 * (WHOLE // 8 + statistics) for report in reports[1:])


def test_nodes_compute_where_the_server_says_and_near_its_model(nodes: Nodes) -> None:
    seen: list[ArrayRecord] = []

    def note(message: Message, context: Context, call_next: Any) -> Message:
        seen.append(message.content.array_records["arrays"])
        reply: Message = call_next(message, context)
        return reply

    run(config_of(), [note], rounds=3)
    first, second, last = (seen[14 * number : 14 * number + 14] for number in range(3))
    for of_round in (first, second, last):
        assert len({model_sha256(arrays) for arrays in of_round}) == 1
    whole: list[ArrayRecord] = []
    reports: list[RoundReport] = []
    strategy = SolonStrategy(config_of(), SLOW_SGD, buffers=buffer_names(Wide()), on_round=reports.append)
    result = strategy.start(InProcessGrid(CLIENT.client_app(), 14), record_of(initial_model(Wide)), num_rounds=2)
    whole.append(result.arrays)
    for name, array in whole[0].items():
        there, here = trusted_tensor(last[0][name]), trusted_tensor(array)
        start = trusted_tensor(first[0][name])
        if name.startswith("norm"):
            assert torch.equal(there, here), "statistics and counters go as they are"
        elif here.is_floating_point():
            assert (there - here).norm() < 0.2 * (here - start).norm()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_in_both_modes_training_gets_as_far_as_with_whole_models(mode: Any) -> None:
    losses = {}
    for downlink in ("full", "delta"):
        config, model, reports = config_of(mode=mode, downlink=downlink), initial_model(Wide), list[RoundReport]()
        optimizer = SLOW_SGD if mode == "gradient" else partial(torch.optim.SGD, lr=1.0)
        strategy = SolonStrategy(config, optimizer, buffers=buffer_names(model), on_round=reports.append)
        grid = InProcessGrid(CLIENT.client_app([attack_mod(Reverse(), {1, 4})]), 14)
        settings = ConfigRecord({"lr": 0.003})
        strategy.start(grid, record_of(model), num_rounds=20, timeout=30, train_config=settings)
        losses[downlink] = [report.training_loss or 0.0 for report in reports]
    assert losses["delta"][0] == losses["full"][0]
    assert losses["full"][-1] < losses["full"][0] / 3
    assert losses["delta"][-1] == pytest.approx(losses["full"][-1], rel=0.1)


# ---- nodes that lose what they keep --------------------------------------------------------------------------------


def forgets(nodes: Nodes) -> Any:
    def action(message: Message, context: Context, call_next: Any) -> Message:
        nodes.stores.pop(context.node_id, None)
        reply: Message = call_next(message, context)
        return reply

    return action


@pytest.mark.parametrize("options", [{}, {"redundancy": "reactive"}, {"verification": "digest"}], ids=str)
def test_a_node_that_lost_the_model_is_sent_all_of_it_in_the_same_round(options: Any, nodes: Nodes) -> None:
    liars = [attack_mod(Reverse(), {1, 4, 8, 11})]  # s in each group: no other node may be missing
    config = config_of(**options)
    sha256, reports, strategy = run(config, liars, outside=[at({3}, {3, 10}, forgets(nodes))])
    assert sha256 == honest(**options)
    asked = {node for group in reports[2].groups for node in group.nodes if node}
    assert set(reports[2].lacking_nodes) == {3, 10} & asked
    assert sum(record.lacking for record in strategy.ledger.values()) == len({3, 10} & asked)
    assert not reports[1].lacking_nodes
    assert not reports[3].lacking_nodes
    if not options:
        assert reports[2].lacking_nodes == (3, 10)
        assert 1.9 * WHOLE <= reports[2].bytes_out - reports[1].bytes_out <= 2.1 * WHOLE


def test_if_all_nodes_are_new_the_round_costs_one_whole_model_each(nodes: Nodes) -> None:
    everyone = set(range(1, 15))
    sha256, reports, _ = run(outside=[at({3}, everyone, forgets(nodes))])
    assert sha256 == honest()
    assert reports[2].lacking_nodes == tuple(sorted(everyone))
    assert reports[2].bytes_out < 14 * (1.5 * WHOLE)


def test_nodes_that_can_keep_nothing_train_all_the_same(nodes: Nodes) -> None:
    sha256, reports, _ = run(outside=[at(ALL, set(range(1, 15)), forgets(nodes))])
    assert sha256 == honest()
    assert all(report.stepped for report in reports)
    assert not any(report.malformed_nodes for report in reports)


def test_a_node_that_was_not_there_gets_the_patches_that_it_missed(nodes: Nodes) -> None:
    config = config_of(stragglers=1, compression=2)
    mod = at({2, 3}, {3}, no_answer)
    sha256, reports, _ = run(config, outside=[mod], timeout=0.5)
    assert sha256 == honest(stragglers=1, compression=2)
    assert 3 in reports[1].silent_nodes
    assert 3 not in reports[3].silent_nodes
    patch = reports[1].bytes_out // 14
    assert patch < reports[3].bytes_out - 13 * patch < min(4 * patch, 0.7 * WHOLE)
    assert not any(report.lacking_nodes for report in reports)


def test_after_a_long_absence_all_is_sent_once(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solon_fl.strategies.downlink.MOST_PATCHES", 2)
    config = config_of(stragglers=1, compression=2)
    sha256, reports, _ = run(config, outside=[at({2, 3, 4}, {3}, no_answer)], rounds=7, timeout=0.5)
    assert sha256 == run(config, rounds=7)[0]
    assert reports[4].bytes_out > 13 * (reports[1].bytes_out // 14) + 0.9 * WHOLE
    assert reports[5].bytes_out < WHOLE * 14 / 2
    assert not any(report.lacking_nodes for report in reports)


def test_a_spare_that_fills_in_is_sent_all_of_the_model(nodes: Nodes) -> None:
    config = config_of(quarantine_after=1)
    sha256, reports, _ = run(config, [attack_mod(Reverse(), {1, 4})], num_spares=2)
    assert sha256 == honest(quarantine_after=1)
    assert not reports[2].different_nodes
    assert reports[1].bytes_out == pytest.approx(reports[2].bytes_out + 2 * WHOLE, rel=0.1)


# ---- nodes that lie about it ---------------------------------------------------------------------------------------


def bytes_of_wholes(reports: list[RoundReport], clean: list[RoundReport]) -> float:
    """Return how many whole models were sent in addition to those of a clean run."""
    return sum(a.bytes_out - b.bytes_out for a, b in zip(reports, clean, strict=True)) / WHOLE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("lacks", lacks),
        ("another version", says(version="f" * 64, fixed="", lacks=False)),
        ("no version", says(version="", fixed="", lacks=False)),
        ("no record", says()),
        ("both", says(version="0" * 64, fixed="0" * 64, lacks=True)),
    ],
)
def test_whoever_always_wants_all_of_the_model_gets_it_less_and_less(name: str, action: Any, nodes: Nodes) -> None:
    rounds, liars = 24, {2, 5, 9, 12}
    honest, clean, _ = run(rounds=rounds)
    sha256, reports, strategy = run(outside=[at(set(range(1, rounds + 1)), liars, action)], rounds=rounds)
    assert sha256 == honest
    assert all(report.stepped for report in reports)
    # After the first round: in rounds 2, 3, 4 or 5, 7 or 8, 12 and so on, less than 7 times per node in 24 rounds.
    assert bytes_of_wholes(reports, clean) < 7 * len(liars)
    assert all(record.lacking >= 4 for record in strategy.ledger.values() if record.node_id in liars)
    assert not {record.node_id for record in strategy.ledger.values() if record.lacking} - liars


def test_who_says_in_time_that_it_has_an_old_version_is_taken_to_have_none(nodes: Nodes) -> None:
    first: dict[int, ConfigRecord] = {}

    def stale(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        reply.content[MODEL] = first.setdefault(context.node_id, reply.content.config_records[MODEL])
        return reply

    sha256, reports, strategy = run(outside=[at(ALL, {3}, stale)])
    assert sha256 == honest()
    assert [report.lacking_nodes for report in reports[:2]] == [(), (3,)]
    assert {record.node_id for record in strategy.ledger.values() if record.lacking} == {3}


def fails(message: Message, context: Context, call_next: Any) -> Message:
    return Message(Error(code=0, reason="of no use"), reply_to=message)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"redundancy": "reactive", "quarantine_after": None},
        {"redundancy": "reactive", "verification": "digest"},
    ],
    ids=str,
)
def test_whoever_is_denied_rests_before_others_and_is_woken_after_them(options: Any, nodes: Nodes) -> None:
    rounds, liars, config = 12, {2, 9}, config_of(**options)
    sha256, clean, _ = run(config, rounds=rounds)
    silent_about_it = at(set(range(1, rounds + 1)), liars, says(version="", fixed="", lacks=False))
    other, reports, _ = run(config, outside=[silent_about_it], rounds=rounds)
    assert other == sha256
    assert bytes_of_wholes(reports, clean) < 5 * len(liars)
    assert not any(group.escalated for report in reports for group in report.groups)


@pytest.mark.slow
def test_errors_do_not_let_a_node_be_sent_old_patches_again_and_again(nodes: Nodes) -> None:
    rounds, liars, config = 24, {2, 9}, config_of(stragglers=1, compression=2)
    sha256, clean, _ = run(config, rounds=rounds)
    often = at(set(range(1, rounds + 1)) - {1, 13}, liars, fails)
    other, reports, _ = run(config, outside=[often], rounds=rounds)
    assert other == sha256
    assert bytes_of_wholes(reports, clean) < 3 * len(liars)


def test_evaluation_is_no_way_round_it(nodes: Nodes) -> None:
    wholes: dict[int, int] = {}

    def count(message: Message, context: Context, call_next: Any) -> Message:
        wholes[context.node_id] = wholes.get(context.node_id, 0) + ("model.trained" in message.content)
        reply: Message = lacks(message, context, call_next) if context.node_id == 3 else call_next(message, context)
        return reply

    run(outside=[count], rounds=12, client_evaluation=True)
    assert wholes.pop(3) <= 6
    assert set(wholes.values()) == {1}


@pytest.mark.parametrize("verification", ["algebra", "digest"])
def test_who_lost_the_model_is_not_why_nodes_at_rest_are_asked(verification: Any, nodes: Nodes) -> None:
    everyone = set(range(1, 15))
    config = config_of(redundancy="reactive", verification=verification)
    _, reports, _ = run(config, outside=[at({3}, everyone, forgets(nodes))])
    assert len(reports[2].lacking_nodes) >= 5
    assert not any(group.escalated for report in reports for group in report.groups)


@pytest.mark.slow
def test_a_node_that_may_not_be_sent_more_is_asked_if_the_round_depends_on_it(nodes: Nodes) -> None:
    """Node 3 loses its model in every round. Its group can do without it in round 7, but not in the others."""
    forgetful = at(set(range(1, 9)), {3}, forgets(nodes))
    silent = at({1, 2, 3, 4, 5, 6, 8}, {1, 2}, no_answer)
    config = config_of()
    sha256, reports, _ = run(config, outside=[forgetful, silent], rounds=8, timeout=4)
    assert all(report.stepped for report in reports), [group.status for report in reports for group in report.groups]
    assert sha256 == run(config, rounds=8)[0]
    assert {4, 5, 6, 8} <= {report.round for report in reports if report.groups[0].escalated}


def test_one_that_was_sent_all_and_says_again_that_it_lacks_it_has_sent_no_share(nodes: Nodes) -> None:
    _, reports, _ = run(outside=[at(ALL, {3}, lacks)])
    assert reports[0].malformed_nodes == (3,)
    assert set(reports[0].groups[0].malformed_nodes) == {3}


def test_who_applies_no_patch_and_says_it_did_is_found_by_its_share(nodes: Nodes) -> None:
    kept: dict[int, ArrayRecord] = {}

    def stale(message: Message, context: Context, call_next: Any) -> Message:
        arrays = kept.setdefault(context.node_id, message.content.array_records["arrays"])
        message.content["arrays"] = arrays
        reply: Message = call_next(message, context)
        return reply

    sha256, reports, _ = run(config_of(), [at(ALL, {3}, stale)])
    assert sha256 == honest()
    assert all(report.different_nodes == (3,) for report in reports[1:])


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({"version": 7, "fixed": b"", "lacks": 1}),
        ConfigRecord({"version": ["a"], "fixed": "", "lacks": True}),
        ConfigRecord({"version": "f" * 10_000_000, "fixed": "", "lacks": False}),
        MetricRecord({"version": 1}),
        ArrayRecord({"version": to_array(torch.ones(3))}),
    ],
    ids=["other types", "a list", "a long text", "metrics", "arrays"],
)
def test_nonsense_about_what_a_node_keeps_does_no_harm(record: Any, nodes: Nodes) -> None:
    def action(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        reply.content[MODEL] = record
        return reply

    sha256, _, strategy = run(outside=[at({1, 2}, {3}, action)])
    assert sha256 == honest()
    assert {3} == {record.node_id for record in strategy.ledger.values() if record.lacking}


# ---- loops, checkpoints, evaluation ----------------------------------------------------------------------------------


def test_under_flowers_own_start_a_node_that_lost_the_model_has_it_in_the_next_round(nodes: Nodes) -> None:
    config = config_of(stragglers=1, compression=2)
    lost = at({3}, {3}, forgets(nodes))
    sha256, reports, _ = run(config, outside=[lost], flowers_loop=True)
    assert sha256 == honest(stragglers=1, compression=2)
    assert reports[2].lacking_nodes == (3,)
    assert reports[2].groups[0].silent_nodes == (3,)
    assert not reports[3].silent_nodes


def test_a_run_goes_on_from_its_checkpoints_bit_by_bit(tmp_path: Path, nodes: Nodes) -> None:
    whole = honest()
    run(rounds=3, checkpoints=Checkpoints(tmp_path))
    sha256, reports, _ = run(rounds=ROUNDS, checkpoints=Checkpoints(tmp_path))
    assert sha256 == whole
    assert [report.round for report in reports] == [4, 5]
    assert reports[0].bytes_out == 14 * WHOLE
    other = config_of(downlink="full")
    with pytest.raises(Exception, match="downlink"):
        run(other, rounds=ROUNDS, checkpoints=Checkpoints(tmp_path))


def test_nodes_evaluate_the_model_that_they_train_next_without_further_patches(nodes: Nodes) -> None:
    evaluated: list[str] = []
    trained: list[str] = []

    class Noting(Regression):
        def evaluate(self, model: nn.Module, context: Context) -> dict[str, float]:
            evaluated.append(model_sha256(record_of(model)))
            return {"number": 1.0}

    def note(message: Message, context: Context, call_next: Any) -> Message:
        trained.append(model_sha256(message.content.array_records["arrays"]))
        reply: Message = call_next(message, context)
        return reply

    reports: list[RoundReport] = []
    model = initial_model(Wide)
    strategy = SolonStrategy(
        config_of(), SLOW_SGD, buffers=buffer_names(model), on_round=reports.append, client_evaluation=True
    )
    app = Noting(Wide).client_app([note])
    result = strategy.start(InProcessGrid(app, 14), record_of(model), num_rounds=3, timeout=30)
    assert evaluated[:14] == trained[14:28]
    assert evaluated[14:28] == trained[28:]
    assert result.evaluate_metrics_clientapp[2]["number"] == 1.0
    assert reports[1].bytes_out < 14 * WHOLE / 2


def test_a_step_that_no_patch_can_say_sends_the_whole_model(nodes: Nodes) -> None:
    model = ServerModel(record_of(initial_model(Wide)), buffer_names(Wide()), SGD)
    sender = ModelSender(model, "delta")
    model.vector[0] = torch.inf
    sender.publish()
    sent = sender.records([1])[1]["model.trained"]
    assert isinstance(sent, ArrayRecord)
    assert torch.isinf(trusted_tensor(sent["first.weight"])[0, 0])


# ---- frozen weights --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("downlink", ["full", "delta"])
def test_frozen_weights_go_down_once(downlink: Any, nodes: Nodes) -> None:
    make = partial(Wide, frozen=True)
    lying = [attack_mod(Reverse(), {1, 4})]  # so that node 3 is needed
    sha256, reports, _ = run(
        config_of(downlink=downlink), lying, make_model=make, outside=[at({4}, {3}, forgets(nodes))]
    )
    assert sha256 == run(config_of(downlink=downlink), make_model=make)[0]
    frozen = 4 * 900
    whole = sum(len(array.data) for array in record_of(make()).values())
    assert reports[0].bytes_out == 14 * whole
    assert reports[1].bytes_out <= 14 * (whole - frozen)
    assert reports[3].bytes_out > reports[1].bytes_out + frozen
    assert reports[3].lacking_nodes == (3,)
    assert reports[4].bytes_out == pytest.approx(reports[2].bytes_out, rel=0.05)


# ---- baselines -------------------------------------------------------------------------------------------------------


def gradient_app(mods: list[Mod]) -> ClientApp:
    app = ClientApp()

    @app.train(mods=mods)
    def plain(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        server_round = int(str(message.content.config_records["config"]["server-round"]))
        batch = Batch(0, server_round, int(context.node_config["partition-id"]))
        gradient = CLIENT.mean_gradient(arrays, [batch], buffer_names(Wide()), context)
        floating = {name: array for name, array in arrays.items() if array.dtype.startswith("float")}
        parts = torch.split(gradient, [trusted_tensor(array).numel() for array in floating.values()])
        record = {n: to_array(part.view(a.shape)) for part, (n, a) in zip(parts, floating.items(), strict=True)}
        content = RecordDict({"arrays": ArrayRecord(record), "metrics": MetricRecord({"num-examples": 8})})
        return Message(content, reply_to=message)

    return app


@pytest.mark.parametrize("name", ["draco", "signum", "median", "fedavg"])
def test_the_baselines_have_the_same_option(name: str, nodes: Nodes) -> None:
    def train(downlink: Any, outside: list[Mod]) -> list[RoundReport]:
        reports = list[RoundReport]()
        arguments: dict[str, Any] = {
            "buffers": buffer_names(Wide()),
            "on_round": reports.append,
            "downlink": downlink,
        }
        strategy: Any
        if name == "draco":
            strategy, inner = DracoStrategy(10, 2, SLOW_SGD, **arguments), draco_client_app(CLIENT)
        elif name == "signum":
            sgd = partial(torch.optim.SGD, lr=1e-3)
            strategy = SignumStrategy(10, sgd, **arguments)
            inner = gradient_app([signum_mod(0.9, buffer_names(Wide()))])
        elif name == "median":
            strategy = AggregatorStrategy(10, lambda rows: rows.median(dim=0).values, SLOW_SGD, **arguments)
            inner = gradient_app([downlink_mod])
        else:
            everyone = {"fraction_evaluate": 0.0, "min_train_nodes": 10, "min_available_nodes": 10}
            strategy = GradientStrategy(FedAvg(**everyone), SLOW_SGD, **arguments)  # type: ignore[arg-type]
            inner = gradient_app([downlink_mod])
        app = ClientApp(mods=outside)
        app.train()(lambda message, context: inner(message, context))
        strategy.start(InProcessGrid(app, 10), record_of(initial_model(Wide)), num_rounds=4, timeout=30)
        return reports

    def lost(message: Message, context: Context, call_next: Any) -> Message:
        if message.content.config_records["config"]["server-round"] == 3 and context.node_id == 4:
            nodes.stores.pop(4, None)
        reply: Message = call_next(message, context)
        return reply

    full, delta = train("full", []), train("delta", [lost])
    assert all(report.stepped for report in delta)
    assert delta[0].bytes_out == full[0].bytes_out == 10 * WHOLE
    assert delta[1].bytes_out < full[1].bytes_out / 2.5
    assert delta[2].lacking_nodes == (4,)
    assert delta[2].bytes_in == full[2].bytes_in, "it computed in the same round"
    assert not delta[3].lacking_nodes


# ---- the sender alone ------------------------------------------------------------------------------------------------


def test_equal_nodes_are_sent_the_same_objects_and_the_server_holds_one_copy() -> None:
    model = ServerModel(record_of(initial_model(Wide)), buffer_names(Wide()), SGD)
    sender = ModelSender(model, "delta")
    sender.begin(1)
    found = sender.records(range(1, 101))
    assert len({id(record["model.trained"]) for record in found.values()}) == 1
    assert len({id(record["arrays"]) for record in found.values()}) == 1


def test_patches_of_a_run_take_no_more_memory_than_the_model() -> None:
    model = ServerModel(record_of(initial_model(Wide)), buffer_names(Wide()), SGD)
    sender = ModelSender(model, "delta")
    for server_round in range(1, 40):
        sender.begin(server_round)
        model.vector += torch.randn(model.dim)
        sender.publish()
    assert sender._size_of_patches <= 4 * 4501
    assert 2 <= len(sender._patches) <= 16


def late_reply(version: str, fixed: str) -> Message:
    become_server()
    record = ConfigRecord({"version": version, "fixed": fixed, "lacks": False})
    return Message(RecordDict({MODEL: record}), reply_to=Message(RecordDict(), 1, MessageType.TRAIN))


def wholes_sent(says: Any, rounds: int) -> int:
    """Return how often the whole model is sent to a node that always replies late and claims one of the versions."""
    model = ServerModel(record_of(initial_model(Wide)), buffer_names(Wide()), SGD)
    sender, wholes, patches = ModelSender(model, "delta"), 0, 0
    for server_round in range(1, rounds + 1):
        sender.begin(server_round)
        if not sender.denied([1]):
            record = sender.records([1])[1]
            wholes += "model.trained" in record
            patches += len(record.get("model.patches", ()))
        model.vector += torch.randn(model.dim)
        before = sender._versions
        sender.publish()
        sender.learn_late(1, late_reply(says(before), model.fixed_sha256))
    assert patches <= 4 * rounds
    return wholes


def test_a_node_that_is_always_late_is_sent_patches_and_one_that_says_old_versions_no_more() -> None:
    assert wholes_sent(lambda versions: versions[-1], 40) == 1
    assert wholes_sent(lambda versions: versions[0], 40) <= 7
    assert wholes_sent(lambda versions: "", 40) <= 7


def test_a_late_reply_that_claims_a_version_which_the_node_was_not_sent_is_not_believed() -> None:
    model = ServerModel(record_of(initial_model(Wide)), buffer_names(Wide()), SGD)
    sender = ModelSender(model, "delta")
    sender.begin(1)
    sender.records([1])
    for _ in range(20):
        model.vector += torch.randn(model.dim)
        sender.publish()
    sender.learn_late(1, late_reply(sender._version, model.fixed_sha256))
    sender.begin(21)
    assert "model.trained" in sender.records([1])[1]


@pytest.mark.parametrize("downlink", ["full", "delta"])
def test_a_late_reply_says_that_a_node_has_the_frozen_weights(downlink: Any) -> None:
    make = partial(Wide, frozen=True)
    model = ServerModel(record_of(initial_model(make)), buffer_names(make()), SGD)
    sender = ModelSender(model, downlink)
    sender.begin(1)
    assert "model.fixed" in sender.records([1])[1]
    version = sender._version
    sender.publish()
    sender.learn_late(1, late_reply(version, model.fixed_sha256))
    sender.begin(2)
    assert not {"model.fixed", "model.trained"} & sender.records([1])[1].keys()


def test_an_unknown_way_down_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="downlink must be one of full, delta; got downlink='zip'"):
        small_config(downlink="zip")
    with pytest.raises(ConfigurationError, match="downlink must be one of full, delta; got downlink='zip'"):
        DracoStrategy(10, 2, SGD, downlink="zip")  # type: ignore[arg-type]


def test_a_function_of_ones_own_without_the_mod_fails_and_the_error_says_so() -> None:
    app = gradient_app([])
    strategy = AggregatorStrategy(
        10, lambda rows: rows.mean(dim=0), SLOW_SGD, buffers=buffer_names(Wide()), downlink="delta"
    )
    with pytest.raises(
        GroupFailedError,
        match=r"put solon_fl\.clients\.downlink_mod on your function.*the model is sent in parts.*solon_mod\(\)",
    ):
        strategy.start(InProcessGrid(app, 10), record_of(initial_model(Wide)), num_rounds=2, timeout=30)


@pytest.mark.slow
def test_silent_nodes_cost_less_and_less(nodes: Nodes) -> None:
    config = config_of(stragglers=1, compression=2)
    silent = silent_mod({2})
    sha256, reports, _ = run(config, [silent], rounds=12, timeout=0.4)
    _, clean, _ = run(config, rounds=12)
    assert sha256 == run(config, rounds=12)[0]
    assert bytes_of_wholes(reports, clean) < 6
