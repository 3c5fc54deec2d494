import re

import pytest
import torch
from flwr.app import ArrayRecord

from solon_fl.baselines.garbage import quick_collections
from solon_fl.config import SolonConfig
from solon_fl.errors import ConfigurationError
from solon_fl.simulations import STRATEGIES, Scenario
from solon_fl.simulations.plan.aggregating import Aggregator, aggregation, least_nodes
from solon_fl.wire import trusted_tensor


def result_of(name: Aggregator, vectors: torch.Tensor, liars: int) -> torch.Tensor:
    aggregate = aggregation(name, vectors, liars)
    with quick_collections():
        aggregate()  # consumes none of its input
        result = aggregate()
    if isinstance(result, torch.Tensor):
        return result
    assert isinstance(result, tuple)
    assert isinstance(result[0], ArrayRecord)
    return trusted_tensor(result[0]["vector"])


@pytest.mark.parametrize("name", ["multikrum", "bulyan"])
def test_aggregators_aggregate_and_leave_a_liar_out(name: Aggregator) -> None:
    vectors = torch.ones(7, 30)
    vectors[2] = 1e6
    torch.testing.assert_close(result_of(name, vectors, 1), torch.ones(30))


def test_signum_counts_the_votes_of_all_nodes() -> None:
    votes = aggregation("signum", torch.ones(5, 30), 2)()
    assert isinstance(votes, torch.Tensor)
    assert votes.shape == (30,)
    assert set(votes.tolist()) == {-1, 1}, "five random bits have no tie"


@pytest.mark.parametrize("name", ["multikrum", "bulyan"])
@pytest.mark.parametrize("liars", [1, 3])
def test_the_fewest_nodes_are_those_of_the_strategies(name: Aggregator, liars: int) -> None:
    least = least_nodes(name, liars)

    def scenario(num_nodes: int) -> Scenario:
        config = SolonConfig(num_nodes=num_nodes, byzantine=liars, compression=1, group_size=num_nodes)
        return Scenario(config=config, strategy=name)

    STRATEGIES[name].check(scenario(least))
    with pytest.raises(ConfigurationError, match=re.escape(f"num_nodes={least - 1}")):
        STRATEGIES[name].check(scenario(least - 1))
