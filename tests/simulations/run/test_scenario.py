from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from solon_fl.clients import Batch
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import Scenario
from solon_fl.simulations.run import ImageClient

CONFIG = SolonConfig(num_nodes=20, byzantine=2, compression=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "median"}, "strategy must be one of solon, .*, bucketing, or .*; got strategy='median'"),
        ({"attack": "alien"}, "attack must be one of .*reverse, .*; got attack='alien'"),
        ({"attack": "near-codeword", "strategy": "fedavg"}, "attack='near-codeword' is made against Solon's code"),
        ({"dataset": "mnist"}, "dataset must be one of fashion-mnist-6k, .*; got dataset='mnist'"),
        ({"model": "vgg"}, "model must be one of logistic, mlp, cnn, resnet18, vgg13, textcnn, or .*; got model='vgg'"),
        ({"engine": "dask"}, "engine must be one of in-process, ray; got engine='dask'"),
        (
            {"engine": "ray", "config": SolonConfig(num_nodes=20, byzantine=2, compression=6, regroup="round")},
            "regroup='round' needs engine='in-process', .*got engine='ray'",
        ),
        ({"rounds": 0}, "rounds=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"momentum": 1.0}, "momentum=1.0"),
        (
            {"strategy": "fedavg", "config": SolonConfig(num_nodes=10, byzantine=2, compression=6, mode="update")},
            "strategy='fedavg'",
        ),
        (
            {"strategy": "multikrum", "attack": "alie", "config": SolonConfig(num_nodes=5, byzantine=2, compression=1)},
            "MultiKrum needs at least 7 nodes for 2 liars; got num_nodes=5",
        ),
    ],
)
def test_what_does_not_exist_or_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Scenario(**{"config": CONFIG, **changes})


@pytest.mark.parametrize("seed", range(5))
def test_the_seed_chooses_s_liars_of_each_group(seed: int) -> None:
    config = SolonConfig(num_nodes=30, byzantine=2, compression=6, seed=seed)
    liars = Scenario(config=config, attack="alie").liars
    assert [sum(number // 10 == group for number in liars) for group in range(3)] == [2, 2, 2]
    assert liars == Scenario(config=config, attack="nan").liars
    assert Scenario(config=config).liars == frozenset()


@pytest.mark.parametrize("seed", range(5))
def test_as_many_liars_as_told_lie_but_no_more_than_s_in_a_group(seed: int) -> None:
    config = SolonConfig(num_nodes=30, byzantine=2, compression=6, seed=seed)
    liars = Scenario(config=config, attack="alie", num_liars=5).liars
    assert sorted(sum(number // 10 == group for number in liars) for group in range(3)) == [1, 2, 2]
    with pytest.raises(ConfigurationError, match="num_liars must be from 0 to 6, byzantine=2 in each of 3 groups"):
        Scenario(config=config, attack="alie", num_liars=7)


@pytest.mark.parametrize("strategy", ["solon", "fedavg"])
def test_regrouped_liars_are_any_nodes_as_many_as_every_grouping_bears(strategy: str) -> None:
    config = SolonConfig(num_nodes=30, byzantine=2, compression=6, regroup="round")
    scenario = Scenario(config=config, attack="alie", strategy=strategy)
    assert len(scenario.liars) == scenario.expected_liars == 2
    six = {Scenario(config=replace(config, seed=seed), attack="alie", num_liars=6).liars for seed in range(20)}
    assert {len(liars) for liars in six} == {6}
    assert any(sum(number < 10 for number in liars) > 2 for liars in six), "more than s in one of the first groups"


def test_a_variant_of_solon_sets_its_options_in_the_config() -> None:
    config = SolonConfig(num_nodes=20, byzantine=2, compression=6, redundancy="full")
    chosen = Scenario(config=config, strategy="solon-reactive-digest").config
    assert (chosen.redundancy, chosen.verification, chosen.quarantine_after) == ("reactive", "digest", 1)
    assert Scenario(config=config, strategy="fedavg").config == config


def test_only_nodes_that_share_no_batch_have_examples_of_their_own() -> None:
    client = ImageClient(Scenario(config=CONFIG, strategy="fedmedian", dirichlet=0.1, batch_size=500))
    seen = []
    for number in range(20):
        context = Context(run_id=0, node_id=1, node_config={"partition-id": number}, state=RecordDict(), run_config={})
        seen.append(set(client._examples(Batch(0, 1, number), context).tolist()))
        again = client._examples(Batch(0, 2, number), context)
        assert not set(again.tolist()).isdisjoint(seen[-1]), "a later round uses the same part"
    assert sum(map(len, seen)) == len(set().union(*seen)), "no two nodes share an example"
    for strategy in ("solon", "solon-referee", "draco-cyclic"):
        with pytest.raises(ConfigurationError, match=f"with strategy='{strategy}' several nodes.*got dirichlet=0.1"):
            Scenario(config=CONFIG, strategy=strategy, dirichlet=0.1)
    with pytest.raises(ConfigurationError, match=r"dirichlet=0\.0"):
        Scenario(config=CONFIG, strategy="fedavg", dirichlet=0.0)
