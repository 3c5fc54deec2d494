"""Simulated nodes that compute in different ways, on this machine."""

from contextlib import nullcontext

import pytest
import torch
from flwr.app import ArrayRecord

from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError, GroupFailedError
from solon_fl.simulations import InProcessGrid, NodeKind, Scenario, build_model, calibrate_scenario, load_dataset
from solon_fl.simulations.attacks import Reverse, attack_mod
from solon_fl.simulations.run import ImageClient
from solon_fl.simulations.run.float_noise import _computing_as
from solon_fl.strategies import RoundReport, SolonStrategy, buffer_names

KINDS = (NodeKind(kernels="onednn"), NodeKind(kernels="native"))
CONFIG = SolonConfig(num_nodes=7, byzantine=2, compression=3, batches_per_group=2)
SCENARIO = Scenario(config=CONFIG, batch_size=8)


@pytest.mark.slow
def test_nodes_of_one_kind_are_equal_and_two_kinds_of_kernels_are_not() -> None:
    assert calibrate_scenario(SCENARIO).identical
    found = calibrate_scenario(SCENARIO, KINDS)
    assert not found.identical
    assert 1e-8 < found.noise < 1e-6
    assert calibrate_scenario(SCENARIO, KINDS, rounds=2).noise >= found.noise
    assert torch.get_num_threads() == 1
    assert torch.backends.mkldnn.enabled


@pytest.mark.slow
def test_real_noise_fails_below_what_was_measured_and_is_decoded_above() -> None:
    noise = calibrate_scenario(SCENARIO, KINDS).noise
    dataset = load_dataset(SCENARIO.dataset)
    model = build_model(SCENARIO.model, dataset.input_shape, dataset.num_classes, seed=0)
    statuses = {}
    for rtol in (noise / 20, 4 * noise):
        reports: list[RoundReport] = []
        scenario = Scenario(
            config=SolonConfig(num_nodes=7, byzantine=2, compression=3, batches_per_group=2, rtol=rtol),
            batch_size=8,
            compute_once=False,
        )
        client_app = ImageClient(scenario, dataset).client_app([attack_mod(Reverse(), {0, 3}), _computing_as(KINDS)])
        strategy = SolonStrategy(scenario.config, scenario.make_optimizer, on_round=reports.append, projection_seed=0)
        arrays = ArrayRecord(dict(model.state_dict()))
        outcome = nullcontext() if rtol > noise else pytest.raises(GroupFailedError, match="no group could be decoded")
        with outcome:
            strategy.start(InProcessGrid(client_app, 7), arrays, num_rounds=2, timeout=0.1)
        assert buffer_names(model) == ()
        statuses[rtol] = {group.status for report in reports for group in report.groups}
    assert list(statuses.values()) == [{"undecodable"}, {"corrected"}]


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        "reverse",
        "alie",
        "foe",
        "same-lie",
        "label-flip",
        "bit-flip",
        "other-gradient",
        "crash",
        "malformed",
        "late",
        "nan",
    ],
)
def test_a_scenarios_liars_are_named(attack: str) -> None:
    scenario = Scenario(config=CONFIG, batch_size=8, model="logistic", attack=attack)
    found = calibrate_scenario(scenario, KINDS)
    named = {node_id - 1 for node_id in (*found.outliers, *found.malformed, *found.silent)}
    assert named == scenario.liars
    assert found.rtol == 1e-6


def test_what_can_not_be_calibrated_is_refused() -> None:
    for arguments, message in (
        ({"strategy": "fedavg"}, "strategy='fedavg'"),
        ({"engine": "ray", "attack": "alie"}, "engine='ray', attack='alie'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            calibrate_scenario(Scenario(config=CONFIG, **arguments))  # type: ignore[arg-type]  # names
    with pytest.raises(ConfigurationError, match="kernels='cuda'"):
        NodeKind(kernels="cuda")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ConfigurationError, match="threads=0"):
        NodeKind(threads=0)


@pytest.mark.slow
def test_what_nodes_answer_is_told_if_nothing_can_be_compared() -> None:
    scenario = Scenario(config=CONFIG, batch_size=9000)
    with pytest.raises(GroupFailedError, match="batch_size=9000"):
        calibrate_scenario(scenario)
