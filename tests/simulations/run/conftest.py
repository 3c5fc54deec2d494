from collections.abc import Callable
from typing import Any

import pytest

from solon_fl.simulations import Scenario
from solon_fl.strategies import RoundReport
from solon_fl.strategies.loop import RoundStrategy


@pytest.fixture
def seats(monkeypatch: pytest.MonkeyPatch) -> list[RoundReport]:
    """The strategies' own reports of all runs from now on. They have the place of each node, by its Flower id."""
    reports: list[RoundReport] = []
    make_strategy = Scenario.make_strategy

    def recording(
        self: Scenario, buffers: tuple[str, ...], on_round: Callable[[RoundReport], None], **arguments: Any
    ) -> RoundStrategy[Any]:
        def both(report: RoundReport) -> None:
            reports.append(report)
            on_round(report)

        return make_strategy(self, buffers, both, **arguments)

    monkeypatch.setattr(Scenario, "make_strategy", recording)
    return reports
