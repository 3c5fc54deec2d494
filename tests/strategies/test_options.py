"""The law of all options: a round's result is the attack-free one within the certificate, or the round fails."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import Strategy
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from solon_fl import SolonConfig
from solon_fl.clients import Batch
from solon_fl.clients.share import share_reply
from solon_fl.coding.digests import share_digest, share_digests
from solon_fl.errors import GroupFailedError
from solon_fl.simulations import InProcessGrid
from solon_fl.simulations.attacks import RandomGaussian
from solon_fl.simulations.attacks.mods import attack_mod
from solon_fl.strategies import Checkpoints, RoundReport, SolonStrategy, buffer_names
from solon_fl.task import DIGESTS, SolonTask
from solon_fl.wire import to_array, trusted_tensor
from tests.support import SGD, Regression, initial_model, record_of, share_array, spoil, vector_of

DIM = 10
ROUNDS = 4
TIMEOUT = 0.04


def gradient_of(server_round: int, group: int, dtype: torch.dtype) -> Tensor:
    """Return the gradient that the honest nodes of a group compute in a round."""
    seed = 1000 * server_round + group
    return torch.randn(DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---- replies that a liar may send in place of its honest one -------------------------------------------------------


def with_share(reply: Message, share: Tensor) -> Message:
    reply.content["share"] = ArrayRecord({"share": to_array(share)})
    return reply


def with_digests(reply: Message, digests: bytes) -> Message:
    if DIGESTS in reply.content:
        reply.content[DIGESTS] = ConfigRecord({DIGESTS: digests})
    return reply


def share_of(reply: Message) -> Tensor:
    return trusted_tensor(share_array(reply.content)["share"]).clone()


def lie(reply: Message, task: SolonTask, rng: np.random.Generator) -> Message:
    return with_share(reply, share_of(reply) * 10.0 ** float(rng.integers(-3, 20)) + 0.5)


def lie_consistently(reply: Message, task: SolonTask, rng: np.random.Generator) -> Message:
    """All liars of a group that lie in this way send shares and digests of the same other gradient."""
    false = -3 * gradient_of(task.round, task.group, share_of(reply).dtype) + 1
    code = task.make_code()
    reply = with_share(reply, code.encode(false, task.slot))
    return with_digests(reply, share_digests(code, false, task.digest_key))


def lie_with_own_digest(reply: Message, task: SolonTask, rng: np.random.Generator) -> Message:
    share = -share_of(reply)
    return with_digests(with_share(reply, share), task.group_size * share_digest(share, task.digest_key))


def vote_wrongly(reply: Message, task: SolonTask, rng: np.random.Generator) -> Message:
    return with_digests(reply, rng.bytes(32 * task.group_size))


def differ_by_bits(reply: Message, task: SolonTask, rng: np.random.Generator) -> Message:
    """Send the right digests with a share that is wrong by less than any tolerance."""
    share = share_of(reply)
    return with_share(reply, torch.nextafter(share, torch.full_like(share, float("inf"))))


def not_a_share(reply: Message, task: SolonTask, rng: np.random.Generator) -> Message:
    return with_share(reply, share_of(reply).repeat(2))


def not_digests(reply: Message, task: SolonTask, rng: np.random.Generator) -> Message:
    return with_digests(reply, b"x")


def not_finite(reply: Message, task: SolonTask, rng: np.random.Generator) -> Message:
    return with_share(reply, torch.full_like(share_of(reply), float("nan")))


def raise_an_error(reply: Message, task: SolonTask, rng: np.random.Generator) -> Message:
    raise MemoryError("out of memory")


LIES: tuple[Callable[[Message, SolonTask, np.random.Generator], Message], ...] = (
    lie,
    lie_consistently,
    lie_with_own_digest,
    vote_wrongly,
    differ_by_bits,
    not_a_share,
    not_digests,
    not_finite,
    raise_an_error,
)
HONEST, SILENT, REPLAY = len(LIES), len(LIES) + 1, len(LIES) + 2


@dataclass
class Adversary:
    """Controls its nodes, and makes up to e others of each group silent in a round."""

    liars: frozenset[int]
    stragglers: int
    seed: int
    dtype: torch.dtype
    before: dict[int, RecordDict] = field(default_factory=dict)  # each liar's latest honest result

    def app(self) -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            task = SolonTask.from_message(message)
            reply = share_reply(message, task, gradient_of(task.round, task.group, self.dtype))
            if context.node_id in self.liars:
                return self.act(reply, task, context.node_id)
            rng = np.random.default_rng([self.seed, task.round, task.group])
            silent = rng.permutation(task.group_size)[: self.stragglers]
            return None if task.slot in silent and rng.random() < 0.6 else reply  # type: ignore[return-value]

        return app

    def act(self, reply: Message, task: SolonTask, node: int) -> Message:
        rng = np.random.default_rng([self.seed, task.round, node])
        old = self.before.get(node, reply.content)
        self.before[node] = RecordDict(dict(reply.content))
        choice = int(rng.integers(0, REPLAY + 1))
        if choice == SILENT:
            return None  # type: ignore[return-value]
        if choice == REPLAY:
            reply.content = old
        elif choice != HONEST:
            reply = LIES[choice](reply, task, rng)
        return reply


@st.composite
def configurations(draw: st.DrawFn) -> SolonConfig:
    s, k, e = draw(st.integers(0, 2)), draw(st.integers(1, 3)), draw(st.integers(0, 1))
    digest = draw(st.booleans())
    smallest = (max(2 * s + 1, s + k) if digest else 2 * s + k) + e
    size = smallest + draw(st.sampled_from((0, 0, 1, s)))
    groups = draw(st.integers(1, 2))
    return SolonConfig(
        num_nodes=groups * size,
        byzantine=s,
        compression=k,
        stragglers=e,
        group_size=size,
        seed=draw(st.integers(0, 2**63 - 1)),
        verification="digest" if digest else "algebra",
        quarantine_after=draw(st.sampled_from((None, 1, 2))),
        redundancy=draw(st.sampled_from(("full", "reactive"))),
        regroup=draw(st.sampled_from(("never", "round"))),
    )


def draw_liars(config: SolonConfig, rng: np.random.Generator) -> frozenset[int]:
    """Return node ids: up to s of each group, or up to s of all nodes if places are drawn anew."""
    groups, size, s = config.num_groups, config.group_size, config.byzantine
    if config.regroup == "round":
        return frozenset(int(node) + 1 for node in rng.permutation(config.num_nodes)[: rng.integers(0, s + 1)])
    chosen = [size * group + rng.permutation(size)[: rng.integers(0, s + 1)] + 1 for group in range(groups)]
    return frozenset(int(node) for group in chosen for node in group)


def run(config: SolonConfig, adversary: Adversary, rounds: int = ROUNDS) -> tuple[list[RoundReport], list[Tensor]]:
    """Return the report of each round, and the model before the first round and after each."""
    reports: list[RoundReport] = []
    models: list[Tensor] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        models.append(trusted_tensor(arrays["w"]).clone())
        return None

    sgd: Any = partial(torch.optim.SGD, lr=1.0)
    strategy = SolonStrategy(config, sgd, on_round=reports.append)
    try:
        strategy.start(
            InProcessGrid(adversary.app(), config.num_nodes),
            ArrayRecord({"w": to_array(torch.zeros(DIM, dtype=adversary.dtype))}),
            num_rounds=rounds,
            timeout=TIMEOUT,
            evaluate_fn=evaluate,
        )
    except GroupFailedError as error:  # in the first round
        evaluate(1, error.result.arrays)
    return reports, models


def assert_right(report: RoundReport, step: Tensor, dtype: torch.dtype) -> None:
    """The step is minus the mean of the true gradients of the groups that are reported as decoded."""
    used = [group for group in report.groups if group.decoded]
    assert report.stepped == bool(used)
    if not used:
        assert not step.any()
        return
    true = torch.stack([gradient_of(report.round, group.group, dtype) for group in used]).double()
    allowed = max(group.error_bound for group in used) + 1e-5  # for the float32 rounding of model and step
    assert float((step.double() + true.mean(0)).norm()) <= allowed, report


@pytest.mark.slow
@settings(max_examples=50)
@given(config=configurations(), seed=st.integers(0, 2**32 - 1), double=st.booleans())
def test_under_all_options_every_round_is_right_and_names_no_honest_node(
    config: SolonConfig, seed: int, double: bool
) -> None:
    dtype = torch.float64 if double else torch.float32
    liars = draw_liars(config, np.random.default_rng(seed))
    adversary = Adversary(liars, config.stragglers, seed, dtype)
    note(f"liars: {sorted(liars)}")
    reports, models = run(config, adversary)
    assert len(reports) == ROUNDS
    offenders: set[int] = set()
    excuses = escalations = 0
    for report, before, after in zip(reports, models[:-1], models[1:], strict=True):
        assert_right(report, after - before, dtype)
        assert report.failed_groups == (), "no group has more faults than it bears"
        assert {group.status for group in report.groups} <= {"clean", "corrected"}
        different = {node for group in report.groups for node in group.different_bits}
        assert {*report.corrupt_nodes, *report.malformed_nodes, *different} <= liars
        offenders |= {*report.corrupt_nodes, *report.malformed_nodes}
        assert report.bytes_out == report.nodes_asked * len(to_array(before).data), "woken nodes count as well"
        excuses += len(report.silent_nodes) + len(different)
        escalations += len(report.escalated_groups)
        for group in report.groups:
            named = {*group.corrupt_nodes, *group.malformed_nodes, *group.silent_nodes, *group.different_bits}
            assert named or not group.escalated, "who makes others compute is named"
    assert escalations == 0 or config.redundancy == "reactive"
    if config.quarantine_after == 1:
        assert escalations <= len(offenders) + excuses


@pytest.mark.parametrize("faults", [3, 4])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), redundancy=st.sampled_from(("full", "reactive")))
def test_one_liar_too_many_without_collusion_is_right_or_reported(faults: int, seed: int, redundancy: Any) -> None:
    """Three or four of seven nodes lie where two are allowed. A group that is decoded nevertheless is right."""
    config = SolonConfig(num_nodes=7, byzantine=2, compression=3, redundancy=redundancy)
    nodes = np.random.default_rng(seed).permutation(7)[:faults] + 1
    adversary = Adversary(frozenset(int(node) for node in nodes), 0, seed, torch.float32)
    reports, models = run(config, adversary)
    for report, before, after in zip(reports, models[:-1], models[1:], strict=True):
        assert_right(report, after - before, torch.float32)


# ---- modes, models and loops, under all options together ----------------------------------------------------------


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


class InDouble(Regression):
    """Reads the same inputs in float64."""

    def batch_loss(self, model: nn.Module, batch: Batch, context: Context) -> Tensor:
        inputs = torch.randn(8, 7, generator=batch.generator()).double().to(next(model.parameters()).device)
        loss: Tensor = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        return loss


def double() -> nn.Module:
    return nn.Linear(7, 1).double()


SETTINGS: dict[str, tuple[Regression, Callable[[], nn.Module], dict[str, Any]]] = {
    "gradients": (Regression(), lambda: nn.Linear(7, 1), {}),
    "updates": (Regression(), lambda: nn.Linear(7, 1), {"mode": "update"}),
    "batch norm": (Regression(batch_norm), batch_norm, {}),
    "updates with batch norm": (Regression(batch_norm), batch_norm, {"mode": "update"}),
    "float64": (InDouble(double), double, {}),
    "weights": (Regression(), lambda: nn.Linear(7, 1), {"group_weights": (1.0, 3.0)}),
}
LYING = attack_mod(RandomGaussian(), {1, 4, 6, 8})  # two of each group of five


@pytest.mark.parametrize("own_loop", [True, False], ids=["own loop", "Flower's loop"])
@pytest.mark.parametrize("redundancy", ["full", "reactive"])
@pytest.mark.parametrize("name", SETTINGS)
def test_digests_protect_every_mode_model_and_loop(name: str, redundancy: Any, own_loop: bool) -> None:
    client, make_model, changes = SETTINGS[name]
    model = initial_model(make_model)

    def train(mods: list[Mod], **options: Any) -> Tensor:
        strategy = SolonStrategy(
            SolonConfig(byzantine=2, compression=3, **changes, **options), SGD, buffers=buffer_names(model)
        )
        grid = InProcessGrid(client.client_app(mods), strategy.config.num_nodes)
        start = strategy.start if own_loop else partial(Strategy.start, strategy)
        rate = ConfigRecord({"lr": 0.01})
        return vector_of(start(grid, record_of(model), num_rounds=3, timeout=5, train_config=rate).arrays)

    few: Any = {"batches_per_group": 3}
    attacked = train([LYING], num_nodes=10, verification="digest", redundancy=redundancy, **few)
    honest = train([], num_nodes=14, **few)
    torch.testing.assert_close(attacked, honest, rtol=1e-4, atol=1e-5)


def test_under_all_options_a_run_goes_on_from_its_checkpoints_bit_by_bit(tmp_path: Path) -> None:
    config = SolonConfig(
        num_nodes=10,
        byzantine=2,
        compression=3,
        verification="digest",
        redundancy="reactive",
        regroup="round",
        group_weights=(1.0, 2.0),
    )

    def train(rounds: int, checkpoints: Checkpoints | None = None) -> tuple[Tensor, list[RoundReport], dict[str, Any]]:
        reports: list[RoundReport] = []
        strategy = SolonStrategy(config, SGD, on_round=reports.append, projection_seed=3, checkpoints=checkpoints)
        grid = InProcessGrid(Regression().client_app([spoil(negated, {3, 7})]), 10)
        result = strategy.start(grid, record_of(initial_model()), num_rounds=rounds, timeout=5)
        return vector_of(result.arrays), reports, {name: asdict(record) for name, record in strategy.ledger.items()}

    whole, reports, ledger = train(6)
    assert any(report.escalated_groups for report in reports)
    parts: list[RoundReport] = []
    for rounds in (1, 4, 6):
        model, more, notes = train(rounds, Checkpoints(tmp_path))
        parts += more
    assert torch.equal(model, whole)
    assert [report.groups for report in parts] == [report.groups for report in reports]
    assert notes == ledger


def negated(reply: Message) -> Message:
    """Negate the share."""
    return with_share(reply, -share_of(reply))
