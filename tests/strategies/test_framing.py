"""Whole runs in which s liars of each group know all honest shares and try to have honest nodes blamed."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.clientapp.typing import Mod
from torch import nn

from benchmarks.framing_lies import FAMILIES, Family, Framing, draw_liars
from solon_fl import RealDecoder, SolonConfig
from solon_fl.simulations.attacks import RegroupedLiars, attack_mod
from solon_fl.simulations.run.grid import ColludersGrid
from solon_fl.strategies import SolonStrategy, buffer_names
from solon_fl.strategies.ledger import NodeRecord
from tests.support import SGD, Remembering, initial_model, record_of

S, K = 3, 8
RTOL = 2e-7  # so small that float32 rounding, up to half of it, helps the liars
ROUNDS = 4
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "reactive": {"redundancy": "reactive"},
    "stragglers": {"redundancy": "reactive", "stragglers": 1},
    "digest": {"verification": "digest"},
    "digest, large groups": {"verification": "digest", "group_size": 2 * S + K},
    "digest and reactive": {"verification": "digest", "redundancy": "reactive"},
    "regroup": {"regroup": "round"},
    "regroup and reactive": {"regroup": "round", "redundancy": "reactive"},
    "update": {"mode": "update"},
    "quarantine": {"quarantine_after": 1},
    "reactive, late quarantine": {"redundancy": "reactive", "quarantine_after": 3},
    "referee": {"referee": True, "group_size": S + K},
    "referee, audits, a node more": {"referee": True, "audit": 1.0, "group_size": S + K + 1},
    "referee, reactive, large groups": {"referee": True, "redundancy": "reactive", "group_size": 2 * S + K},
}


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 24), nn.Tanh(), nn.Linear(24, 1))


def config_of(mode: str) -> SolonConfig:
    changes = MODES[mode]
    size = changes.get("group_size") or (
        max(2 * S + 1, S + K) if changes.get("verification") == "digest" else 2 * S + K + changes.get("stragglers", 0)
    )
    groups = 2 if changes.get("regroup") == "round" else 1
    return SolonConfig(num_nodes=groups * size, byzantine=S, compression=K, rtol=RTOL, batches_per_group=1, **changes)


def run(
    config: SolonConfig, family: Family | None, seed: int, num_spares: int = 0
) -> tuple[list[NodeRecord], list[NodeRecord]]:
    """Return the ledger's entries of the honest nodes and of the liars after a run."""
    decoder = config.make_decoder()
    assert isinstance(decoder, RealDecoder)
    lying = {slot + 1 for slot in draw_liars(decoder, S, np.random.default_rng(seed))}
    liars = RegroupedLiars({node - 1 for node in lying})
    mods: list[Mod] = [attack_mod(Framing(decoder, family), liars, seed=seed)]
    model = initial_model(make_model)
    referee = Remembering(make_model) if config.referee else None
    strategy = SolonStrategy(config, SGD, buffers=buffer_names(model), referee=referee)
    grid = ColludersGrid(Remembering(make_model).client_app(mods), config.num_nodes + num_spares, liars)
    train_config = ConfigRecord({"lr": 0.05})
    strategy.start(grid, record_of(model), num_rounds=ROUNDS, timeout=1.0, train_config=train_config)
    records = list(strategy.ledger.values())
    return [r for r in records if r.node_id not in lying], [r for r in records if r.node_id in lying]


def assert_nobody_is_blamed(records: list[NodeRecord]) -> None:
    for record in records:
        assert record.offences == record.lying == record.malformed == record.stalled == 0, record
        assert record.escalations == 0, record
        assert record.state in ("member", "substitute", "spare"), record
        assert record.last_offence == "", record


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_no_honest_node_is_blamed(mode: str) -> None:
    for seed in range(2):
        honest, _ = run(config_of(mode), None, seed, num_spares=3 if "quarantine" in mode else 0)
        assert_nobody_is_blamed(honest)


@pytest.mark.slow
@pytest.mark.parametrize("redundancy", ["full", "reactive"])
@pytest.mark.parametrize("family", FAMILIES)
def test_by_no_family_of_lies(family: str, redundancy: str) -> None:
    honest, _ = run(config_of(redundancy), FAMILIES[family], seed=2)
    assert_nobody_is_blamed(honest)


@pytest.mark.slow
def test_the_lies_are_ones_that_work() -> None:
    suspected = named = 0
    for seed in range(4):
        honest, liars = run(config_of("full"), None, seed)
        suspected += sum(record.suspected for record in honest)
        named += sum(record.lying for record in liars)
    assert suspected > named, "gradients must be made without honest nodes, and hardly a liar named"
