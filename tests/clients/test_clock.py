"""Nodes whose clocks are as wrong as a SuperLink permits, on a grid that drops the replies that a SuperLink drops."""

import datetime
import importlib

import pytest
from flwr.app import Message
from flwr.server.utils import validate_message

from solon_fl.simulations import InProcessGrid
from solon_fl.strategies import RoundReport, SolonStrategy
from tests.support import SGD, Regression, initial_model, record_of, small_config

FLOWER = importlib.import_module("flwr.app.message.message")
NOW = FLOWER.now
CONSTANTS = importlib.import_module("flwr.common.constant")
FAST = CONSTANTS.SYSTEM_TIME_TOLERANCE
SLOW = CONSTANTS.TIMESTAMP_TOLERANCE + CONSTANTS.SYSTEM_TIME_TOLERANCE


class SuperLinkGrid(InProcessGrid):
    """Nodes whose clocks are ahead by `skew` seconds."""

    skew = 0.0
    refusals: list[str]

    def _handle(self, message: Message) -> Message | None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FLOWER, "now", lambda: NOW() + datetime.timedelta(seconds=self.skew))
            reply = super()._handle(message)
        assert reply is not None
        found = validate_message(reply, is_reply_message=True)
        if message.metadata.dst_node_id == 1:  # the id of the SuperLink itself, which this grid gives to a node
            found = [error for error in found if "SuperLink node ID" not in error]
        self.refusals += found
        return None if found else reply


@pytest.mark.parametrize("skew", [FAST, -SLOW])
def test_clocks_as_wrong_as_a_superlink_admits_cost_no_answer(skew: float) -> None:
    reports: list[RoundReport] = []
    grid = SuperLinkGrid(Regression().client_app(), 7)
    grid.skew, grid.refusals = skew, []
    strategy = SolonStrategy(small_config(num_nodes=7), SGD, on_round=reports.append)
    strategy.start(grid, record_of(initial_model()), num_rounds=1, timeout=1)
    assert grid.refusals == []
    assert [group.status for group in reports[0].groups] == ["clean"]
